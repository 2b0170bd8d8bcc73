"""The version that is due is served again, learned from and not held; the floor then begins anew."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from service.engine import Engine
from service.interventions import roll_back_below_floor
from service.state_dir import StateDirectory
from tests.unit.test_model_changes import TEXT, config_of, learn, open_engine


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """Four versions, each promoted."""
    learn(tmp_path, TEXT, last=200)
    config = config_of(tmp_path, TEXT)
    with StateDirectory.open(config.state_dir, config.namespace) as state:
        yield open_engine(state, tmp_path, TEXT)


def bias(engine: Engine, version: int) -> torch.Tensor:
    found: torch.Tensor = engine.trainer_state(version)["learner"]["bias"]["values"]
    return found


def test_nothing_happens_while_none_is_due(engine: Engine) -> None:
    versions = engine.store.numbers()
    roll_back_below_floor(engine)
    assert engine.store.numbers() == versions


def test_the_one_that_is_due_is_served_and_learned_from(engine: Engine) -> None:
    latest, offsets = engine.store.latest(), engine.offsets
    assert latest is not None
    engine.trainer.floor.due = 2
    roll_back_below_floor(engine)
    new = engine.store.champion()
    assert new == engine.store.latest() == engine.parent
    assert new is not None
    assert new > latest
    manifest = engine.store.manifest(new)
    assert (manifest.weights_of, manifest.rolled_back, manifest.offsets) == (2, True, offsets)
    assert "decayed popularity" in manifest.reason
    assert torch.equal(bias(engine, new), bias(engine, 2))
    assert not torch.equal(bias(engine, new), bias(engine, latest))
    assert not engine.held
    assert engine.trainer.floor.state_dict()["due"] is None
    assert engine.metrics.registry.get_sample_value("headwater_floor_rollbacks_total") == 1
    # What was taken back is not gone back to.
    assert engine.store.served_before(new) == [1]
    roll_back_below_floor(engine)
    assert engine.store.champion() == new, "once"


def test_it_is_still_due_after_a_restart_and_a_hold_keeps_it_back(engine: Engine) -> None:
    engine.trainer.floor.due = 2
    state = engine.trainer.state_dict()
    engine.trainer.floor.clear()
    engine.trainer.load_state_dict(state)
    assert engine.trainer.floor.due == 2
    engine.hold.set("paused by hand")
    champion = engine.store.champion()
    roll_back_below_floor(engine)
    assert engine.store.champion() == champion
    engine.hold.release()
    roll_back_below_floor(engine)
    assert engine.store.champion() != champion
