"""A world with an exact answer: every fusion × objective × head learns it."""

import numpy as np
import pytest

from models.learner import Learner
from models.memory import EventBatch, Memory
from models.objectives import OBJECTIVES
from models.overlay import Overlay
from models.spec import ModelSpec, TrainSpec
from tests.unit.scorer_cases import ACTIONS, CASES, Case, case_id, snapshot_of

pytestmark = pytest.mark.usefixtures("one_thread")

PASSES = 120
"""Over the checkerboard's events, 120 to 216 of them; fewer where all is learned before."""
LOOK = 5
"""Passes between two looks."""


def checkerboard(objective: str) -> tuple[EventBatch, dict[str, str]]:
    """Users and items of two kinds; users like all items of their own kind and none of the other.

    Every user has had all items of their kind but one, which is withheld; returns the events and what is withheld.
    For ratings and clicks they also had some of the other kind, and did not like them.
    """
    rng = np.random.default_rng(0)
    rows, withheld = [], {}
    for user in range(24):
        kind = user % 2
        own = [f"{kind}-{n}" for n in range(6)]
        withheld[f"u{user}"] = own[user // 2 % 6]
        rows += [(f"u{user}", item, 5.0) for item in own if item != withheld[f"u{user}"]]
        if objective != "ranking":
            rows += [(f"u{user}", f"{1 - kind}-{n}", 1.0) for n in rng.choice(6, 4, replace=False)]
    rows = [rows[n] for n in rng.permutation(len(rows))]
    liked = np.array([value for _, _, value in rows], np.float32)
    batch = EventBatch(
        users=[user for user, _, _ in rows],
        items=[item for _, item, _ in rows],
        actions=["skip" if objective == "click" and value < 3 else "view" for value in liked],
        values=liked,
        times=1_000.0 + np.arange(len(rows), dtype=np.float64),
    )
    return batch, withheld


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_on_a_checkerboard_the_withheld_item_comes_first(case: Case) -> None:
    fusion, objective, head = case
    spec = ModelSpec(
        dim=8, history=10, fusion=fusion, objective=objective, head=head, modalities={"text": 4, "image": 4}
    )
    memory = Memory(spec, ACTIONS)
    rng = np.random.default_rng(1)
    for kind in range(2):
        for n in range(6):
            signal = np.array([1, -1, 0, 0], np.float32) * (1 if kind else -1)
            text, image = (signal + 0.3 * rng.normal(size=4).astype(np.float32) for _ in range(2))
            present = {"text": text, "image": image} if n % 3 else {"text": text}
            memory.announce(f"{kind}-{n}", 900.0, present)
    batch, withheld = checkerboard(objective)
    positions = memory.append(batch)
    # few steps over few items: hiding much of what is learned would take many more
    rate = 2e-2 / OBJECTIVES[objective].shared_rate
    train = TrainSpec(batch=64, learning_rate=rate, dropout=0.1, id_dropout=0.1, actions=ACTIONS)
    learner = Learner(spec, train, memory, 0)
    missed: str | None = ""
    for passed in range(1, PASSES + 1):
        learner.learn(np.asarray(positions), replay_ratio=0.0)
        if passed % LOOK == 0:
            overlay = Overlay(snapshot_of(learner))
            wrong = (u for u, item in withheld.items() if overlay.recommend(u, k=1)[0]["item_id"] != item)
            if (missed := next(wrong, None)) is None:
                break
    assert missed is None
