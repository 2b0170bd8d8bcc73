"""Test-then-train evaluation against the same thing done slowly, one event at a time."""

from __future__ import annotations

import numpy as np
import pytest

from models.learner import Learner
from models.memory import EventBatch, Memory
from models.overlay import Overlay
from models.serving import Snapshot
from models.spec import ModelSpec, TrainSpec
from service.prequential import measure

SPEC = ModelSpec(dim=4, history=4)
K = 3


def batch_of(rng: np.random.Generator, events: int, start: float) -> EventBatch:
    times = start + np.sort(rng.integers(0, events // 2, events)).astype(np.float64)  # many share a timestamp
    return EventBatch(
        [f"u{n}" for n in rng.integers(0, 6, events)],
        [f"i{n}" for n in rng.integers(0, 12, events)],
        ["view"] * events,
        np.full(events, np.nan, np.float32),
        times,
    )


@pytest.fixture
def snapshot() -> Snapshot:
    memory = Memory(SPEC, {})
    for number in range(12):
        memory.announce(f"i{number}", float(number * 10), {})
    memory.append(batch_of(np.random.default_rng(0), 60, 0.0))
    learner = Learner(SPEC, TrainSpec(batch=16), memory, seed=0)
    learner.learn(np.arange(60), replay_ratio=0.0)
    return Snapshot.build(SPEC, learner.state_dict(), memory, version=1)


def slow_ranks(snapshot: Snapshot, batch: EventBatch) -> list[float]:
    """Rank of each event that is no repeat, its basket unknown; ties count half."""
    overlay = Overlay(snapshot)
    found = []
    mine: dict[str, set[str]] = {}
    at = 0
    while at < len(batch):
        stop = int(np.searchsorted(batch.times, batch.times[at], side="right"))
        for event in range(at, stop):
            user, item = batch.users[event], batch.items[event]
            ids = overlay.all_item_ids
            had = mine.setdefault(user, {str(ids[row]) for row in overlay.seen(user)})
            if item not in had:
                scores, announced = overlay.scores(user), overlay.announced()
                own = scores[ids.index(item)]
                others = [
                    scores[row]
                    for row, one in enumerate(ids)
                    if one not in had and one != item and announced[row] <= batch.times[event]
                ]
                found.append(sum(s > own for s in others) + sum(s == own for s in others) / 2)
            had.add(item)
        overlay.observe(batch[at:stop])
        at = stop
    return found


def test_figures_are_those_of_ranking_one_event_after_another(snapshot: Snapshot) -> None:
    batch = batch_of(np.random.default_rng(1), 80, 100.0)
    ranks = np.array(slow_ranks(snapshot, batch))
    found = measure(snapshot, batch, k=K, most=1000, chunk=1)
    assert found["ranked"] == len(ranks) > 10
    assert found[f"recall_at_{K}"] == pytest.approx((ranks < K).mean())
    assert found["mrr"] == pytest.approx((1 / (1 + ranks)).mean())


def test_a_sample_is_seeded_and_says_its_size(snapshot: Snapshot) -> None:
    batch = batch_of(np.random.default_rng(1), 80, 100.0)
    first, again = (measure(snapshot, batch, k=K, most=30, seed=(0, 1)) for _ in range(2))
    assert first == again
    assert first["sampled"] == 30
    assert first != measure(snapshot, batch, k=K, most=30, seed=(0, 2))


def test_an_item_nobody_announced_is_a_cold_miss(snapshot: Snapshot) -> None:
    batch = EventBatch(["u0"], ["unheard of"], ["view"], np.array([np.nan], np.float32), np.array([200.0]))
    found = measure(snapshot, batch, k=K, most=10)
    assert found["ranked"] == found["cold_events"] == 1
    assert found[f"recall_at_{K}"] == found[f"cold_recall_at_{K}"] == 0


def test_actions_of_negative_weight_are_seen_but_not_ranked(snapshot: Snapshot) -> None:
    snapshot.weights = {"default": 1.0, "skip": -1.0}
    batch = EventBatch(
        ["u9"] * 2, ["i1", "i2"], ["skip", "view"], np.full(2, np.nan, np.float32), np.array([200.0, 201.0])
    )
    assert measure(snapshot, batch, k=K, most=10)["ranked"] == 1


def test_before_there_is_a_catalogue_nothing_is_measured() -> None:
    memory = Memory(SPEC, {})
    learner = Learner(SPEC, TrainSpec(), memory, seed=0)
    empty = Snapshot.build(SPEC, learner.state_dict(), memory, version=0)
    assert measure(empty, batch_of(np.random.default_rng(0), 5, 0.0), k=K, most=10) == {}
