"""Distillation: no loss against oneself, and less forgotten with it than without."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from models.distillation import Distillation
from models.learner import Learner
from models.memory import EventBatch, Memory
from models.serving import Snapshot
from models.spec import ModelSpec
from tests.unit.test_learner import ACTIONS, TRAIN, assert_same, spec_of, stored, world

KINDS = [("ranking", "dot"), ("ranking", "mlp"), ("rating", "dot"), ("click", "dot")]


@pytest.mark.parametrize(("objective", "head"), KINDS)
def test_who_is_as_the_teacher_loses_nothing_and_who_moved_on_does(objective: str, head: str) -> None:
    spec = spec_of(objective=objective, head=head)
    memory = world(spec)
    learner = Learner(spec, replace(TRAIN, average=0.0), memory, seed=3)
    distillation = Distillation(learner)
    log = memory.log.view()
    distillation.begin()
    assert len(distillation.examples(log, np.arange(0), np.arange(100))) == 0, "there is nothing to be taught yet"
    learner.learn(np.arange(100), replay_ratio=1.0)
    learner._refresh(float(log.time[100]))
    distillation.begin()
    examples = distillation.examples(log, np.arange(100, 120), np.arange(100))
    assert 0 < len(examples) <= 100
    assert examples.fresh == 0
    assert float(distillation.forward(examples).loss.detach()) == pytest.approx(0.0, abs=1e-5)
    learner.learn(np.arange(100, 240), replay_ratio=0.0)
    step = distillation.forward(distillation.examples(log, np.arange(0), np.arange(100)))
    assert float(step.loss.detach()) > 1e-4
    step.loss.backward()  # type: ignore[no-untyped-call]
    assert step.vectors_RD.grad is not None
    assert bool(step.vectors_RD.grad.isfinite().all())
    assert step.vectors_RD.grad.abs().sum() > 0


@pytest.mark.parametrize("objective", ["rating", "click"])
def test_what_it_weighs_does_not_depend_on_the_unit_of_values(objective: str) -> None:
    losses = []
    for unit in (1.0, 100.0):
        spec = spec_of(objective=objective)
        memory = world(spec, unit=unit)
        learner = Learner(spec, replace(TRAIN, average=0.0), memory, seed=3)
        distillation = Distillation(learner)
        learner.learn(np.arange(100), replay_ratio=1.0)
        distillation.begin()
        learner.learn(np.arange(100, 240), replay_ratio=0.0)
        step = distillation.forward(distillation.examples(memory.log.view(), np.arange(0), np.arange(100)))
        losses.append(float(step.loss.detach()))
    assert losses[0] > 1e-4
    assert losses[1] == pytest.approx(losses[0], rel=0.1)


def turned(spec: ModelSpec, *, events: int = 600) -> Memory:
    """A world in which everybody suddenly wants the other half."""
    draw = np.random.default_rng(0)
    memory = Memory(spec, ACTIONS)
    user, item = draw.integers(0, 12, events), draw.integers(0, 15, events)
    other = np.arange(events) >= events // 2
    items = [f"{(u % 2 != o) * 15 + i}" for u, i, o in zip(user.tolist(), item.tolist(), other.tolist(), strict=True)]
    values = draw.random(events).astype(np.float32)
    memory.append(
        EventBatch([str(u) for u in user], items, ["view"] * events, values, 1e3 + np.arange(events, dtype=np.float64))
    )
    return memory


def test_less_is_forgotten_with_it() -> None:
    spec = spec_of(modalities={}, frames={}, user_features={})
    changes = []
    for weight in (0.0, 3.0):
        memory = turned(spec)
        learner = Learner(spec, replace(TRAIN, distil=weight, repeats=True), memory, seed=1)
        learner.learn(np.arange(300), replay_ratio=1.0)
        before = Snapshot.build(spec, learner.weights(), memory, version=1, upto=300)
        learner.learn(np.arange(300, 600), replay_ratio=1.0)
        after = Snapshot.build(spec, learner.weights(), memory, version=2, upto=300)
        users = np.arange(12)
        one, two = (
            s.scores(s.user_matrix(s.histories(users), users)[:, : s.d], s.vectors_NV[:, : s.d])
            for s in (before, after)
        )
        changes.append(float(np.abs(one - two).mean()))
    assert changes[1] < 0.9 * changes[0]


def test_a_resumed_run_is_taught_the_same() -> None:
    spec = spec_of()
    memory = world(spec)
    train = replace(TRAIN, distil=0.5)
    whole, first = (Learner(spec, train, memory, seed=3) for _ in range(2))
    for learner in (whole, first):
        learner.learn(np.arange(100), replay_ratio=1.0)
    resumed = Learner(spec, train, memory, seed=77)
    resumed.load_state_dict(stored(first.state_dict()))
    reports = [one.learn(np.arange(100, 240), replay_ratio=2.0) for one in (whole, resumed)]
    assert reports[0] == reports[1]
    assert reports[0].finite
    assert_same(whole.state_dict(), resumed.state_dict())
