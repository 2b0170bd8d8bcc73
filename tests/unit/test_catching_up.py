"""Replay falls while events wait in Kafka, and comes back; history from before the first catching up is not hurried."""

from __future__ import annotations

import math
import time
from functools import partial
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from models.spec import ModelSpec
from service.arrivals import Arrival, ClosedPhase, Offsets
from service.catching_up import CAUGHT_UP, Hurry, hurry
from service.config import Config
from service.engine import Engine
from service.metrics import Metrics
from service.phase import run_phase
from service.state_dir import StateDirectory
from streams.events import Interaction

EVENTS = 60
START = 1_700_000_000.0


@pytest.mark.parametrize(("waiting", "ratio"), [(0, 2.0), (4_000, 2.0), (8_000, 1.0), (80_000, 0.1)])
def test_the_ratio_falls_in_proportion_to_what_waits_beyond_patience(waiting: int, ratio: float) -> None:
    found = hurry(2.0, patience=4.0, waiting=waiting, events=1_000, caught_up=True)
    assert found.replay_ratio == pytest.approx(ratio)
    assert found.caught_up


def test_a_first_backlog_is_learned_in_full_until_it_is_worked_off() -> None:
    caught_up = False
    ratios = []
    for waiting in (20_000, 10_000, 3_000, 10_000, 0):
        pace = hurry(2.0, patience=4.0, waiting=waiting, events=1_000, caught_up=caught_up)
        caught_up = pace.caught_up
        ratios.append(round(pace.replay_ratio, 3))
    assert ratios == [2.0, 2.0, 2.0, 0.8, 2.0]


def test_where_nobody_knows_what_waits_nothing_is_decided() -> None:
    assert hurry(2.0, patience=4.0, waiting=None, events=10, caught_up=False) == Hurry(2.0, False)
    assert hurry(2.0, patience=4.0, waiting=None, events=10, caught_up=True) == Hurry(2.0, True)


def test_without_patience_set_it_never_falls() -> None:
    assert hurry(2.0, patience=float("inf"), waiting=10**9, events=1, caught_up=True).replay_ratio == 2.0


def test_a_daemons_phases_replay_less_while_it_is_behind_and_say_so(tmp_path: Path) -> None:
    config = Config(namespace="hurry", state_dir=tmp_path / "state", model=ModelSpec(dim=4, history=3))
    found = []
    with StateDirectory.open(config.state_dir, config.namespace) as state:
        metrics = Metrics(CollectorRegistry())
        engine = Engine(config=config, state=state, metrics=metrics, clock=time.time)
        for number, waiting in enumerate((20 * EVENTS, 0, 8 * EVENTS, 0)):
            engine.waiting = partial(waits, waiting)
            line = run_phase(phase(number), engine)
            new, replayed = line.metrics["learn_new"], line.metrics["learn_replayed"]
            assert new is not None
            assert replayed is not None
            figures = (metrics.replay_ratio, metrics.waiting_events)
            found.append([line.metrics[CAUGHT_UP], *(gauge._value.get() for gauge in figures), replayed > new])
    assert found == [
        [0.0, 2.0, 20 * EVENTS, False],  # there is nothing to replay yet
        [1.0, 2.0, 0, True],
        [1.0, 1.0, 8 * EVENTS, False],
        [1.0, 2.0, 0, True],
    ]


def waits(count: int, _: Offsets) -> int:
    return count


def phase(number: int) -> ClosedPhase:
    first = number * EVENTS
    events = [
        Interaction(user_id=f"u{n % 7}", item_id=f"i{n}", action="view", value=math.nan, time=START + n, event_id=None)
        for n in range(first, first + EVENTS)
    ]
    return ClosedPhase(
        start={"interactions": {0: first}},
        end={"interactions": {0: first + EVENTS}},
        interactions=[Arrival("interactions", 0, first + n, 0.0, event) for n, event in enumerate(events)],
        opened_at=0.0,
        closed_at=0.0,
        closed_by="count",
    )
