"""Scales on the fly are served on by what was learned on from a version, and by nothing that is a step back from it."""

from __future__ import annotations

from pathlib import Path

from service.interventions import rollback
from service.live import Live
from service.phase import run_phase
from tests.unit.test_catching_up import phase
from tests.unit.test_shadow import config_of, learn, opened


def pretend_that_tastes_turned(live: Live) -> None:
    """Scales on the fly are served from now on."""
    assert live.current is not None
    assert live.current.overlay._live is not None
    live.current.overlay._live._comparison.moved = True
    assert live.recalibrated


def test_a_phase_that_promotes_what_was_learned_on_serves_them_on(tmp_path: Path) -> None:
    config = config_of(tmp_path, None)
    with opened(config) as (engine, _):
        for number in range(2):
            assert run_phase(phase(number), engine).decision == "promoted"
        assert engine.served.publisher is not None
        live = engine.served.publisher.live
        assert not live.recalibrated
        pretend_that_tastes_turned(live)
        assert live.current is not None
        before = live.current
        assert run_phase(phase(2), engine).decision == "promoted"
        assert live.current is not before
        assert live.recalibrated


def test_a_step_back_goes_back_to_what_that_version_was(tmp_path: Path) -> None:
    config = config_of(tmp_path, None)
    learn(tmp_path, config, last=180)
    with opened(config) as (engine, _):
        champion = engine.store.champion()
        assert champion is not None
        engine.publish_champion(champion)
        assert engine.served.publisher is not None
        live = engine.served.publisher.live
        pretend_that_tastes_turned(live)
        said = rollback(engine, to=1, relearn=False, dry_run=False)
        assert live.current is not None
        assert live.current.version == said["version"]
        assert not live.recalibrated
