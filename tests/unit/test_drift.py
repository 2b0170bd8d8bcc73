"""What Redis loses of the served version is found and written again, and what was deleted on purpose is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from service.arrivals import Arrival
from service.live import Kind
from service.publication import Publisher
from streams.events import User
from streams.memory_sink import MemorySink
from streams.redis_keys import bucket_of
from tests.unit.test_publication import publisher, snapshot


@pytest.fixture
def serving(tmp_path: Path) -> Publisher:
    """Version 1, served from memory, and seen whole once."""
    mine = publisher(MemorySink(buckets=4), tmp_path, buckets=4)
    mine.publish(snapshot(1), learned={}, event_time=None, champion=False)
    assert mine.mend() is None
    return mine


def contents(mine: Publisher) -> dict[str, bytes | None]:
    found: dict[str, bytes | None] = {}
    kinds: tuple[Kind, ...] = ("items", "users")
    for kind in kinds:
        ids = sorted(mine.sink.ids(1, kind))
        found |= dict(zip(ids, mine.sink.read(1, kind, ids), strict=True))
    return found


def same(found: dict[str, bytes | None], wanted: dict[str, bytes | None]) -> bool:
    """To the last bits, which depend on how many users are computed together."""
    arrays = [[np.frombuffer(one or b"", "<f4") for one in side.values()] for side in (found, wanted)]
    return found.keys() == wanted.keys() and all(np.allclose(a, b, atol=1e-6) for a, b in zip(*arrays, strict=True))


def lose_bucket(mine: Publisher, kind: Kind, of: str) -> None:
    """As a key that was deleted by hand."""
    gone = [one for one in mine.sink.ids(1, kind) if bucket_of(one, 4) == bucket_of(of, 4)]
    assert gone
    mine.sink.delete(1, kind, gone)


def repairs(mine: Publisher, what: str) -> float | None:
    return mine.metrics.registry.get_sample_value("headwater_redis_repairs_total", {"what": what})


@pytest.mark.parametrize(("kind", "of"), [("items", "i1"), ("users", "u1")])
def test_a_bucket_that_vanished_is_written_again_as_it_was(serving: Publisher, kind: Kind, of: str) -> None:
    before = contents(serving)
    lose_bucket(serving, kind, of)
    said = serving.mend()
    assert said is not None
    assert f"{kind} again" in said
    assert same(contents(serving), before)
    assert repairs(serving, kind) == 1
    assert serving.mend() is None


def test_one_vector_is_missed_too(serving: Publisher) -> None:
    before = contents(serving)
    serving.sink.delete(1, "users", ["u2"])
    assert serving.mend() is not None
    assert same(contents(serving), before)


def test_what_is_lost_before_the_first_look_is_found_at_it(tmp_path: Path) -> None:
    mine = publisher(MemorySink(buckets=4), tmp_path, buckets=4)
    mine.publish(snapshot(1), learned={}, event_time=None, champion=False)
    lose_bucket(mine, "items", "i1")
    assert mine.mend() is not None
    assert set(contents(mine)) >= {f"i{n}" for n in range(5)}


def test_a_deletion_is_no_loss_and_is_not_undone_by_mending(serving: Publisher) -> None:
    current = serving.live.current
    assert current is not None
    with serving.live.lock:
        gone = Arrival("users", 0, 0, 0.0, User(user_id="u1", time=None, features={}, deleted=True))
        current.write(serving.sink, current.observe([gone]))
    assert serving.mend() is None
    lose_bucket(serving, "users", "u2")
    assert serving.mend() is not None
    assert "u1" not in contents(serving)
    assert "u2" in contents(serving)


def test_what_the_fast_path_wrote_since_is_what_comes_back(serving: Publisher) -> None:
    current = serving.live.current
    assert current is not None
    with serving.live.lock:
        current.touched.users["u1"] = None
        serving.sink.write(1, "users", ["new"], np.zeros((1, current.snapshot.dim), np.float32))
        current.touched.users["new"] = None
    assert serving.mend() is None
    lose_bucket(serving, "users", "new")
    assert serving.mend() is not None
    assert "new" in contents(serving)


def test_a_lost_pointer_is_set_again_with_all_it_said(serving: Publisher) -> None:
    assert isinstance(serving.sink, MemorySink)
    before = serving.sink.pointer()
    serving.sink.store.pointer = None
    said = serving.mend()
    assert said is not None
    assert "the pointer" in said
    assert serving.sink.pointer() == before
    assert repairs(serving, "pointer") == 1


def test_an_emptied_store_is_filled_before_the_pointer_is_set(serving: Publisher) -> None:
    assert isinstance(serving.sink, MemorySink)
    before, pointer = contents(serving), serving.sink.pointer()
    serving.sink.store.wipe()
    assert serving.mend() is not None
    assert same(contents(serving), before)
    assert serving.sink.pointer() == pointer


def test_the_pointer_that_is_set_again_is_of_todays_epoch(serving: Publisher) -> None:
    assert isinstance(serving.sink, MemorySink)
    serving.claim()
    serving.sink.store.pointer = None
    serving.mend()
    pointer = serving.sink.pointer()
    assert pointer is not None
    assert pointer.epoch == serving.epoch
