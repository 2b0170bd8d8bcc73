"""Factors: what users want and what items are, inferred from choices that use items up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models import factor_reading, factors
from models.cooccurrence import Cooccurrence
from models.event_log import EventLog
from models.factor_reading import FactorReading, Rivals, UserPosterior
from models.factors import Factors
from models.past import WINDOW_ENDS, WINDOWS, FirstChoices
from tests.unit.test_cooccurrence import log_of

Floats = NDArray[np.float64]
DIM = 6


def world(users: int, items: int, each: int, latent: int = 2) -> tuple[EventLog, Floats, Floats]:
    """Choices by McFadden's law without repeats, in a random order of users; tastes and items."""
    rng = np.random.default_rng(3)
    taste, item = 1.5 * rng.standard_normal((users, latent)), rng.standard_normal((items, latent))
    utility = taste @ item.T + 0.5 * rng.standard_normal(items)
    # the order of utilities plus Gumbel noise is one of choices without repeats
    order = np.argsort(-(utility + rng.gumbel(size=utility.shape)), axis=1)[:, :each]
    turns = rng.permutation(np.repeat(np.arange(users), each))
    place = np.zeros(users, np.int64)
    chosen = []
    for user in turns.tolist():
        chosen.append(int(order[user, place[user]]))
        place[user] += 1
    return log_of(turns.tolist(), chosen), taste, item


def take(found: Factors, counted: Cooccurrence, log: EventLog, start: int, stop: int, draw: torch.Generator) -> None:
    for at in range(start, stop, 500):
        positions = np.arange(at, min(at + 500, stop))
        counted.take(log.view(), positions, draw)
        found.take(log.view(), positions, counted.counts, draw)


def learned(log: EventLog, items: int, dim: int = DIM) -> tuple[Factors, Cooccurrence, torch.Generator]:
    found, counted = Factors(dim, "cpu"), Cooccurrence(0, "cpu")
    found.grow(items)
    counted.grow(items)
    draw = torch.Generator().manual_seed(0)
    take(found, counted, log, 0, len(log), draw)
    return found, counted, draw


def chosen(*item_BP: Sequence[int]) -> FirstChoices:
    """What users chose, newest first, -1 for nothing."""
    array_BP = np.array(item_BP, np.int64)
    return FirstChoices.of(array_BP, array_BP >= 0)


def wants(reading: FactorReading, first: FirstChoices) -> torch.Tensor:
    """θ (B, K) by all that users chose."""
    places = int(first.place_E.max(initial=0)) + 1
    return reading.by_window(first, np.tile(np.arange(places), (first.users, 1)))[:, 0]


def past_of(log: EventLog, user: int) -> FirstChoices:
    view = log.view()
    return chosen(view.item[view.of_user(user)][::-1].tolist())


def test_as_many_dimensions_stay_as_the_choices_bear_out_and_they_are_the_worlds() -> None:
    log, taste, item = world(users=150, items=80, each=30)
    found, _, _ = learned(log, 80)
    size = np.sort(found.mean.std(0).numpy())[::-1]
    assert (size[:2] > 0.5).all()
    assert (size[2:] < 0.05).all()
    # no axes are told, so what can be right are the products
    theta = torch.cat([wants(found.reading, past_of(log, user)) for user in range(150)])
    products, true = (theta @ found.mean.T).numpy(), taste @ item.T
    products, true = products - products.mean(1, keepdims=True), true - true.mean(1, keepdims=True)
    assert np.corrcoef(products.ravel(), true.ravel())[0, 1] > 0.9


def test_choices_by_nobodys_taste_leave_no_dimension() -> None:
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(100), 20)
    item = np.concatenate([rng.permutation(50)[:20] for _ in range(100)])
    order = rng.permutation(len(user))
    found, _, _ = learned(log_of(user[order].tolist(), item[order].tolist()), 50)
    assert float(found.mean.std(0).max()) < 0.15


def test_a_users_vector_is_the_likeliest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factor_reading, "NEWTON_STEPS", 25)
    draw = torch.Generator().manual_seed(1)
    mean_NK, counts_N = torch.randn(12, 3, generator=draw), torch.arange(1.0, 13.0, dtype=torch.float64)
    reading = FactorReading(mean_NK, torch.full((12, 3), 1e9), counts_N)
    had = [7, 2, 11, 4]  # newest first
    theta = wants(reading, chosen([*had, -1]))[0].double().requires_grad_()
    # of four choices the oldest item was there for one, the newest for all
    there = torch.ones(12, dtype=torch.float64)
    there[had] = torch.tensor([1.0, 0.75, 0.5, 0.25], dtype=torch.float64)
    utility = mean_NK.double() @ theta
    posterior = utility[had].sum() - 4 * (utility.exp() * there * counts_N).sum().log() - theta @ theta / 2
    (gradient,) = torch.autograd.grad(posterior, theta)
    torch.testing.assert_close(gradient, torch.zeros(3, dtype=torch.float64), atol=1e-4, rtol=0)
    assert float(theta.detach().norm()) > 0.1


def test_windows_depart_to_where_what_was_chosen_then_leads() -> None:
    draw = torch.Generator().manual_seed(2)
    # half of the items are to the right, half to the left
    mean_NK = (
        torch.randn(40, 2, generator=draw) * 0.3 + torch.tensor([1.0, 0.0]) * (torch.arange(40) % 2 * 2 - 1)[:, None]
    )
    reading = FactorReading(mean_NK, torch.full((40, 2), 1e9), torch.ones(40).double())
    right, left = range(1, 17, 2), range(0, 16, 2)
    turned = chosen([*right, *left])
    end = WINDOW_ENDS[0]
    theta_1K, whole_1WK = wants(reading, turned), reading.by_window(turned, np.arange(end - 8, end + 8)[None])
    assert whole_1WK.shape == (1, 1 + WINDOWS, 2)
    torch.testing.assert_close(whole_1WK[:, 0], theta_1K)
    # eight of each: neither side is wanted more by all, and each window by its own
    assert abs(float(theta_1K[0, 0])) < 0.3
    assert float(whole_1WK[0, 1, 0]) > 0.3
    assert float(whole_1WK[0, 2, 0]) < -0.3
    assert not whole_1WK[0, 3:].any()
    # together they are as far as the prior draws θ back
    rivals = Rivals(torch.ones(40).double())
    _, precision_1KK = UserPosterior(mean_NK, torch.full((40, 2), 1e9), rivals)(rivals.choices(turned))
    ridge_1K = (precision_1KK @ whole_1WK[:, 1:].sum(1).unsqueeze(2)).squeeze(2)
    torch.testing.assert_close(ridge_1K, theta_1K, atol=0.05, rtol=0.05)
    nobody = reading.by_window(chosen([-1] * 3, [-1] * 3), np.ones((2, 3), np.int64))
    assert not nobody.any()
    assert not reading.by_window(chosen([]), np.ones((1, 0), np.int64)).any()


def test_users_are_not_read_in_dimensions_that_have_vanished() -> None:
    draw = torch.Generator().manual_seed(3)
    mean_NK, precision_NK = torch.randn(20, 4, generator=draw), torch.full((20, 4), 50.0)
    mean_NK[:, [1, 3]] *= 1e-9
    counts_N, past, age_BP = torch.ones(20).double(), chosen([4, 7, 2, 9]), np.array([[3, 80, 700, 9_000]])
    found = FactorReading(mean_NK, precision_NK, counts_N)
    expected = FactorReading(mean_NK[:, [0, 2]], precision_NK[:, [0, 2]], counts_N)
    assert wants(found, past).shape == (1, 4)
    torch.testing.assert_close(wants(found, past)[:, [0, 2]], wants(expected, past))
    torch.testing.assert_close(found.by_window(past, age_BP)[..., [0, 2]], expected.by_window(past, age_BP))
    assert not found.by_window(past, age_BP)[..., [1, 3]].any()
    # nor would it say anything else
    rivals = Rivals(counts_N)
    theta_1K, _ = UserPosterior(mean_NK, precision_NK, rivals)(rivals.choices(past))
    torch.testing.assert_close(wants(found, past), theta_1K, atol=1e-6, rtol=0)


def test_little_known_items_move_a_user_less() -> None:
    mean_NK, counts_N = torch.randn(30, 3, generator=torch.Generator().manual_seed(0)), torch.ones(30).double()
    had = chosen([1, 2, 3, 4, 5])
    sure, unsure = (wants(FactorReading(mean_NK, torch.full((30, 3), known), counts_N), had) for known in (100.0, 1.0))
    assert float(unsure.norm()) < 0.8 * float(sure.norm())


def test_a_user_of_nothing_and_items_nobody_knows_say_nothing() -> None:
    log, _, _ = world(users=20, items=15, each=6)
    found, _, _ = learned(log, 15)
    assert not wants(found.reading, chosen([-1] * 4, [-1] * 4)).any()
    known, more = chosen([3, 1, -1]), chosen([3, 99, 1])
    torch.testing.assert_close(wants(found.reading, more), wants(found.reading, known))
    empty = Factors(DIM, "cpu")
    assert not wants(empty.reading, chosen([-1] * 4, [-1] * 4)).any()
    assert not wants(empty.reading, chosen([7], [7])).any()


def test_items_that_nobody_chose_stay_where_they_are() -> None:
    log, _, _ = world(users=20, items=15, each=6)
    found, _, _ = learned(log, 18)
    assert not found.mean[15:].any()
    assert found.mean[:15].any(1).all()
    found.blank(torch.tensor([2]))
    assert not found.mean[2].any()
    assert float(found.counts[2]) == 0
    torch.testing.assert_close(found.precision[2], 1 / found.variance)


def test_items_that_have_run_out_are_not_drawn_to_those_who_once_chose_them() -> None:
    log, _, _ = world(users=60, items=40, each=12)
    found, counted, draw = learned(log, 40)
    gone = torch.arange(40) < 4
    known = found.mean.clone()
    for _ in range(30):
        counts_N = torch.where(gone, 0.0, counted.counts)
        found.take(log.view(), np.arange(len(log) - 300, len(log)), counts_N, draw)
    # with the axes they turn, but no one grows
    assert float(found.mean[gone].norm(dim=1).max()) < 2 * float(known.norm(dim=1).max())
    assert float(found.variance.max()) < 5
    past = chosen([0, 9, 1, 12, -1])
    torch.testing.assert_close(wants(found.reading, past), wants(found.reading, chosen([9, 12, -1])))


def test_what_is_not_finite_is_left_for_the_learner_to_refuse() -> None:
    log, _, _ = world(users=20, items=15, each=6)
    for name in ("mean", "precision", "variance"):
        found, counted, draw = learned(log, 15)
        getattr(found, name)[0] = torch.nan
        assert not found.finite
        found.take(log.view(), np.arange(50), counted.counts, draw)
        assert not found.finite


def test_turned_axes_say_the_same() -> None:
    log, _, _ = world(users=40, items=30, each=10)
    found, _, _ = learned(log, 30)
    rivals = Rivals(found.counts)
    theta_BK, precision_BKK = UserPosterior(found.mean, found.precision, rivals)(rivals.choices(past_of(log, 0)))
    before = theta_BK @ found.mean.T
    turn_KK = found._turn(theta_BK, torch.linalg.inv(precision_BKK))
    after = theta_BK @ torch.linalg.inv(turn_KK).T @ found.mean.T
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-3)


def test_it_goes_on_from_its_state_to_the_last_bit() -> None:
    log, _, _ = world(users=60, items=40, each=12)
    half = len(log) // 2
    one, counted, draw = Factors(DIM, "cpu"), Cooccurrence(0, "cpu"), torch.Generator().manual_seed(0)
    one.grow(40)
    counted.grow(40)
    take(one, counted, log, 0, half, draw)
    other, again = Factors(DIM, "cpu"), Cooccurrence(0, "cpu")
    other.load(one.state())
    again.load(counted.state())
    drawn = torch.Generator()
    drawn.set_state(draw.get_state())
    take(one, counted, log, half, len(log), draw)
    take(other, again, log, half, len(log), drawn)
    for name, value in one.state().items():
        assert torch.equal(value, other.state()[name]), name


def test_a_choice_counts_where_it_was_first_and_only_if_it_was_one() -> None:
    item_BP = np.array([[5, 3, 5, -1, 3, 8], [1, 2, 3, 4, 5, 6]])
    weight_BP = np.array([[1, 1, 1, 1, 1, -1], [1, 0, 1, np.nan, 2, 1]], np.float32)
    found = FirstChoices.of(item_BP, (item_BP >= 0) & (weight_BP > 0))
    assert found.users == 2
    assert found.user_E.tolist() == [0, 0, 1, 1, 1, 1]
    assert found.place_E.tolist() == [2, 4, 0, 2, 4, 5]
    assert found.item_E.tolist() == [5, 3, 1, 3, 5, 6]
    (first, one), (second, other) = found.blocks(1)
    assert (first, second) == (slice(0, 1), slice(1, 2))
    assert (one.users, one.user_E.tolist(), one.item_E.tolist()) == (1, [0, 0], [5, 3])
    assert (other.users, other.user_E.tolist(), other.place_E.tolist()) == (1, [0] * 4, [0, 2, 4, 5])


def test_stretches_of_time_are_as_of_users_of_their_own_who_remember_the_others() -> None:
    first = chosen([5, 3, 8, 1], [2, -1, 6, -1], [4, 7, -1, -1])
    apart, (had_users, had_items) = first.apart(np.array([0, 1, 1, 2, 0, 2, 1, 1]))
    assert apart.users == 6
    assert apart.user_E.tolist() == [0, 1, 1, 2, 3, 4, 5, 5]
    assert apart.item_E.tolist() == first.item_E.tolist()
    before = {user: sorted(had_items[had_users == user].tolist()) for user in range(6)}
    assert before == {0: [1, 3, 8], 1: [1], 2: [], 3: [6], 4: [], 5: []}
    nobody, (no_users, no_items) = chosen([-1, -1]).apart(np.zeros(0, np.int64))
    assert nobody.users == len(nobody.user_E) == len(no_users) == len(no_items) == 0


@pytest.mark.parametrize("turned", [False, True])
def test_items_are_learned_by_what_was_wanted_at_the_time(turned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each user chooses 20 items, then 20 more, by the same wants or by the opposite ones."""
    rng = np.random.default_rng(5)
    users, items = 120, 120
    taste, item = 2.5 * rng.standard_normal((users, 1)), rng.standard_normal((items, 1))
    rows: list[tuple[int, int]] = []
    free = np.ones((users, items), bool)
    for sign in (1, -1 if turned else 1):
        for user in np.tile(rng.permutation(users), 20).tolist():
            utility = sign * (taste[user] @ item.T) + rng.gumbel(size=items)
            at = int(np.argmax(np.where(free[user], utility, -np.inf)))
            free[user, at] = False
            rows.append((user, at))
    log = log_of([user for user, _ in rows], [at for _, at in rows])
    monkeypatch.setattr(factors, "STRETCH_ENDS", (len(rows) // 2,))
    seen: list[bool] = []
    found_by_evidence = Factors._turned

    def noted(*arguments: Any) -> bool:
        seen.append(found_by_evidence(*arguments))
        return seen[-1]

    monkeypatch.setattr(Factors, "_turned", staticmethod(noted))
    whole, _, _ = learned(log, items)
    assert seen[-1] == turned
    likeness = abs(float(np.corrcoef(whole.mean[:, -1], item[:, 0])[0, 1]))
    monkeypatch.setattr(Factors, "_turned", staticmethod(lambda *_: False))
    as_one, _, _ = learned(log, items)
    mixed = abs(float(np.corrcoef(as_one.mean[:, -1], item[:, 0])[0, 1]))
    assert likeness > 0.8
    if turned:
        assert likeness > mixed + 0.1


@pytest.mark.parametrize("newcomers", [0, 300])
@pytest.mark.parametrize("each_turns", [False, True])
def test_what_all_choose_more_of_is_no_turn_of_wants(newcomers: int, each_turns: bool) -> None:
    """Half of the items are to the right; 60 users go there more of late, or each other one does and the rest leave."""
    rng = np.random.default_rng(0)
    right, left = np.arange(100), np.arange(100, 200)
    mean_NK = torch.where(torch.arange(200) < 100, 1.0, -1.0).unsqueeze(1)

    def stretch(chance: float) -> list[int]:
        to_right = int(rng.binomial(30, chance))
        return [*rng.choice(right, to_right, replace=False), *rng.choice(left, 30 - to_right, replace=False)]

    pasts = []
    for user in range(60):
        late = 0.15 if each_turns and user % 2 else 0.85
        recent, old = stretch(late), stretch(1 - late)
        pasts.append([*recent, *(-1 if item in recent else item for item in old)])
    pasts += [[*stretch(0.85), *[-1] * 30] for _ in range(newcomers)]
    rivals = Rivals(torch.ones(200).double())
    choices = rivals.choices(chosen(*pasts))
    posterior = UserPosterior(mean_NK, torch.full((200, 1), 1e9), rivals)
    _, precision_BKK = posterior(choices)
    evidence = posterior.evidence_of_turns(choices, (choices.place_E >= 30).long(), precision_BKK)
    assert (evidence > 0) == each_turns


def test_what_a_user_had_is_never_likelier_for_it() -> None:
    rivals = Rivals(torch.tensor([1e-3, 2e4, 2e4]).double())  # a share below the least
    plain = rivals.choices(chosen([1])).available_BS
    had = rivals.choices(chosen([1]), (np.array([0]), np.array([0]))).available_BS
    assert float(had[0, 0]) < float(plain[0, 0]) - 5
    torch.testing.assert_close(had[:, 1:], plain[:, 1:])


def test_of_many_items_some_stand_for_all_by_their_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factor_reading, "ITEMS", 50)
    monkeypatch.setattr(factor_reading, "STAND_INS", 40)
    counts_N = torch.arange(1.0, 201.0, dtype=torch.float64)
    rows, shares = factor_reading._stand_ins(counts_N, 0.25)
    assert len(rows) <= 40
    assert float(shares.sum()) == pytest.approx(1)
    # of any run of items the share is right to within the distance of two places
    true_N, found_N = counts_N / counts_N.sum(), torch.zeros(200, dtype=torch.float64)
    found_N[rows] = shares.double()
    assert float((true_N.cumsum(0) - found_N.cumsum(0)).abs().max()) <= 1 / 40
    log, taste, item = world(users=150, items=80, each=30)
    found, _, _ = learned(log, 80)
    theta = torch.cat([wants(found.reading, past_of(log, user)) for user in range(150)])
    products, true = (theta @ found.mean.T).numpy(), taste @ item.T
    products, true = products - products.mean(1, keepdims=True), true - true.mean(1, keepdims=True)
    # half as many places as items; the same ones block after block made it 0.2
    assert np.corrcoef(products.ravel(), true.ravel())[0, 1] > 0.6


def test_of_many_users_some_are_learned_from(monkeypatch: pytest.MonkeyPatch) -> None:
    log, _, _ = world(users=60, items=40, each=12)
    monkeypatch.setattr(factors, "USERS", 10)
    assert factors._chosen(log.view(), np.arange(len(log)))[0].users == 10
    found, _, _ = learned(log, 40)
    assert bool(found.mean.isfinite().all())
    assert bool(found.mean.any())
