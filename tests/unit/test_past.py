"""What the decayed mean of the past is: of what was chosen, weighed by what was done and by how many came later."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.event_log import EventLog, LogView
from models.histories import Histories
from models.past import HALF_LIFE, KNOWN, PAST, WINDOW_ENDS, WINDOWS, Past

VECTORS = torch.arange(12.0).reshape(6, 2) ** 1.5


def test_one_event_is_the_mean_and_nothing_is_zero() -> None:
    past = Past.of(np.array([[4, -1], [-1, -1]]), np.array([[2.0, np.nan], [np.nan, np.nan]], np.float32))
    torch.testing.assert_close(past.mean(VECTORS), torch.stack((VECTORS[4], torch.zeros(2))))


def test_later_events_and_weightier_actions_count_for_more() -> None:
    items = np.full((1, int(HALF_LIFE) + 1), -1)
    items[0, 0], items[0, -1] = 1, 2
    weights = np.where(items >= 0, 1.0, np.nan).astype(np.float32)
    torch.testing.assert_close(Past.of(items, weights).mean(VECTORS)[0], (2 * VECTORS[1] + VECTORS[2]) / 3)
    weights[0, -1] = 4.0
    torch.testing.assert_close(Past.of(items, weights).mean(VECTORS)[0], (2 * VECTORS[1] + 4 * VECTORS[2]) / 6)


@pytest.mark.parametrize("weight", [0.0, -1.0, np.nan])
def test_what_was_not_chosen_is_left_out(weight: float) -> None:
    past = Past.of(np.array([[1, 3]]), np.array([[1.0, weight]], np.float32))
    torch.testing.assert_close(past.mean(VECTORS)[0], VECTORS[1])


def test_gathered_vectors_give_the_same() -> None:
    rng = np.random.default_rng(0)
    items = rng.integers(-1, 6, (5, PAST))
    past = Past.of(items, rng.choice([-1.0, 0.5, 1.0], (5, PAST)).astype(np.float32))
    mean = past.mean(VECTORS)
    torch.testing.assert_close(mean, past.mean_of(VECTORS[torch.from_numpy(past.row_E)]))
    assert not torch.allclose(mean[0], mean[1])


def test_windows_of_age_add_up_to_the_whole() -> None:
    rng = np.random.default_rng(1)
    items, weights = rng.integers(-1, 6, (4, PAST)), rng.choice([-1.0, 1.0, 2.0], (4, PAST)).astype(np.float32)
    ages = np.cumsum(rng.integers(1, 20, (4, PAST)), axis=1) ** 2 // 100
    whole, windows = (Past.of(items, weights, age_BP=age_BP) for age_BP in (None, ages))
    by_window = windows.mean(VECTORS).view(4, WINDOWS, 2)
    torch.testing.assert_close(by_window.sum(1), whole.mean(VECTORS))
    assert windows.counts_X.reshape(4, WINDOWS).sum(1).tolist() == whole.counts_X.tolist()
    chosen = (items >= 0) & (weights > 0)
    first = (chosen & (ages < WINDOW_ENDS[0])).sum(1)
    last = (chosen & (ages >= WINDOW_ENDS[-1])).sum(1)
    assert windows.counts_X[::WINDOWS].tolist() == first.tolist()
    assert windows.counts_X[WINDOWS - 1 :: WINDOWS].tolist() == last.tolist()
    assert first.min() > 0
    assert last.min() > 0


def test_ages_are_events_of_anybody_as_seen_from_the_example() -> None:
    log = EventLog()
    log.add_user()
    log.add_user()
    user = np.array([0, 1, 1, 0, 1, 1, 1, 0])
    log.append(
        user=user, item=np.arange(8), action=np.zeros(8, np.int64), weight=np.ones(8, np.float32),
        value=np.full(8, np.nan, np.float32), time=np.arange(8.0),
    )  # fmt: skip
    view = log.view()
    found = Histories.from_log(view, view.before[np.array([7])], 5, now_B=np.array([7]))
    assert found.age_BP[0, :2].tolist() == [4, 7]
    assert Histories.from_log(view, view.tails(np.array([0])), 5).age_BP[0, :3].tolist() == [1, 5, 8]


@pytest.mark.parametrize("length", [PAST + 40, 5])
def test_a_history_may_be_longer_than_what_is_averaged(length: int) -> None:
    log = EventLog()
    log.add_user()
    n = PAST + 60
    log.append(
        user=np.zeros(n, np.int64), item=np.arange(n), action=np.zeros(n, np.int64), weight=np.ones(n, np.float32),
        value=np.full(n, np.nan, np.float32), time=np.arange(n, dtype=np.float64),
    )  # fmt: skip
    found = Histories.from_log(log.view(), np.array([n - 1]), length)
    assert found.item_BL[0].tolist() == list(range(n - 1, n - 1 - length, -1))
    assert found.past_BP[0].tolist() == list(range(n - 1, -1, -1))
    assert found.past().row_E.tolist() == found.chosen().row_E.tolist() == list(range(n - 1, n - 1 - PAST, -1))
    some = Histories.from_log(log.view(), np.array([n - 1]), length, known=PAST)
    assert some.past_BP[0].tolist() == list(range(n - 1, n - 1 - max(PAST, length), -1))
    both = Histories.empty(1, length).followed_by(found, np.array([0]))
    assert both.item_BL.tolist() == found.item_BL.tolist()


@pytest.mark.parametrize("since", [0, 3, KNOWN - 1, KNOWN + 20])
def test_what_came_since_and_what_was_before_are_one_past(since: int) -> None:
    n, length = KNOWN + 50, 7

    def log_of(start: int, stop: int) -> LogView:
        log = EventLog()
        log.add_user()
        item, k = np.arange(start, stop), stop - start
        log.append(
            user=np.zeros(k, np.int64), item=item, action=np.zeros(k, np.int64), weight=np.ones(k, np.float32),
            value=np.full(k, np.nan, np.float32), time=item.astype(np.float64),
        )  # fmt: skip
        return log.view()

    whole, before, after = log_of(0, n), log_of(0, n - since), log_of(n - since, n)
    tail = np.array([0])
    expected = Histories.from_log(whole, whole.tails(tail), length)
    older = Histories.from_log(before, before.tails(tail), length)
    found = Histories.from_log(after, after.tails(tail), length).followed_by(older, np.array([since]))
    for name, array in vars(expected).items():
        np.testing.assert_array_equal(getattr(found, name), array, err_msg=name)
    assert found.past_BP.shape == (1, KNOWN)


def test_the_past_begins_with_the_history_and_ends_before_the_event() -> None:
    log = EventLog()
    log.add_user()
    item = np.arange(30)
    log.append(
        user=np.zeros(30, np.int64), item=item, action=np.zeros(30, np.int64), weight=np.ones(30, np.float32),
        value=np.full(30, np.nan, np.float32), time=np.array([*range(28), 5.0, 29.0]),
    )  # fmt: skip
    view = log.view()
    whole = Histories.from_log(view, np.array([29]), 20)
    assert (whole.past_BP[0, :20] == whole.item_BL[0]).all()
    assert whole.past_BP[0, 20:].tolist() == list(range(9, -1, -1))
    # the last event but one came late: at time 5 only what was before is past
    early = Histories.from_log(view, np.array([29]), 20, until_B=np.array([5.0]))
    assert sorted(early.past().row_E.tolist()) == [0, 1, 2, 3, 4]
