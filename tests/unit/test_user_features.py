"""Features of users, in whatever unit they come: normalised like those of items, and published without any event."""

from __future__ import annotations

import numpy as np
import pytest

from models.learner import Learner
from models.memory import EventBatch, Memory
from models.serving import Snapshot
from models.spec import ModelSpec, TrainSpec

ACTIONS = {"default": 1.0}
SPEC = ModelSpec(dim=8, history=3, user_features={"age": 1})
USERS, ITEMS, EACH = 60, 20, 4


def of_two_ages(unit: float) -> Memory:
    """Who is about 30 takes even items, who is about 60 odd ones."""
    memory, draw = Memory(SPEC, ACTIONS), np.random.default_rng(0)
    for number in range(USERS):
        age = draw.normal(30 + 30 * (number % 2), 3)
        memory.enrol(f"u{number}", 0.0, {"age": np.array([unit * age], np.float32)})
    user = np.repeat(draw.permutation(np.arange(USERS)), EACH)
    item = 2 * np.concatenate([draw.permutation(ITEMS // 2)[:EACH] for _ in range(USERS)]) + user % 2
    events = USERS * EACH
    memory.append(
        EventBatch(
            [f"u{one}" for one in user], [f"i{one}" for one in item], ["view"] * events,
            np.full(events, np.nan, np.float32), np.arange(events, dtype=np.float64),
        )
    )  # fmt: skip
    for age in (30, 60):
        memory.enrol(f"aged {age}", 900.0, {"age": np.array([unit * age], np.float32)})
    return memory


@pytest.mark.parametrize("unit", [1e-3, 1.0, 365.0], ids=["thousands", "years", "days"])
def test_who_never_clicked_is_recommended_what_their_like_take(unit: float) -> None:
    memory = of_two_ages(unit)
    learner = Learner(SPEC, TrainSpec(batch=48, actions=ACTIONS), memory, seed=0)
    for _ in range(10):
        assert learner.learn(np.arange(memory.n_events), replay_ratio=0.0).finite
    snapshot = Snapshot.build(SPEC, learner.state_dict(), memory, version=1)
    users_BV = snapshot.user_vectors(["aged 30", "aged 60"])
    scores_BN = snapshot.scores(users_BV, snapshot.vectors_NV)
    odd_N = np.array([int(one[1:]) % 2 for one in snapshot.item_ids])
    for scores_N, kind in zip(scores_BN, (0, 1), strict=True):
        best = odd_N[np.argsort(-scores_N)[: ITEMS // 2]]
        assert (best == kind).mean() >= 0.9


def test_of_users_who_were_active_lately_are_those_who_are_known_by_features_alone() -> None:
    memory = of_two_ages(1.0)
    learner = Learner(SPEC, TrainSpec(batch=48, actions=ACTIONS), memory, seed=0)
    last, at = memory.log.view().user[-1], float(memory.log.view().time[-1])
    memory.append(EventBatch(["late"], ["i0"], ["view"], np.array([np.nan], np.float32), np.array([at + 9 * 86_400])))
    learner.learn(np.arange(memory.n_events), replay_ratio=0.0)
    snapshot = Snapshot.build(SPEC, learner.state_dict(), memory, version=1)
    assert sorted(snapshot.user_ids(active_days=2)) == ["aged 30", "aged 60", "late"]
    assert f"u{last}" in snapshot.user_ids()
