"""Who and what nothing has happened to for long is forgotten, and is in no version after that."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from models.memory import EventBatch, Memory
from models.spec import ModelSpec
from service.arrivals import Arrival, ClosedPhase
from service.config import Config
from service.config_tables import EventsConfig
from service.engine import Engine
from service.expiry import DAY_S, Expired, expire
from service.metrics import Metrics
from service.phase import run_phase
from service.state_dir import StateDirectory
from streams.events import Interaction

START = 1_700_000_000.0


def known(days: dict[str, float]) -> Memory:
    """Users `u…` and items `i…` with one event each, so many days after the start."""
    memory = Memory(ModelSpec(modalities={"text": 2}), {})
    memory.announce("i-announced-late", START + 9 * DAY_S, {"text": np.ones(2, np.float32)})
    memory.announce("i-announced-early", START, {"text": np.ones(2, np.float32)})
    memory.enrol("u-features-alone", START, {})
    names = sorted(days, key=days.__getitem__)
    times = np.array([START + days[one] * DAY_S for one in names])
    nan = np.full(len(names), np.nan, np.float32)
    memory.append(EventBatch([f"u{n}" for n in names], [f"i{n}" for n in names], ["view"] * len(names), nan, times))
    return memory


def test_only_what_has_been_idle_for_longer_is_forgotten() -> None:
    memory = known({"-old": 0.0, "-lately": 8.0, "-now": 10.0})
    found = expire(memory, EventsConfig(expire_items_days=5, expire_users_days=5))
    assert found == Expired(items=2, users=1)
    assert [one for one in memory.items.ids if one] == ["i-announced-late", "i-lately", "i-now"]
    assert [one for one in memory.users.ids if one] == ["u-features-alone", "u-lately", "u-now"]
    assert expire(memory, EventsConfig(expire_items_days=5, expire_users_days=5)) == Expired()


@pytest.mark.parametrize("days", [{"expire_items_days": 5.0}, {"expire_users_days": 5.0}, {}])
def test_each_kind_expires_by_its_own_setting_and_none_without(days: dict[str, float]) -> None:
    memory = known({"-old": 0.0, "-now": 10.0})
    found = expire(memory, EventsConfig(**days))  # type: ignore[arg-type]
    assert (found.items > 0) == ("expire_items_days" in days)
    assert (found.users > 0) == ("expire_users_days" in days)


def test_what_expired_is_in_no_later_version_nor_after_a_restart(tmp_path: Path) -> None:
    config = Config(
        namespace="expiry", state_dir=tmp_path / "state", model=ModelSpec(dim=4, history=3),
        events=EventsConfig(expire_items_days=5, expire_users_days=5),
    )  # fmt: skip
    with StateDirectory.open(config.state_dir, config.namespace) as state:
        metrics = Metrics(CollectorRegistry())
        engine = Engine(config=config, state=state, metrics=metrics, clock=time.time)
        run_phase(phase(0, day=0, ids=range(20)), engine)
        assert len(engine.parent_snapshot.item_ids) == 20
        run_phase(phase(1, day=10, ids=range(10, 30)), engine)
        assert metrics.expired.labels(kind="items")._value.get() == 10
        assert metrics.expired.labels(kind="users")._value.get() == 10
        left = engine.parent_snapshot.item_ids
        assert left == [f"i{n}" for n in range(10, 30)]
    with StateDirectory.open(config.state_dir, config.namespace) as state:
        again = Engine(config=config, state=state, metrics=Metrics(CollectorRegistry()), clock=time.time)
        assert again.parent_snapshot.item_ids == left
        assert again.parent_snapshot.user_ids() == [f"u{n}" for n in range(10, 30)]


def phase(number: int, *, day: float, ids: range) -> ClosedPhase:
    first, at = 20 * number, START + day * DAY_S
    events = [
        Interaction(user_id=f"u{n}", item_id=f"i{n}", action="view", value=math.nan, time=at + n, event_id=None)
        for n in ids
    ]
    return ClosedPhase(
        start={"interactions": {0: first}},
        end={"interactions": {0: first + len(ids)}},
        interactions=[Arrival("interactions", 0, first + n, 0.0, event) for n, event in enumerate(events)],
        opened_at=0.0,
        closed_at=0.0,
        closed_by="count",
    )
