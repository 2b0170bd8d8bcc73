"""What is spoiled in a candidate is spoiled while it learns and no longer, and the counts say what the gate did."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.poison import WARM_UP, Phases, counts, trials
from benchmarks.spoiling import RATE, SPOILS, healthy
from benchmarks.stream import Stream
from models.spec import ModelSpec, TrainSpec
from service.config import Config
from service.trainer import Trainer
from streams.simulator import World

EVENTS = 300
"""In a phase."""
FIRST, STOP = 350, 500
"""New to the learner in the tests of one spoiled call."""
CONFIG = Config(model=ModelSpec(dim=8, history=5), train=TrainSpec(batch=64, threads=1))


@pytest.fixture(scope="module")
def phases() -> Phases:
    world = World(seed=3, users=120, items=150, events=EVENTS * 5, arrival_rate=5.0, no_repeat=40)
    return Phases(Stream.of_world(world), CONFIG, EVENTS)


@pytest.fixture(scope="module")
def warm(phases: Phases) -> Trainer:
    trainer = phases.trainer()
    for number in range(WARM_UP):
        phases.run(trainer, number, healthy, np.random.default_rng(0))
    return trainer


@pytest.fixture
def trainer(warm: Trainer) -> Trainer:
    return copy.deepcopy(warm)


class Learned:
    """What the learner's own `learn` met, instead of learning."""

    def __init__(self, trainer: Trainer) -> None:
        self.items: list[int] = []
        self.rate = 0.0
        self.finite = True
        self.trainer = trainer

    def __call__(self, positions: Any, **_: Any) -> None:
        learner = self.trainer.learner
        self.items = self.trainer.memory.log.view().item.tolist()
        self.rate = learner.train.learning_rate
        self.finite = all(bool(weight.isfinite().all()) for weight in learner.scorer.parameters())


def spoiled(kind: str, trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> Learned:
    met = Learned(trainer)
    monkeypatch.setattr(trainer.learner, "learn", met)
    with SPOILS[kind](trainer, np.random.default_rng(0)):
        trainer.learner.learn(np.arange(FIRST, STOP), replay_ratio=1.0)
    return met


@pytest.mark.parametrize(("kind", "first"), [("shuffled", 0), ("shuffled-new", FIRST)])
def test_labels_are_dealt_anew_and_put_back(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch, kind: str, first: int
) -> None:
    true = trainer.memory.log.view().item.tolist()
    met = spoiled(kind, trainer, monkeypatch)
    assert met.items[:first] == true[:first]
    assert met.items[first:STOP] != true[first:STOP]
    assert sorted(met.items[first:STOP]) == sorted(true[first:STOP])
    assert met.items[STOP:] == true[STOP:], "what is held out judges it"
    assert trainer.memory.log.view().item.tolist() == true


def test_the_rate_is_tenfold_and_put_back(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    rate = trainer.learner.train.learning_rate
    assert spoiled("tenfold", trainer, monkeypatch).rate == RATE * rate
    assert trainer.learner.train.learning_rate == rate


def test_shared_weights_take_tenfold_steps_too(trainer: Trainer) -> None:
    learner = trainer.learner

    def rates() -> list[float]:
        learner.learn(np.arange(FIRST, STOP), replay_ratio=1.0)
        return [group["lr"] for group in learner.optimizer.param_groups]

    usual = rates()
    with SPOILS["tenfold"](trainer, np.random.default_rng(0)):
        assert rates() == pytest.approx([RATE * one for one in usual])


def test_a_weight_is_not_a_number(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not spoiled("nan", trainer, monkeypatch).finite


def test_nan_is_refused_and_the_parent_goes_on(phases: Phases, trainer: Trainer) -> None:
    before = {name: weight.detach().clone() for name, weight in trainer.learner.scorer.named_parameters()}
    verdict = phases.run(trainer, WARM_UP, SPOILS["nan"], np.random.default_rng(1))
    assert (verdict.decision, verdict.slug) == ("refused", "not_finite")
    after = dict(trainer.learner.scorer.named_parameters())
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert phases.run(trainer, WARM_UP + 1, healthy, np.random.default_rng(1)).decision == "promoted"


def test_every_candidate_is_counted_once(phases: Phases) -> None:
    found, sound = trials(phases, {"nan": SPOILS["nan"], "healthy": healthy}, 2)
    summary = counts(found, sound)
    assert summary["nan"]["candidates"] == summary["nan"]["refused"] == 2
    assert summary["nan"]["why"] == {"not_finite": 2}
    assert summary["healthy"]["candidates"] >= 3 + 2  # each phase's, and each after a refusal
    unspoiled = [trial for trial in found if trial.kind == "healthy"]
    assert [trial.next_beside for trial in unspoiled] == [1.0, 1.0], "a copy learns what its original learns"


def test_too_short_a_stream_is_refused(phases: Phases) -> None:
    with pytest.raises(ValueError, match="phases"):
        trials(phases, {}, 9)
