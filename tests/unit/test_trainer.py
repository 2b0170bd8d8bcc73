"""A refusal takes the candidate's weights back, and nothing else: the events happened, and each is new exactly once."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.beside import at_once, during
from models.memory import EventBatch
from models.spec import ModelSpec, TrainSpec
from service.config import Config
from service.promotion import Verdict
from service.side_thread import side_thread
from service.trainer import Attempt, Trainer


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(
        namespace="test", state_dir=tmp_path, model=ModelSpec(dim=4, history=3), train=TrainSpec(batch=16, threads=1)
    )


@pytest.fixture
def trainer(config: Config) -> Trainer:
    return Trainer.fresh(config)


def phase(trainer: Trainer, number: int, events: int = 50, *, threads: int = 1) -> Attempt:
    rng = np.random.default_rng(number)
    start = 1e9 + number * 1000
    batch = EventBatch(
        [f"u{n}" for n in rng.integers(0, 20, events)],
        [f"i{n}" for n in rng.integers(0, 40, events)],
        ["view"] * events,
        np.full(events, np.nan, np.float32),
        start + np.arange(events, dtype=np.float64),
    )
    return trainer.learn(trainer.memory.append(batch), replay_ratio=1.0, threads=threads)


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    scorer: dict[str, torch.Tensor] = trainer.state_dict()["learner"]["scorer"]
    return scorer


def refuse(trainer: Trainer, monkeypatch: pytest.MonkeyPatch, slug: str) -> None:
    def verdict(*_: Any, **__: Any) -> Verdict:
        return Verdict(decision="refused", slug=slug, reason="for the test")

    monkeypatch.setattr(type(trainer._gate), "judge", verdict)


def test_each_event_is_new_exactly_once_whatever_was_refused(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    learned: list[int] = []
    for number in range(4):
        attempt = phase(trainer, number)
        learned += attempt.learned
        if number == 1:
            with monkeypatch.context() as patch:
                refuse(trainer, patch, "worse")
                trainer.judge(attempt)
        else:
            trainer.judge(attempt)
    assert learned == list(range(190))
    assert list(attempt.held_out) == list(range(190, 200))


def test_a_refusal_gives_the_parents_weights_back_and_still_counts_the_events(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer.judge(phase(trainer, 0))
    before = weights(trainer)
    attempt = phase(trainer, 1)
    assert any(not torch.equal(before[name], value) for name, value in weights(trainer).items())
    refuse(trainer, monkeypatch, "worse")
    trainer.judge(attempt)
    assert all(torch.equal(before[name], value) for name, value in weights(trainer).items())
    assert trainer.learner.popularity.position == attempt.learned.stop
    assert (trainer.memory.view().weight > 0).all()


def test_poison_is_never_learned_again(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer.judge(phase(trainer, 0))
    attempt = phase(trainer, 1)
    refuse(trainer, monkeypatch, "not_finite")
    trainer.judge(attempt)
    silent = np.flatnonzero(trainer.memory.view().weight == 0)
    assert silent.tolist() == list(attempt.learned)


def test_weights_that_are_not_finite_are_refused(trainer: Trainer) -> None:
    trainer.judge(phase(trainer, 0))
    with torch.no_grad():
        next(iter(trainer.learner.scorer.parameters())).fill_(float("nan"))
    verdict = trainer.judge(phase(trainer, 1))
    assert verdict is not None
    assert (verdict.decision, verdict.slug) == ("refused", "not_finite")


@pytest.mark.parametrize(("threads", "items"), [(1, 256), (2, 8)])
def test_a_second_thread_changes_nothing_but_the_time_it_takes(
    config: Config, monkeypatch: pytest.MonkeyPatch, threads: int, items: int
) -> None:
    monkeypatch.setattr("models.ranking_objective.CALIBRATION_SAMPLE", items)
    monkeypatch.setattr("service.side_thread.os.cpu_count", lambda: 2)
    both = Trainer.fresh(config)
    monkeypatch.setattr("service.side_thread.os.cpu_count", lambda: 1)
    alone = Trainer.fresh(config)
    assert (alone._beside is at_once, both._beside is at_once) == (True, False)
    for number in range(4):
        verdicts = []
        for one in (both, alone):
            verdicts.append(one.judge(phase(one, number, threads=threads)))
            one.crown(one.snapshot(version=1))
            one.snapshot(version=number)
        assert repr(verdicts[0]) == repr(verdicts[1])  # NaN is no NaN, and its figures may be
    assert all(torch.equal(value, weights(alone)[name]) for name, value in weights(both).items())
    assert bool(alone.learner.calibration.evidence.any())
    assert torch.equal(both.learner.calibration.evidence, alone.learner.calibration.evidence)


def test_what_breaks_in_the_second_thread_breaks_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.side_thread.os.cpu_count", lambda: 2)
    beside = side_thread()
    name, broken = beside(lambda: threading.current_thread().name), beside(lambda: 1 // 0)
    assert name() == "beside"
    with pytest.raises(ZeroDivisionError):
        broken()


def test_nothing_is_left_running_by_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.side_thread.os.cpu_count", lambda: 2)
    begun, go_on, done = threading.Event(), threading.Event(), []

    def work() -> None:
        begun.set()
        go_on.wait(10)
        done.append(True)
        raise ValueError("later")

    def fail() -> None:
        with during(side_thread(), work):
            begun.wait(10)
            threading.Timer(0.05, go_on.set).start()
            raise KeyError("first")

    with pytest.raises(KeyError, match="first"):
        fail()
    assert done


def test_the_second_thread_ends_with_what_it_is_for_and_keeps_no_interpreter_alive() -> None:
    script = """
import os, threading, time
os.cpu_count = lambda: 2
from service.side_thread import side_thread
beside = side_thread()
thread = next(one for one in threading.enumerate() if one.name == "beside")
beside(lambda: None)()
del beside
thread.join(10)
assert not thread.is_alive()
side_thread()(lambda: time.sleep(600))
"""
    assert subprocess.run([sys.executable, "-c", script], timeout=60, check=False).returncode == 0


def test_a_restored_trainer_goes_on_to_the_same_weights(trainer: Trainer) -> None:
    trainer.judge(phase(trainer, 0))
    again = Trainer.restore(trainer._config, trainer.state_dict(), _chunks(trainer), None)
    for one in (trainer, again):
        one.judge(phase(one, 1))
    assert all(torch.equal(value, weights(again)[name]) for name, value in weights(trainer).items())


def _chunks(trainer: Trainer) -> dict[str, list[bytes]]:
    return {name: [chunk] for name, chunk in trainer.memory.drain().items()}


def test_what_is_learned_is_judged_without_what_is_counted(trainer: Trainer) -> None:
    trainer.crown(trainer.snapshot(version=1))
    phase(trainer, 0, events=400)
    attempt = phase(trainer, 1, events=400)
    window = trainer._window(attempt)
    trainer.learner.cooccurrence.values.normal_()
    trainer.learner.factors.mean.normal_()
    trainer.learner.calibration.mean.uniform_(-1, 2)
    garbled = trainer._window(attempt)
    assert not np.array_equal(garbled.candidate, window.candidate)
    assert window.learned is not None
    assert garbled.learned is not None
    for before, after in zip(window.learned, garbled.learned, strict=True):
        assert len(before) == len(window.candidate) > 0
        assert np.array_equal(before, after)
