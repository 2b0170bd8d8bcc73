"""The gate on simulated candidates: how often it errs, and what it says."""

import io
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from service.promotion import LEAST_CLUSTERS, Gate, Pooled, Window, _t_quantile

Floats = NDArray[np.float64]


def gains(
    rng: np.random.Generator, n: int, *, worse: float = 0.0, noise: float = 0.5, per_user: int = 1
) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Gains 1/log2(2 + rank) of a champion and of a candidate whose ranks differ by chance, and whose event each is.

    The candidate's gains are exchangeable with the champion's, then scaled down by `worse`. With `per_user` above 1 the
    events of one user go well or badly together.
    """
    users = np.arange(n) // per_user
    base = rng.lognormal(3.5, 1.5, n)
    ranks = [base * np.exp(noise * (rng.normal(size=n) + rng.normal(size=n)[users])) for _ in range(2)]
    champion, candidate = (1 / np.log2(2 + rank) for rank in ranks)
    return candidate * (1 - worse), champion, users


def window(
    candidate: Floats,
    champion: Floats | None,
    users: NDArray[np.int64] | None = None,
    popularity: Floats | None = None,
    learned: tuple[Floats, Floats] | None = None,
) -> Window:
    floor = np.zeros(len(candidate)) if popularity is None else popularity
    return Window(
        candidate=candidate,
        champion=champion,
        popularity=floor,
        decayed_popularity=floor,
        learned=learned,
        users=users,
    )


def most_by_chance(trials: int, rate: float) -> int:
    """The count that a binomial of this rate exceeds once in a thousand."""
    below, count = 0.0, -1
    while below < 0.999:
        count += 1
        below += math.comb(trials, count) * rate**count * (1 - rate) ** (trials - count)
    return count


@pytest.mark.parametrize("n", [30, 100, 500, 2_000])
@pytest.mark.parametrize("noise", [0.1, 1.0])
@pytest.mark.parametrize("per_user", [1, 5])
def test_a_candidate_as_good_as_the_champion_is_refused_at_most_once_in_fifty(
    n: int, noise: float, per_user: int
) -> None:
    """Over a stream of phases, each with the pool the earlier ones left."""
    rng = np.random.default_rng(n)
    gate, pooled, refused, trials = Gate(), list[Pooled](), 0, 400
    for _ in range(trials):
        candidate, champion, users = gains(rng, n, noise=noise, per_user=per_user)
        *learned, _ = gains(rng, n, noise=noise, per_user=per_user)
        verdict = gate.judge(window(candidate, champion, users, learned=(learned[0], learned[1])), pooled)
        pooled = verdict.pooled
        refused += verdict.decision == "refused"
    assert refused <= most_by_chance(trials, 1 / 50)


def test_the_odds_hold_without_any_tolerance_and_below_popularity() -> None:
    rng = np.random.default_rng(0)
    gate, refused, trials = Gate(tolerance=0), 0, 1_000
    for _ in range(trials):
        candidate, champion, users = gains(rng, 400)
        refused += gate.judge(window(candidate, champion, users, popularity=champion * 2)).decision == "refused"
    assert refused <= most_by_chance(trials, 1 / 50)


@pytest.mark.parametrize("noise", [0.1, 0.5, 1.0])
def test_a_candidate_a_fifth_worse_is_refused_nearly_always(noise: float) -> None:
    rng = np.random.default_rng(1)
    pooled = Gate().judge(window(*gains(rng, 300, noise=noise))).pooled
    refused = sum(
        Gate().judge(window(*gains(rng, 1_000, worse=0.2, noise=noise)), pooled).decision == "refused"
        for _ in range(200)
    )
    assert refused >= 198


def test_a_clearly_worse_window_is_refused_whatever_the_past() -> None:
    rng = np.random.default_rng(2)
    gate, pooled = Gate(min_events=3_000), list[Pooled]()
    for _ in range(8):
        candidate, champion, users = gains(rng, 400, worse=-0.5)
        pooled = gate.judge(window(candidate, champion, users), pooled).pooled
    verdict = gate.judge(window(*gains(rng, 400, worse=0.4)), pooled)
    assert (verdict.decision, verdict.slug) == ("refused", "worse")
    assert verdict.metrics["gate_pooled_change"] > 0 > verdict.metrics["gate_change_bound"]


def test_what_is_counted_hides_no_broken_weights() -> None:
    rng = np.random.default_rng(14)
    candidate, champion, users = gains(rng, 1_000)
    assert Gate().judge(window(candidate, champion, users)).decision == "promoted"
    verdict = Gate().judge(window(candidate, champion, users, learned=(candidate * 0.7, champion)))
    assert (verdict.decision, verdict.slug) == ("refused", "worse")
    assert verdict.reason.startswith("By what its weights have learned alone, the candidate scores -3")
    assert verdict.metrics["gate_learned_bound"] < -0.02 < verdict.metrics["gate_change_bound"]


def test_a_bad_past_alone_refuses_nobody() -> None:
    rng = np.random.default_rng(3)
    bad = Gate(tolerance=0.9).judge(window(*gains(rng, 2_000, worse=0.1))).pooled
    candidate, champion, users = gains(rng, 100, worse=-0.2)
    assert Gate(min_events=1_000).judge(window(candidate, champion, users), bad).decision == "promoted"


@pytest.mark.parametrize("n", [0, 1, 2, 5, LEAST_CLUSTERS - 1])
def test_tiny_windows_do_not_flip_coins(n: int) -> None:
    rng = np.random.default_rng(4)
    verdicts = [Gate().judge(window(*gains(rng, n, worse=0.1, noise=1.0))) for _ in range(50)]
    assert {(verdict.decision, verdict.slug) for verdict in verdicts} == {("promoted", "few_events")}


def test_small_windows_are_pooled_until_they_can_tell() -> None:
    """A loss that 60 events seldom show is mostly found once the windows before are counted with them."""
    rng = np.random.default_rng(5)
    gate, streams = Gate(), 40
    first = last = 0
    for _ in range(streams):
        pooled: list[Pooled] = []
        verdicts = []
        for _ in range(9):
            candidate, champion, users = gains(rng, 60, worse=0.12, noise=0.7)
            verdicts.append(gate.judge(window(candidate, champion, users), pooled))
            pooled = verdicts[-1].pooled
        first += verdicts[0].decision == "refused"
        last += verdicts[-1].decision == "refused"
    assert first < 0.2 * streams
    assert last > 0.6 * streams


def test_only_promoted_windows_are_pooled_newest_first_and_no_more_than_asked() -> None:
    rng = np.random.default_rng(6)
    gate = Gate(windows=3, min_events=10_000)
    pooled: list[Pooled] = []
    for n in (50, 60, 70):
        pooled = gate.judge(window(*gains(rng, n)), pooled).pooled
    assert [len(past["sums"]) for past in pooled] == [70, 60]
    assert gate.judge(window(*gains(rng, 80)), pooled).metrics["gate_pooled_events"] == 80 + 70 + 60
    for verdict in (
        gate.judge(window(*gains(rng, 500, worse=0.5)), pooled),
        gate.judge(window(*gains(rng, 50)), pooled, hold=True),
        gate.judge(window(np.full(9, np.nan), np.ones(9)), pooled),
    ):
        assert verdict.decision != "promoted"
        assert verdict.pooled == pooled


def test_the_pool_goes_through_a_checkpoint_as_it_is() -> None:
    rng = np.random.default_rng(7)
    gate = Gate()
    pooled = gate.judge(window(*gains(rng, 300, per_user=3))).pooled
    file = io.BytesIO()
    torch.save(pooled, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    following = window(*gains(rng, 200))
    assert gate.judge(following, loaded).metrics == gate.judge(following, pooled).metrics


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_score_or_weight_that_is_not_finite_is_refused(bad: float) -> None:
    candidate, champion, _ = gains(np.random.default_rng(8), 100)
    candidate[3] = bad
    for verdict in (
        Gate().judge(window(candidate, champion)),
        Gate().judge(window(candidate, None)),
        Gate().judge(window(candidate, champion), hold=True),
    ):
        assert (verdict.decision, verdict.slug) == ("refused", "not_finite")
        assert "1 of 100" in verdict.reason
    ones = np.ones(5)
    broken = Window(candidate=ones, champion=ones, popularity=ones, decayed_popularity=ones, weights_finite=False)
    assert Gate().judge(broken).slug == "not_finite"


def test_the_first_version_is_promoted_and_so_is_the_successor_of_a_broken_champion() -> None:
    candidate, champion, _ = gains(np.random.default_rng(9), 100)
    champion[0] = math.nan
    for rival in (None, champion):
        verdict = Gate().judge(window(candidate, rival))
        assert (verdict.decision, verdict.slug, verdict.pooled) == ("promoted", "no_champion", [])


def test_below_popularity_there_is_no_tolerance() -> None:
    rng = np.random.default_rng(10)
    candidate, champion, users = gains(rng, 2_000, worse=0.015, noise=0.05)
    assert Gate().judge(window(candidate, champion, users)).slug == "passed"
    verdict = Gate().judge(window(candidate, champion, users, popularity=champion * 1.2))
    assert (verdict.decision, verdict.slug) == ("refused", "below_popularity")
    assert "below popularity" in verdict.reason


def test_one_below_popularity_but_no_worse_than_the_champion_is_promoted_with_the_figure() -> None:
    candidate, champion, users = gains(np.random.default_rng(11), 2_000, worse=-0.1)
    verdict = Gate().judge(window(candidate, champion, users, popularity=champion * 2))
    assert (verdict.decision, verdict.slug) == ("promoted", "passed")
    assert verdict.metrics["gate_below_popularity"] == 1
    assert "below popularity" in verdict.reason


def test_hold_keeps_back_what_would_pass_and_only_that() -> None:
    rng = np.random.default_rng(12)
    good = Gate().judge(window(*gains(rng, 500)), hold=True)
    assert (good.decision, good.slug) == ("held", "hold")
    assert Gate().judge(window(*gains(rng, 500, worse=0.5)), hold=True).decision == "refused"
    assert Gate().judge(window(np.ones(5), None), hold=True).decision == "held"


@pytest.mark.parametrize("worse", [0.0, 0.5])
def test_scores_below_zero_are_judged_by_the_size_of_their_mean(worse: float) -> None:
    """−squared error and log-likelihood: larger is still better, and the tolerance a share of |mean|."""
    rng = np.random.default_rng(13)
    champion = -(rng.normal(size=2_000) ** 2)
    candidate = champion * (1 + worse) + rng.normal(size=2_000) * 0.1
    verdict = Gate().judge(window(candidate, champion))
    assert verdict.decision == ("refused" if worse else "promoted")
    assert verdict.metrics["gate_change"] == pytest.approx(-worse, abs=0.01)


def test_a_reason_is_one_sentence_with_figures_and_metrics_are_finite() -> None:
    rng = np.random.default_rng(14)
    for judged in (gains(rng, 500, worse=0.3), gains(rng, 500), gains(rng, 5)):
        verdict = Gate().judge(window(*judged))
        assert verdict.reason.endswith(".")
        assert "\n" not in verdict.reason
        assert str(len(judged[0])) in verdict.reason
        assert all(name.startswith("gate_") and math.isfinite(x) for name, x in verdict.metrics.items())


def test_events_of_one_user_count_as_one_draw() -> None:
    """What five of 25 users lost, in forty events each, proves less than 200 losses of 1,000 users."""
    users = np.repeat(np.arange(25), 40)
    champion = np.ones(1_000)
    candidate = np.where(users < 5, 0.7, 1.0)
    assert Gate().judge(window(candidate, champion)).decision == "refused"
    assert Gate().judge(window(candidate, champion, users)).decision == "promoted"


def test_scores_of_unequal_length_are_an_error() -> None:
    with pytest.raises(ValueError, match="differ in length"):
        window(np.ones(3), np.ones(2))


@pytest.mark.parametrize(
    ("confidence", "degrees", "table"),
    [(0.95, 19, 1.72913), (0.995, 19, 2.86093), (0.995, 100, 2.62589), (0.99, 30, 2.45726), (0.95, 10**6, 1.64486)],
)
def test_student_t_quantiles_match_the_tables(confidence: float, degrees: int, table: float) -> None:
    assert _t_quantile(confidence, degrees) == pytest.approx(table, abs=1e-4)
