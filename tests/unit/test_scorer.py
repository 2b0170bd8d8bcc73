"""The scorer's parts: the fused softmax against the plain one, popularity against plain counts, and calibration."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from models.calibration import UNTOUCHED, Calibration, _within
from models.full_softmax import FullSoftmax
from models.histories import LENGTHS, Histories, ValueScale
from models.item_tables import RowTable
from models.popularity import FEATURES, HALF_LIVES, LEARNED, Popularity
from models.scorer import SCALES, Scorer, neutral_scales
from models.spec import ModelSpec

SPLIT = 3
"""Columns of the published vectors before the popularity part."""
FROM = [9, 5, 3, 9, 8, 4]
"""From where on candidates are hidden."""


def pieces(seed: int = 0) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {
        "user": torch.randn(6, 5, generator=draw, dtype=torch.float64).requires_grad_(),
        "item": torch.randn(9, 5, generator=draw, dtype=torch.float64).requires_grad_(),
        "cold": torch.randn(2, 5, generator=draw, dtype=torch.float64).requires_grad_(),
        "target": torch.tensor([0, 1, 2, 3, 4, 8]),
        "weight": torch.rand(6, generator=draw, dtype=torch.float64),
        "hidden": torch.rand(6, 9, generator=draw) < 0.2,
        "own": torch.tensor([[5, -1], [6, 7], [-1, -1], [3, 1], [0, -1], [-1, 2]]),
        "cold_rows": torch.tensor([1, 5]),
    }


def plain(p: dict[str, Tensor]) -> Tensor:
    """What `FullSoftmax` computes, written out for autograd."""
    score = p["user"] @ p["item"].T
    own = (p["user"][p["cold_rows"]] * p["cold"]).sum(1)
    score = score.index_put((p["cold_rows"], p["target"][p["cold_rows"]]), own)
    hidden = p["hidden"] | (torch.arange(9) >= torch.tensor(FROM).unsqueeze(1))
    for line, rows in enumerate(p["own"].tolist()):
        for row in rows:
            if row >= 0:
                hidden[line, row] = True
    hidden[torch.arange(6), p["target"]] = False
    chance = score.masked_fill(hidden, -torch.inf).log_softmax(1)
    return -(p["weight"] * chance[torch.arange(6), p["target"]]).sum()


def fused(p: dict[str, Tensor], fresh: int) -> Tensor:
    loss: Tensor = FullSoftmax.apply(  # type: ignore[no-untyped-call]
        p["user"], p["item"], p["target"], p["weight"], FROM, p["hidden"], p["own"], p["cold_rows"], p["cold"], None,
        fresh, SPLIT,
    )  # fmt: skip
    return loss


def test_fused_softmax_is_the_plain_one_with_its_gradients() -> None:
    one, other = pieces(), pieces()
    loss, expected = fused(one, fresh=6), plain(other)
    torch.testing.assert_close(loss, expected)
    loss.backward()  # type: ignore[no-untyped-call]
    expected.backward()  # type: ignore[no-untyped-call]
    for name in ("user", "item", "cold"):
        torch.testing.assert_close(one[name].grad, other[name].grad)


def test_popularity_learns_nothing_from_replayed_examples() -> None:
    p, first = pieces(), pieces()
    fused(p, fresh=4).backward()  # type: ignore[no-untyped-call]
    first["weight"][4:] = 0
    plain(first).backward()  # type: ignore[no-untyped-call]
    whole = pieces()
    plain(whole).backward()  # type: ignore[no-untyped-call]
    for name in ("item", "cold"):
        mine, alone, both = p[name].grad, first[name].grad, whole[name].grad
        assert mine is not None
        assert alone is not None
        assert both is not None
        torch.testing.assert_close(mine[:, SPLIT:], alone[:, SPLIT:])
        torch.testing.assert_close(mine[:, :SPLIT], both[:, :SPLIT])


def test_gradient_of_a_constant_added_to_every_item_is_nothing() -> None:
    p = pieces()
    with torch.no_grad():
        p["user"][:, SPLIT] = 1.0
    fused(p, fresh=4).backward()  # type: ignore[no-untyped-call]
    item, cold = p["item"].grad, p["cold"].grad
    assert item is not None
    assert cold is not None
    assert abs(float(item[:, SPLIT].sum() + cold[:, SPLIT].sum())) < 1e-12


@pytest.mark.parametrize("cuts", [[0, 50], [0, 1, 2, 30, 50]])
def test_counts_are_decayed_sums_however_events_are_grouped(cuts: list[int]) -> None:
    draw = np.random.default_rng(0)
    item, positive = draw.integers(-1, 6, 50), draw.random(50) < 0.8
    popularity = Popularity.empty()
    popularity.grow(6)
    for start, stop in itertools.pairwise(cuts):
        popularity.advance(item[start:stop], positive[start:stop])
    for row in range(6):
        at = np.flatnonzero((item == row) & positive)
        expected = (2.0 ** (-(at[-1] - at)[:, None] / np.array(HALF_LIVES))).sum(0)
        np.testing.assert_allclose(popularity.counts[row], expected, rtol=1e-4)
        assert (popularity.first[row], popularity.last[row]) == (at[0], at[-1])
    assert popularity.position == 50


def test_items_that_nobody_touched_look_the_same_now_and_then() -> None:
    popularity = Popularity.empty()
    popularity.grow(3)
    popularity.advance(np.array([0, 0, 1]), np.array([True, True, False]))
    age_s, since = np.array([86_400.0, 0.0]), np.array([3, 3])
    np.testing.assert_array_equal(popularity.features(np.array([1, 2]), age_s), popularity.never_seen(age_s, since))


def test_row_table_moves_only_active_rows_and_remembers_their_gradients() -> None:
    table = RowTable(2, "cpu")
    table.grow(3)
    gradient = torch.ones(2, 2)
    for _ in range(2):
        table.step(torch.tensor([0, 2]), gradient, torch.tensor([True, False]), rate=1.0, decay=0.0)
    expected = -(1 + 2**-0.5)
    torch.testing.assert_close(table.values, torch.tensor([[expected] * 2, [0.0, 0.0], [0.0, 0.0]]))
    assert table.power.tolist() == [2.0, 0.0, 0.0]


FOLDED, TASTE = [1.2, 0.9, 0.5, 1.4, 0.7], [0.8, 0.3, 1.1, 0.6, 1.0]
DEPARTED = [0.5, 1.2, 0.3, 0.9, 0.7]
NEW = [1.4, -0.6, 0.5]
COUNTED = [0.3, -0.2, 0.4, 0.0, -0.5, 0.1, 0.2, -0.3]
LIKE, VINTAGE = [0.6, 1.1], [0.5, 0.9]
TRUTH = torch.tensor(
    [0.4, 1.5, 0.8, *LIKE, *VINTAGE, 0.9, *FOLDED, *TASTE, 1.3, *DEPARTED, *NEW, *COUNTED, -1.2, -0.5, 0.8, -0.3]
)  # fmt: skip
"""Scales of the personal term, the bias, the popularity, the likeness and the vintage at each pace, the co-occurrence,
the two fold-ins by windows of age, the factors and how windows depart from them; what newness and log counts add at
each half-life; what untouched items get; by what shares what was learned of them, their likeness and their vintage
count for less or more."""
SHARES = ([0, *range(8 + len(FOLDED), 8 + len(FOLDED) + len(TASTE))], [3, 4], [5, 6])
"""Terms of learned vectors, of likeness and of vintage."""
TERMS = len(TRUTH) - len(SHARES)


def random_terms(examples: int, candidates: int, draw: torch.Generator) -> torch.Tensor:
    terms = torch.randn(TERMS, examples, candidates, generator=draw)
    terms[-1] = (terms[-1] > 0.5).float()
    return terms


def found(calibration: Calibration) -> torch.Tensor:
    scales = calibration.scales[[2, *range(LENGTHS, SCALES)]]
    weighed, (appeal, *shares) = calibration.corrections
    rest = [*weighed, appeal]
    return torch.cat((scales, torch.tensor(rest) * scales[2], torch.tensor(shares) - 1))


def scores(terms: torch.Tensor) -> torch.Tensor:
    again = [torch.tensordot(TRUTH[group], terms[group], dims=1) * terms[-1] for group in SHARES]
    found: torch.Tensor = torch.tensordot(TRUTH, torch.cat((terms, torch.stack(again))), dims=1)
    return found


def test_calibration_finds_the_scales_that_made_the_choices() -> None:
    draw = torch.Generator().manual_seed(0)
    terms = random_terms(32_000, 12, draw)
    target = torch.multinomial(scores(terms).softmax(1), 1, generator=draw).squeeze(1)
    length = torch.full((32_000,), 2)
    calibration = Calibration()
    for part in range(0, 32_000, 8000):
        calibration = calibration.faded(8000)
        span = slice(part, part + 8000)
        allowed = torch.ones(8000, 12, dtype=torch.bool)
        calibration = calibration.fitted(terms[:, span], target[span], allowed, length[span])
    torch.testing.assert_close(found(calibration), TRUTH, atol=0.1, rtol=0)
    assert calibration.scales[3] == 1.0  # no history of that length was seen


def test_scales_that_are_held_at_their_bound_leave_the_others_where_these_are_likeliest() -> None:
    draw = torch.Generator().manual_seed(3)
    root = torch.randn(200, 6, 6, generator=draw, dtype=torch.float64)
    for curvature in root @ root.mT + torch.eye(6):
        room = torch.tensor([[-0.3, 0.2]], dtype=torch.float64).expand(6, 2)
        gradient = torch.randn(6, generator=draw, dtype=torch.float64)
        step = _within(room, curvature, gradient)
        assert bool(((step >= -0.3) & (step <= 0.2)).all())
        free = (step > -0.3) & (step < 0.2)
        slope = gradient - curvature @ step
        torch.testing.assert_close(slope[free], torch.zeros_like(slope[free]))
        assert bool((slope[step == -0.3] <= 0).all() and (slope[step == 0.2] >= 0).all())  # none wants back
        alone = torch.linalg.solve(curvature, gradient)
        if bool(((alone > -0.3) & (alone < 0.2)).all()):
            torch.testing.assert_close(step, alone)


def test_what_is_first_chosen_is_raised_as_far_as_it_should_be_at_once() -> None:
    terms = torch.zeros(TERMS, 960, 257)
    terms[-1, :, 7] = 1  # the only item that nobody had touched
    target = torch.where(torch.arange(960) % 5 == 0, 7, torch.arange(960) % 257)
    calibration = Calibration().fitted(
        terms, target, torch.ones(960, 257, dtype=torch.bool), torch.zeros(960, dtype=torch.int64)
    )
    odds = (target == 7).float().mean() / (target != 7).float().mean() * 256
    assert float(calibration.mean[UNTOUCHED]) == pytest.approx(float(odds.log()), abs=0.2)


def test_calibration_on_a_sample_of_the_candidates_finds_the_scales_of_all_of_them() -> None:
    draw = torch.Generator().manual_seed(0)
    terms = random_terms(24_000, 200, draw)
    target = torch.multinomial(scores(terms).softmax(1), 1, generator=draw)
    own = terms.gather(2, target.expand(TERMS, -1, 1))
    sample = torch.cat((own, terms[:, :, :100]), dim=2)
    allowed = torch.cat((torch.ones_like(target, dtype=torch.bool), torch.arange(100) != target), dim=1)
    calibration = Calibration().fitted(
        sample, torch.zeros(24_000, dtype=torch.int64), allowed, torch.full((24_000,), 2)
    )
    # a uniform sample needs no correction (McFadden, "Modelling the choice of residential location", 1978)
    torch.testing.assert_close(found(calibration), TRUTH, atol=0.1, rtol=0)


def test_user_without_history_or_content_still_gets_a_finite_vector() -> None:
    spec = ModelSpec(dim=4, history=3, modalities={"text": 2}, likeness=0, vintage=0, cooccurrence=0, factors=0)
    scorer = Scorer(spec)
    inputs = Histories.empty(2, 3).tensors(ValueScale())
    users = scorer.users(torch.zeros(2, 3, 4), torch.zeros(2, 3, FEATURES), torch.zeros(2, 4), inputs, neutral_scales())
    assert users.shape == (2, 4 + scorer.extras)
    assert bool(users.isfinite().all())
    assert not scorer.content({"text": (torch.ones(1, 2), torch.zeros(1, dtype=torch.int64))}).any()


def test_a_ranking_starts_as_popularity_and_other_objectives_do_not() -> None:
    popularity = Popularity.empty()
    popularity.grow(4)
    popularity.advance(np.array([1, 2, 2, 3, 3, 3] * 20), np.ones(120, bool))
    features = torch.from_numpy(popularity.features(np.arange(4), np.zeros(4)))
    for objective, rises in (("ranking", True), ("rating", False)):
        scorer = Scorer(ModelSpec(dim=8, objective=objective))  # type: ignore[arg-type]
        with torch.no_grad():
            appeal_N = scorer.popular(features[:, LEARNED])[:, 0]
        assert bool((appeal_N.diff() > 0).all()) == rises
        assert (float(appeal_N.abs().max()) > 0) == rises
