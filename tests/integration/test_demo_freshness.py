"""Freshness as `headwater demo` measures it: from outside, by what readers find."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.demo_probes import Freshness, Picker, Served, Watch
from streams.embedded import EmbeddedRedis
from streams.memory_sink import MemorySink, MemoryStore
from streams.publisher import RedisSink
from streams.redis_keys import Pointer
from streams.simulator_messages import Message


class Clock:
    """Time that passes when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def pointer(version: int, epoch: int) -> Pointer:
    return Pointer(
        version=version,
        epoch=epoch,
        dim=2,
        buckets=4,
        items=0,
        users=0,
        default_user=bytes(8),
        published_at="2026-01-01T00:00:00Z",
    )


@pytest.fixture
def sink() -> MemorySink:
    sink = MemorySink(MemoryStore(), namespace="demo", buckets=4)
    sink.write(1, "users", ["u1"], np.ones((1, 2), np.float32))
    sink.flip(pointer(1, sink.claim()))
    return sink


def test_an_event_is_fresh_once_what_it_tells_is_served(sink: MemorySink) -> None:
    clock = Clock()
    watch = Watch(sink, clock=clock, wall_clock=clock)
    watch.send("item", "i1")
    watch.send("new_user", "u2")
    watch.send("user", "u1")
    clock.now += 0.25
    watch.look()
    assert watch.found.served == []
    sink.write(1, "items", ["i1"], np.ones((1, 2), np.float32))
    sink.write(1, "users", ["u1"], np.zeros((1, 2), np.float32))
    clock.now += 0.25
    watch.look()
    assert [(one.kind, one.seconds) for one in watch.found.served] == [("item", 0.5), ("user", 0.5)]
    assert watch.waiting() == 1
    watch.stop()
    assert [probe.id for probe in watch.found.missed] == ["u2"]
    assert watch.found.percentile(50, "new_user") == math.inf


def test_a_flip_leaves_returning_users_undecided_and_new_ones_not(sink: MemorySink) -> None:
    clock = Clock()
    watch = Watch(sink, clock=clock, wall_clock=clock)
    watch.send("user", "u1")
    watch.send("new_user", "u2")
    sink.write(2, "users", ["u1", "u2"], np.zeros((2, 2), np.float32))
    sink.flip(pointer(2, sink.claim()))
    clock.now += 1
    watch.look()
    assert watch.found.set_aside == 1
    assert [(one.id, one.across_flip) for one in watch.found.served] == [("u2", True)]


def test_what_cannot_prove_anything_is_not_watched(sink: MemorySink) -> None:
    nothing_served = Watch(MemorySink(MemoryStore(), namespace="demo"))
    nothing_served.send("item", "i1")
    watch = Watch(sink)
    watch.send("new_user", "u1")  # there already
    watch.send("user", "u9")  # not there
    assert nothing_served.waiting() == watch.waiting() == 0


def test_a_probe_is_given_up_after_the_patience(sink: MemorySink) -> None:
    clock = Clock()
    watch = Watch(sink, clock=clock, wall_clock=clock, patience_s=3.0)
    watch.send("item", "i1")
    clock.now += 3.1
    watch.look()
    assert [probe.id for probe in watch.found.missed] == ["i1"]
    assert watch.waiting() == 0


def test_a_store_that_is_away_for_a_moment_is_no_failure(sink: MemorySink) -> None:
    watch = Watch(sink)
    watch.send("item", "i1")
    sink.store.available = False
    watch.send("item", "i2")
    watch.look()
    assert watch.waiting() == 1


def test_percentiles_are_values_that_occurred() -> None:
    served = [Served(kind="item", id="", sent_at=at, seconds=at / 10, across_flip=False) for at in range(1, 101)]
    found = Freshness(served=served)
    assert found.percentile(50, "item") == 5.0
    assert found.percentile(99, "item") == 9.9
    assert math.isnan(found.percentile(50, "user"))
    assert found.during([(1.0, 10.0), (5.0, 12.0)], "item") == 12


@pytest.mark.servers
def test_freshness_is_what_a_real_redis_shows(tmp_path: Path) -> None:
    with EmbeddedRedis(directory=tmp_path) as redis, RedisSink(redis.address, namespace="demo", buckets=4) as real:
        real.flip(pointer(1, real.claim()))
        watch = Watch(real)
        watch.start()
        begun, names = time.monotonic(), [f"i{at}" for at in range(20)]
        for name in names:
            watch.send("item", name)
            real.write(1, "items", [name], np.ones((1, 2), np.float32))
        deadline = time.monotonic() + 20
        while watch.waiting() and time.monotonic() < deadline:
            time.sleep(0.01)
        watch.stop()
        assert watch.found.missed == []
        assert sorted(one.id for one in watch.found.served) == sorted(names)
        assert 0 < max(watch.found.seconds("item")) < time.monotonic() - begun


def test_only_new_and_quiet_users_are_probes() -> None:
    picked: list[tuple[str, str]] = []

    class Watched(Watch):
        def send(self, kind: Any, id_: str) -> None:
            picked.append((kind, id_))

    picker = Picker(
        Watched(MemorySink(MemoryStore(), namespace="demo")), quiet=5, every=10, plain=lambda user: user != "u3"
    )

    def event(user: str, number: int, *, live: bool = True) -> None:
        picker(Message("interactions", user.encode(), b"", 0.0, number), live=live)

    event("u1", 0, live=False)
    event("u1", 4)  # back too soon
    event("u2", 5)
    event("u3", 6)  # has features, whose event might be what is served
    picker(Message("items", b"i7", b"", 0.0, 7), live=True)
    picker(Message("items", b"i6", b"", 0.0, 7), live=False)
    event("u1", 12)
    event("u2", 13)  # one such probe in ten events is enough
    assert picked == [("new_user", "u2"), ("item", "i7"), ("user", "u1")]
