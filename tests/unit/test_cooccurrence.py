"""Which items the same users choose: cosines in few numbers, block by block."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models import cooccurrence
from models.cooccurrence import Cooccurrence
from models.event_log import EventLog

Floats = NDArray[np.float64]


def log_of(user: list[int], item: list[int], weight: list[float] | None = None) -> EventLog:
    log = EventLog()
    for _ in range(max(user) + 1):
        log.add_user()
    count = len(user)
    log.append(
        user=np.array(user), item=np.array(item), action=np.zeros(count, np.int64),
        weight=np.array(weight or [1.0] * count, np.float32), value=np.full(count, np.nan, np.float32),
        time=np.arange(count, dtype=np.float64),
    )  # fmt: skip
    return log


def taken(log: EventLog, items: int, dim: int, block: int = 10_000) -> Cooccurrence:
    found = Cooccurrence(dim, "cpu")
    found.grow(items)
    draw = torch.Generator().manual_seed(0)
    for at in range(0, len(log), block):
        found.take(log.view(), np.arange(at, min(at + block, len(log))), draw)
    return found


def products(found: Cooccurrence) -> Floats:
    return np.asarray((found.values @ found.values.T).double().numpy())


def cosines(user: list[int], item: list[int]) -> Floats:
    chose = np.zeros((max(user) + 1, max(item) + 1))
    chose[user, item] = 1
    counts = np.sqrt(chose.sum(0))
    return np.asarray(chose.T @ chose / np.outer(counts, counts))


def choices(users: int, items: int, groups: int, each: int) -> tuple[list[int], list[int]]:
    """Users who choose within their own group of items, in a random order."""
    rng = np.random.default_rng(1)
    pairs = [
        (user, int(item))
        for user in range(users)
        for item in rng.choice(np.arange(user % groups, items, groups), each, replace=False)
    ]
    order = rng.permutation(len(pairs))
    return [pairs[at][0] for at in order], [pairs[at][1] for at in order]


@pytest.mark.parametrize("block", [10_000, 70])
def test_products_are_cosines_where_the_numbers_suffice(block: int) -> None:
    user, item = choices(80, 24, 3, 5)
    found = taken(log_of(user, item), 24, 32, block)
    # a choice of before counts a little less
    np.testing.assert_allclose(products(found), cosines(user, item), atol=0.01)


def test_too_few_numbers_keep_nearly_what_could_be_kept() -> None:
    user, item = choices(300, 60, 4, 6)
    found = taken(log_of(user, item), 60, 4, block=100)
    wanted = cosines(user, item)
    power, vectors = np.linalg.eigh(wanted)
    best = (vectors[:, -4:] * power[-4:]) @ vectors[:, -4:].T
    assert np.linalg.norm(products(found) - wanted) < 1.1 * np.linalg.norm(best - wanted)


def test_a_choice_counts_once_and_a_dislike_never() -> None:
    plain = taken(log_of([0, 0, 1], [0, 1, 1]), 3, 8)
    noisy = taken(log_of([0, 0, 0, 0, 1, 1], [0, 1, 0, 1, 1, 2], [1, 1, 1, 1, 1, -1]), 3, 8)
    np.testing.assert_allclose(products(noisy), products(plain), atol=1e-3)
    assert not noisy.values[2].any()


def test_items_nobody_chose_and_no_event_at_all_are_zeros() -> None:
    log = log_of([0, 0], [0, 1])
    found = taken(log, 4, 3)
    assert found.values[:2].any(dim=1).all()
    assert not found.values[2:].any()
    before = found.values.clone()
    found.take(log.view(), np.arange(0), torch.Generator())
    assert torch.equal(found.values, before)


def test_an_item_that_is_forgotten_leaves_the_others_as_they_are() -> None:
    user, item = choices(80, 24, 3, 5)
    found = taken(log_of(user, item), 24, 32)
    before = products(found)
    found.blank(torch.tensor([5]))
    before[5] = before[:, 5] = 0
    np.testing.assert_array_equal(products(found), before)


def test_it_goes_on_from_its_state_bit_for_bit() -> None:
    user, item = choices(80, 24, 3, 5)
    log, half = log_of(user, item).view(), len(user) // 2
    one, other = Cooccurrence(6, "cpu"), Cooccurrence(6, "cpu")
    one.grow(24)
    draw = torch.Generator().manual_seed(3)
    one.take(log, np.arange(half), draw)
    other.load(one.state())
    again = torch.Generator()
    again.set_state(draw.get_state())
    one.take(log, np.arange(half, len(user)), draw)
    other.take(log, np.arange(half, len(user)), again)
    assert torch.equal(one.values, other.values)
    assert torch.equal(one.counts, other.counts)
    assert not torch.equal(one.values, torch.zeros_like(one.values))


def test_a_model_without_it_still_counts_choices() -> None:
    found, whole = taken(log_of([0, 0], [0, 1]), 2, 0), taken(log_of([0, 0], [0, 1]), 2, 4)
    assert found.values.shape == (2, 0)
    assert found.counts.all()
    assert torch.equal(found.counts, whole.counts)


def test_events_that_are_no_choices_change_nothing() -> None:
    found = taken(log_of([0, 0], [0, 1], [-1, -1]), 2, 3)
    assert not found.values.any()
    assert not found.counts.any()


def test_what_is_long_past_is_forgotten() -> None:
    user, item = choices(80, 24, 3, 5)
    log = log_of([*user, 80, 80], [*item, 24, 25])
    found = taken(log, 26, 32, block=len(user))
    assert found.values.any(dim=1).all()
    found.counts *= 1e-6
    found.take(log.view(), np.arange(len(user), len(user) + 2), torch.Generator().manual_seed(0))
    assert found.values.any(dim=1).tolist() == [False] * 24 + [True] * 2
    assert found.counts[:24].tolist() == [0.0] * 24


def test_cosines_of_choices_that_fade_stay_cosines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cooccurrence, "HALF_LIFE", 40.0)
    user, item = choices(80, 24, 3, 5)
    found = taken(log_of(user, item), 24, 32, block=20)
    fresh = 0.5 ** (np.arange(len(user))[::-1] / 40)
    chose = np.zeros((80, 24))
    chose[user, item] = np.sqrt(fresh)
    counts = np.linalg.norm(chose, axis=0)
    # within a block all are as old as its end
    np.testing.assert_allclose(products(found), chose.T @ chose / np.outer(counts, counts), atol=0.1)
