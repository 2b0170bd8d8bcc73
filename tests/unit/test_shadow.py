"""The shadow: it learns what the main learner learns, beside it and never in its way; it comes back after a restart as
it was, and is served when somebody says so."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from prometheus_client import CollectorRegistry

from models.spec import ModelSpec, TrainSpec
from service.checkpoints import CheckpointStore
from service.config import Config, ShadowConfig, load_config
from service.config_tables import EvaluateConfig, PhaseConfig, PromotionConfig
from service.engine import Engine
from service.errors import CommandRefused, ConfigError, StateError
from service.interventions import carry_out
from service.live import Live
from service.metrics import Metrics
from service.phase_log import read_phase_lines
from service.promotion import compare
from service.publication import Publisher
from service.replay import replay
from service.state_dir import StateDirectory
from service.trainer import Trainer
from streams.memory_sink import MemorySink, MemoryStore
from tests.unit.test_learner import assert_same
from tests.unit.test_trainer import _chunks, phase, refuse

OTHER_TRAINING = ShadowConfig(train={"learning_rate": 1e-2, "replay_ratio": 3.0})
OTHER_MODEL = ShadowConfig(model={"fusion": "sum", "dim": 6})


def config_of(directory: Path, shadow: ShadowConfig | None = OTHER_TRAINING) -> Config:
    return Config(
        namespace="test",
        state_dir=directory / "state",
        model=ModelSpec(dim=4, history=3, modalities={"text": 2}),
        train=TrainSpec(batch=16, threads=1, replay_ratio=1.0),
        phase=PhaseConfig(max_events=60),
        evaluate=EvaluateConfig(max_per_phase=20),
        promotion=PromotionConfig(tolerance=0.99, min_events=1_000_000),
        shadow=shadow or ShadowConfig(),
    )


def shadow_state(trainer: Trainer) -> dict[str, Any]:
    state: dict[str, Any] = trainer.state_dict()["shadow"]
    return state


# Learning


def test_without_one_nothing_of_it_is_there(tmp_path: Path) -> None:
    trainer = Trainer.fresh(config_of(tmp_path, shadow=None))
    attempt = phase(trainer, 0)
    trainer.judge(attempt)
    assert trainer.shadow is None
    assert "shadow" not in trainer.state_dict()
    assert not any("shadow" in name for name in attempt.metrics)


@pytest.mark.parametrize("shadow", [OTHER_TRAINING, OTHER_MODEL])
def test_the_main_learner_does_not_notice_it(tmp_path: Path, shadow: ShadowConfig) -> None:
    alone, beside = (Trainer.fresh(config_of(tmp_path, one)) for one in (None, shadow))
    for trainer in (alone, beside):
        for number in range(3):
            trainer.judge(phase(trainer, number))
    assert_same(alone.learner.state_dict(), beside.learner.state_dict())
    assert beside.shadow is not None
    assert beside.shadow.learner.steps > alone.learner.steps / 2


def test_with_nothing_otherwise_it_is_the_main_learner(tmp_path: Path) -> None:
    """The same events, each new once; so what it has otherwise is all that sets the two apart."""
    trainer = Trainer.fresh(config_of(tmp_path, ShadowConfig(train={"batch": 16})))
    for number in range(3):
        attempt = phase(trainer, number)
        trainer.judge(attempt)
        assert_same(trainer.learner.state_dict(), shadow_state(trainer)["learner"])
        trainer.crown(trainer.snapshot(version=1))
    assert attempt.metrics["shadow_score"] > 0
    assert attempt.metrics["shadow_candidate_change"] == 0.0
    assert attempt.metrics["shadow_champion_change"] != 0.0


@pytest.mark.parametrize("shadow", [OTHER_TRAINING, OTHER_MODEL])
def test_a_restored_shadow_goes_on_to_the_same_weights(tmp_path: Path, shadow: ShadowConfig) -> None:
    config = config_of(tmp_path, shadow)
    whole = Trainer.fresh(config)
    for number in range(2):
        whole.judge(phase(whole, number))
        whole.crown(whole.snapshot(version=1))
    again = Trainer.restore(config, whole.state_dict(), _chunks(whole), whole.state_dict())
    assert_same(whole.state_dict(), again.state_dict())
    attempts = [phase(one, 2) for one in (whole, again)]
    for one, attempt in zip((whole, again), attempts, strict=True):
        one.judge(attempt)
    assert_same(whole.state_dict(), again.state_dict())
    assert attempts[0].metrics == attempts[1].metrics
    assert "shadow_champion_change" in attempts[0].metrics


def test_it_begins_where_the_main_learner_is_with_its_own_settings(tmp_path: Path) -> None:
    trainer = Trainer.fresh(config_of(tmp_path, shadow=None))
    trainer.judge(phase(trainer, 0))
    chunks = _chunks(trainer)
    begun = Trainer.restore(config_of(tmp_path), trainer.state_dict(), chunks, None)
    state = shadow_state(begun)["learner"]
    assert_same(begun.learner.state_dict()["scorer"], state["scorer"])
    assert begun.shadow is not None
    assert begun.shadow.learner.optimizer.param_groups[-1]["lr"] == 1e-2, "of the state's optimizer only the moments"
    assert begun.learner.optimizer.param_groups[-1]["lr"] == config_of(tmp_path).train.learning_rate
    other = Trainer.restore(config_of(tmp_path, OTHER_MODEL), begun.state_dict(), chunks, None)
    assert shadow_state(other)["learner"]["steps"] == 0, "another [model] has nothing to begin with"
    other.judge(phase(other, 1))
    assert other.shadow is not None
    assert len(other.shadow.learner.popularity) == len(other.memory.items), "but it knows what happened"


# Judging


def test_a_refusal_of_the_candidate_is_none_of_the_shadow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer.fresh(config_of(tmp_path))
    trainer.judge(phase(trainer, 0))
    main, shadow = trainer.learner.state_dict(), shadow_state(trainer)["learner"]
    attempt = phase(trainer, 1)
    refuse(trainer, monkeypatch, "worse")
    trainer.judge(attempt)
    assert_same(main["scorer"], trainer.learner.state_dict()["scorer"])
    assert shadow_state(trainer)["learner"]["steps"] > shadow["steps"]


def test_poison_is_taken_from_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer.fresh(config_of(tmp_path))
    trainer.judge(phase(trainer, 0))
    before = shadow_state(trainer)["learner"]
    attempt = phase(trainer, 1)
    refuse(trainer, monkeypatch, "not_finite")
    trainer.judge(attempt)
    after = shadow_state(trainer)["learner"]
    assert_same(before["scorer"], after["scorer"])
    assert after["popularity"]["position"] == attempt.learned.stop


def test_a_broken_shadow_goes_back_by_itself(tmp_path: Path) -> None:
    trainer = Trainer.fresh(config_of(tmp_path))
    trainer.judge(phase(trainer, 0))
    assert trainer.shadow is not None
    before = shadow_state(trainer)["learner"]
    attempt = phase(trainer, 1)
    trainer.shadow._finite = False
    with torch.no_grad():
        next(iter(trainer.shadow.learner.scorer.parameters())).fill_(float("nan"))
    verdict = trainer.judge(attempt)
    assert verdict is not None
    assert verdict.decision == "promoted"
    assert attempt.metrics["shadow_broken"] == 1.0
    assert_same(before["scorer"], shadow_state(trainer)["learner"]["scorer"])


def test_figures_are_paired_pooled_and_bounded() -> None:
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(50), 4)
    kept: Any = []
    for _ in range(4):
        reference = rng.random(200)
        figures, kept = compare(
            reference + 0.1 + 0.01 * rng.normal(size=200), reference, users, kept, windows=3, confidence=0.95
        )
    assert figures["events"] == 600
    assert len(kept) == 3
    assert figures["change"] == pytest.approx(0.2, abs=0.01)
    assert figures["low"] < figures["change"] < figures["high"] < figures["low"] + 0.02
    for broken in (np.full(200, np.nan), np.empty(0)):
        assert compare(broken, reference[: len(broken)], users[: len(broken)], kept, windows=3, confidence=0.95) == (
            {},
            kept,
        )


# Through phases, checkpoints and by hand


def learn(directory: Path, config: Config, *, last: int) -> None:
    rng = np.random.default_rng(0)
    start = 1_700_000_000
    rows: list[dict[str, Any]] = [
        {"item_id": f"i{item}", "time": start, "features": {"text": rng.normal(size=2).tolist()}} for item in range(11)
    ]
    rows += [
        {"user_id": f"u{n % 25}", "item_id": f"i{(n * 5 + n // 50) % 11}", "action": "view", "time": start + n}
        for n in range(last)
    ]
    path = directory / "events.jsonl"
    path.write_bytes(b"\n".join(map(msgspec.json.encode, rows)) + b"\n")
    assert replay(config, [path]) == 0


def latest_state(config: Config) -> dict[str, Any]:
    store = CheckpointStore(config.state_dir, keep_versions=9)
    state: dict[str, Any] = store.load(store.latest() or 0).state["trainer"]
    return state


@contextmanager
def opened(config: Config, *, adopt_shadow: bool = False) -> Iterator[tuple[Engine, MemorySink]]:
    """An engine that publishes into memory."""
    sink = MemorySink(MemoryStore(clock=time.time))
    with StateDirectory.open(config.state_dir, config.namespace) as state:
        engine = Engine(
            config=config, state=state, metrics=Metrics(CollectorRegistry()), clock=time.time, adopt_shadow=adopt_shadow
        )  # fmt: skip
        engine.served.publisher = Publisher(
            sink=sink, live=Live(), fast_path=None, store=engine.store, config=config.publish,
            metrics=engine.metrics, clock=time.time, writer=state.identity.state_id,
        )  # fmt: skip
        engine.served.publisher.claim()
        yield engine, sink


def test_phases_tell_of_it_and_a_restart_does_not_show(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for directory, ends in ((whole, [300]), (cut, [180, 300])):
        directory.mkdir()
        for last in ends:
            learn(directory, config_of(directory), last=last)
    assert_same(latest_state(config_of(whole)), latest_state(config_of(cut)))
    lines = [read_phase_lines(directory / "state" / "phases.jsonl") for directory in (whole, cut)]
    assert [line.metrics for line in lines[0]] == [line.metrics for line in lines[1]]
    assert "shadow_champion_change" in lines[0][2].metrics
    with opened(config_of(whole)) as (engine, _):
        manifest = engine.manifest
        assert manifest is not None
        assert manifest.spec["shadow"]["train"]["learning_rate"] == 1e-2
    # and it may go, leaving nothing behind
    learn(whole, config_of(whole, shadow=None), last=360)
    assert "shadow" not in latest_state(config_of(whole, shadow=None))


def test_promoted_by_hand_it_is_served_and_learned_on_from(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    learn(tmp_path, config, last=180)
    with opened(config) as (engine, sink):
        engine.hold.set("for the test")
        mine = shadow_state(engine.trainer)["learner"]
        before = engine.store.champion()
        said = carry_out(engine, "promote-shadow", {"dry_run": True})
        assert (said["from"], engine.store.champion(), sink.pointer()) == (before, before, None)
        said = carry_out(engine, "promote-shadow", {})
        pointer = sink.pointer()
        assert pointer is not None
        assert pointer.version == said["version"] == engine.store.champion() == engine.store.latest()
        assert not engine.hold.held
        now = engine.trainer.learner.state_dict()
        assert now["optimizer"]["param_groups"][-1]["lr"] == config.train.learning_rate
        for state in (now, mine):
            del state["optimizer"]["param_groups"]
        assert_same(now, mine)
        state = latest_state(config)
        assert_same(state["learner"]["scorer"], mine["scorer"])
        assert state["shadow"]["windows"] == {}
        # the way back is open
        back = carry_out(engine, "rollback", {})
        assert back["to"] == before
    learn(tmp_path, config, last=240)
    with opened(config) as (engine, _):
        manifest = engine.manifest
        assert manifest is not None
        assert manifest.parent == said["version"]


def test_one_of_another_model_is_promoted_once_the_configuration_says_so(tmp_path: Path) -> None:
    config = config_of(tmp_path, OTHER_MODEL)
    learn(tmp_path, config, last=180)
    learned = latest_state(config)["shadow"]["learner"]
    moved = config_of(tmp_path, shadow=None).model_copy(
        update={"model": ModelSpec(history=3, modalities={"text": 2}, **OTHER_MODEL.model)}
    )
    with pytest.raises(StateError, match=r"\[model\] dim is 6"), opened(moved):
        pass
    with opened(moved, adopt_shadow=True) as (engine, sink):
        before = engine.store.champion()
        said = carry_out(engine, "promote-shadow", {})
        pointer = sink.pointer()
        assert pointer is not None
        assert pointer.version == said["version"] == engine.store.champion() == engine.store.latest()
        assert (said["from"], "next" in said) == (before, False)
        assert_same(latest_state(moved)["learner"], learned)
        with pytest.raises(StateError, match="dim is 6"):
            carry_out(engine, "rollback", {"to": before})
    # from now on it is a state like any other, and there is nothing more to adopt
    learn(tmp_path, moved, last=240)
    with opened(moved, adopt_shadow=True) as (engine, _):
        assert not engine.adopted
        assert engine.trainer.learner.steps > learned["steps"]
        with pytest.raises(CommandRefused, match="no shadow"):
            carry_out(engine, "promote-shadow", {})


def test_a_model_that_neither_has_is_still_refused(tmp_path: Path) -> None:
    config = config_of(tmp_path, OTHER_MODEL)
    learn(tmp_path, config, last=60)
    neither = config.model_copy(update={"model": ModelSpec(dim=5, history=3, modalities={"text": 2})})
    with pytest.raises(StateError, match="dim is 5"), opened(neither, adopt_shadow=True):
        pass


@pytest.mark.parametrize(("shadow", "words"), [(None, "no shadow"), (OTHER_MODEL, r"\[model\] is another")])
def test_what_cannot_be_promoted_is_refused(tmp_path: Path, shadow: ShadowConfig | None, words: str) -> None:
    config = config_of(tmp_path, shadow)
    learn(tmp_path, config, last=60)
    with opened(config) as (engine, sink):
        with pytest.raises(CommandRefused, match=words):
            carry_out(engine, "promote-shadow", {})
        assert sink.pointer() is None


# Configuration


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[shadow.train]\nlearning_rat = 1.0", 'unknown key "learning_rat"; the nearest known one is "learning_rate"'),
        ("[shadow.train]\nbatch = 'many'", '"batch" must be a whole number, not "many"'),
        ("[shadow.train]\ndropout = 2.0", r'"dropout" in \[shadow.train\] must be at least 0'),
        ("[shadow.train]\nactions = {default = 2.0}", r'"actions" in \[shadow.train\] cannot differ'),
        ("[shadow.model]\nobjective = 'click'", r'"objective" in \[shadow.model\] cannot differ'),
        ("[shadow.model]\ndim = 0", r'"dim" in \[shadow.model\] must be at least 1'),
        ("[shadow]\nmodell = 1", 'unknown key "modell"'),
    ],
)
def test_its_keys_are_checked(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "headwater.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        load_config(path)


def test_its_keys_come_from_the_environment_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWATER__SHADOW__TRAIN__LEARNING_RATE", "0.5")
    trainer = Trainer.fresh(load_config(None))
    assert trainer.shadow is not None
    assert trainer.shadow.learner.train.learning_rate == 0.5
