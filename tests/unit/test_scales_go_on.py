"""Scales on the fly are served on by what was learned on from a version, and by nothing that is a step back from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.engine import Engine
from service.interventions import rollback
from service.live import Live
from tests.unit.test_shadow import config_of, learn, opened


def with_scales_on_the_fly(engine: Engine) -> Live:
    """What is served, as after tastes have turned."""
    champion = engine.store.champion()
    assert champion is not None
    engine.publish_champion(champion)
    assert engine.served.publisher is not None
    live = engine.served.publisher.live
    assert live.current is not None
    assert live.current.overlay._live is not None
    live.current.overlay._live._comparison.moved = True
    assert live.recalibrated
    return live


@pytest.mark.parametrize("goes_on", [True, False])
def test_a_version_that_goes_on_serves_them_on(tmp_path: Path, goes_on: bool) -> None:
    config = config_of(tmp_path, None)
    learn(tmp_path, config, last=180)
    with opened(config) as (engine, _):
        live = with_scales_on_the_fly(engine)
        publisher = engine.served.publisher
        assert publisher is not None
        publisher.publish(
            engine.trainer.snapshot(version=9), learned=engine.offsets, event_time=None, champion=False, goes_on=goes_on
        )
        assert live.current is not None
        assert live.current.version == 9
        assert live.recalibrated == goes_on


def test_a_step_back_goes_back_to_what_that_version_was(tmp_path: Path) -> None:
    config = config_of(tmp_path, None)
    learn(tmp_path, config, last=180)
    with opened(config) as (engine, _):
        live = with_scales_on_the_fly(engine)
        said = rollback(engine, to=1, relearn=False, dry_run=False)
        assert live.current is not None
        assert live.current.version == said["version"]
        assert not live.recalibrated
