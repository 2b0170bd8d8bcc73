"""What every store of vectors promises, held against the one in memory and each real server at hand."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from functools import partial

import msgspec
import numpy as np
import pytest

from streams.memory_sink import MemorySink, MemoryStore
from streams.publisher import RedisSink
from streams.redis_keys import Floats, Pointer, bucket_of, vector_bytes
from streams.sink_types import Fenced, SinkUnavailable
from tests.servers import new_redis, redis_kinds

Sink = RedisSink | MemorySink
MakeSink = Callable[..., Sink]

_numbers = itertools.count()


@pytest.fixture(scope="module", params=["memory", *redis_kinds()])
def server_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str | None]:
    if request.param == "memory":
        yield None
        return
    with new_redis(request.param, tmp_path_factory.mktemp("redis")) as server:
        yield server.address


@pytest.fixture
def make_sink(server_url: str | None) -> Iterator[MakeSink]:
    """Sinks of one namespace, as several daemons would hold them."""
    store, namespace, made = MemoryStore(), f"sink-{next(_numbers)}", list[Sink]()

    def make(*, buckets: int = 4) -> Sink:
        if server_url is None:
            made.append(MemorySink(store, namespace=namespace, buckets=buckets))
        else:
            made.append(RedisSink(server_url, namespace=namespace, buckets=buckets))
        return made[-1]

    yield make
    for sink in made:
        sink.close()


@pytest.fixture
def sink(make_sink: MakeSink) -> Sink:
    return make_sink()


def pointer_to(version: int, *, epoch: int, writer: str = "disk-a", buckets: int = 4, dim: int = 3) -> Pointer:
    return Pointer(
        version=version,
        epoch=epoch,
        dim=dim,
        buckets=buckets,
        items=0,
        users=0,
        default_user=vector_bytes(np.zeros(dim)),
        published_at="2026-01-02T03:04:05Z",
        writer=writer,
    )


def matrix(rows: int, *, dim: int = 3, start: float = 0.0) -> Floats:
    return (np.arange(rows * dim, dtype=np.float32) + np.float32(start)).reshape(rows, dim)


def test_what_is_written_is_read_back_byte_for_byte(sink: Sink) -> None:
    ids = [f"item-{n}" for n in range(1000)] + ["カフェ", "with blank", "{b1}", "a\nb"]
    vectors = matrix(len(ids))
    sink.write(1, "items", ids, vectors)
    assert sink.read(1, "items", [*ids, "unknown"]) == [*(row.tobytes() for row in vectors), None]
    assert sink.count(1, "items") == len(ids)
    assert sorted(sink.ids(1, "items")) == sorted(ids)


def test_versions_and_kinds_do_not_touch_each_other(sink: Sink) -> None:
    sink.write(1, "items", ["x"], matrix(1, start=1))
    sink.write(2, "items", ["x"], matrix(1, start=2))
    sink.write(1, "users", ["x", "y"], matrix(2, start=3))
    assert sink.read(1, "items", ["x"]) == [vector_bytes([1, 2, 3])]
    assert sink.read(2, "items", ["x"]) == [vector_bytes([2, 3, 4])]
    assert sink.read(1, "users", ["x"]) == [vector_bytes([3, 4, 5])]
    assert (sink.count(1, "items"), sink.count(1, "users"), sink.count(2, "users")) == (1, 2, 0)
    assert sink.versions() == {1, 2}


def test_a_later_write_replaces_and_the_last_of_a_repeated_id_wins(sink: Sink) -> None:
    sink.write(1, "items", ["x", "y"], matrix(2))
    sink.write(1, "items", ["x", "x"], matrix(2, start=10))
    assert sink.read(1, "items", ["x", "y"]) == [vector_bytes([13, 14, 15]), vector_bytes([3, 4, 5])]
    assert sink.count(1, "items") == 2


def test_other_layouts_of_the_same_numbers_give_the_same_bytes(sink: Sink) -> None:
    wide = np.arange(24, dtype=">f8").reshape(4, 6)[::2, ::2]
    sink.write(1, "items", ["x", "y"], wide)
    assert sink.read(1, "items", ["x", "y"]) == [vector_bytes([0, 2, 4]), vector_bytes([12, 14, 16])]


def test_nothing_is_a_fine_thing_to_write_read_or_delete(sink: Sink) -> None:
    sink.write(1, "items", [], np.empty((0, 3), np.float32))
    sink.delete(1, "items", [])
    sink.delete(1, "items", ["never there"])
    assert sink.read(1, "items", []) == []
    assert list(sink.ids(1, "items")) == []
    assert sink.versions() == set()


@pytest.mark.parametrize("bad", [np.zeros((2, 3)), np.zeros(3), np.zeros((1, 0)), np.array([[1.0, np.nan, 0.0]])])
def test_vectors_that_do_not_fit_are_refused_before_anything_is_written(sink: Sink, bad: Floats) -> None:
    with pytest.raises(ValueError, match=r"vectors"):
        sink.write(1, "items", ["x"], bad)
    assert sink.count(1, "items") == 0


def test_deleted_ids_are_gone_and_the_others_stay(sink: Sink) -> None:
    ids = [f"item-{n}" for n in range(50)]
    sink.write(1, "items", ids, matrix(50))
    sink.delete(1, "items", [*ids[:20], "unknown"])
    assert sorted(sink.ids(1, "items")) == sorted(ids[20:])


def test_each_bucket_counts_its_own_ids(sink: Sink) -> None:
    ids = [f"item-{n}" for n in range(50)]
    sink.write(1, "items", ids, matrix(50))
    counts = sink.bucket_counts(1, "items")
    buckets = sink.buckets_of(1)
    assert counts == [sum(bucket_of(one, buckets) == bucket for one in ids) for bucket in range(buckets)]
    assert sink.bucket_counts(2, "items") == [0] * buckets
    assert sink.count(1, "items") == 50


def test_the_head_is_kept_per_version(sink: Sink) -> None:
    assert sink.read_head(1) is None
    sink.write_head(1, b"HWHEAD1\0 one")
    sink.write_head(2, b"two")
    assert (sink.read_head(1), sink.read_head(2)) == (b"HWHEAD1\0 one", b"two")
    assert sink.versions() == {1, 2}


def test_a_flip_is_what_the_pointer_says_from_then_on(sink: Sink) -> None:
    assert sink.pointer() is None
    epoch = sink.claim()
    for version in (1, 2, 7):
        sink.flip(pointer_to(version, epoch=epoch))
        assert sink.pointer() == pointer_to(version, epoch=epoch)


def test_each_claim_is_larger_and_takes_the_pointer_from_the_former_owner(make_sink: MakeSink) -> None:
    first, second = make_sink(), make_sink()
    assert not first.still_mine()
    older = first.claim()
    first.flip(pointer_to(1, epoch=older))
    assert first.still_mine()
    newer = second.claim()
    assert newer > older
    assert (first.still_mine(), second.still_mine()) == (False, True)
    with pytest.raises(Fenced):
        first.flip(pointer_to(2, epoch=older))
    served = second.pointer()
    assert served == pointer_to(1, epoch=newer)  # the same version; only its owner changed
    second.flip(pointer_to(2, epoch=newer))


def test_a_version_never_goes_back_for_one_writer(sink: Sink) -> None:
    epoch = sink.claim()
    sink.flip(pointer_to(5, epoch=epoch))
    with pytest.raises(Fenced, match="version 5"):
        sink.flip(pointer_to(4, epoch=epoch))
    assert sink.pointer() == pointer_to(5, epoch=epoch)


def test_repeating_a_flip_does_no_harm_even_after_a_restart(make_sink: MakeSink) -> None:
    sink = make_sink()
    sink.flip(pointer_to(5, epoch=sink.claim()))
    sink.flip(pointer_to(5, epoch=sink.claim()))
    restarted = make_sink()
    again = msgspec.structs.replace(pointer_to(5, epoch=restarted.claim()), published_at="later", items=3)
    restarted.flip(again)
    assert restarted.pointer() == again


def test_another_state_directory_may_start_lower_but_not_write_over_the_served_version(make_sink: MakeSink) -> None:
    old, new = make_sink(), make_sink()
    old.flip(pointer_to(5, epoch=old.claim()))
    epoch = new.claim()
    with pytest.raises(Fenced, match="version 5"):
        new.flip(pointer_to(5, epoch=epoch, writer="disk-b"))
    new.flip(pointer_to(1, epoch=epoch, writer="disk-b"))
    assert new.pointer() == pointer_to(1, epoch=epoch, writer="disk-b")


def test_of_many_racing_claimants_the_last_one_owns_the_namespace(make_sink: MakeSink) -> None:
    sinks, epochs = [make_sink() for _ in range(4)], list[int]()

    def claim_often(sink: Sink) -> None:
        epochs.extend(sink.claim() for _ in range(10))

    threads = [threading.Thread(target=claim_often, args=(sink,)) for sink in sinks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(epochs)) == 40
    assert [sink.still_mine() for sink in sinks].count(True) == 1


def test_a_pointer_of_another_bucket_count_is_a_mistake(make_sink: MakeSink) -> None:
    sink = make_sink(buckets=4)
    with pytest.raises(ValueError, match="4 buckets"):
        sink.flip(pointer_to(1, epoch=sink.claim(), buckets=8))


def test_after_the_bucket_count_changed_the_served_version_is_still_written_where_it_is(make_sink: MakeSink) -> None:
    before, ids = make_sink(buckets=4), [f"item-{n}" for n in range(40)]
    before.write(1, "items", ids, matrix(40))
    before.flip(pointer_to(1, epoch=before.claim(), buckets=4))
    after = make_sink(buckets=16)
    epoch = after.claim()
    assert (after.buckets_of(1), after.buckets_of(2)) == (4, 16)
    after.write(1, "items", ids, matrix(40, start=1))
    after.write(2, "items", ids, matrix(40))
    assert (before.count(1, "items"), after.count(1, "items"), after.count(2, "items")) == (40, 40, 40)
    after.flip(pointer_to(2, epoch=epoch, buckets=16))
    after.expire(1, 0.0)
    assert after.versions() == {2}


def test_a_publication_cut_short_is_found_and_swept_whatever_its_buckets(make_sink: MakeSink) -> None:
    make_sink(buckets=16).write(3, "users", [f"user-{n}" for n in range(100)], matrix(100))
    sink = make_sink(buckets=4)
    assert sink.versions() == {3}
    sink.drop(3)
    assert sink.versions() == set()


def test_a_superseded_version_is_readable_within_its_grace_and_gone_after(sink: Sink) -> None:
    epoch = sink.claim()
    for version in (1, 2, 3):
        sink.write(version, "items", ["x", "y"], matrix(2))
        sink.write(version, "users", ["u"], matrix(1))
        sink.write_head(version, b"head")
        sink.flip(pointer_to(version, epoch=epoch))
    sink.expire(1, 3600)
    sink.expire(2, 0.0)
    assert (sink.count(1, "items"), sink.count(2, "items"), sink.count(2, "users")) == (2, 0, 0)
    assert (sink.read_head(1), sink.read_head(2)) == (b"head", None)
    sink.drop(1)
    assert sink.versions() == {3}
    assert (sink.count(1, "items"), sink.read_head(1)) == (0, None)


def test_the_served_version_can_neither_expire_nor_be_dropped(sink: Sink) -> None:
    sink.write(1, "items", ["x"], matrix(1))
    sink.flip(pointer_to(1, epoch=sink.claim()))
    with pytest.raises(ValueError, match="being served"):
        sink.drop(1)
    with pytest.raises(ValueError, match="being served"):
        sink.expire(1, 0.0)
    assert sink.count(1, "items") == 1


def test_ping_answers_while_the_store_is_there(sink: Sink) -> None:
    sink.ping()


def test_a_store_that_is_away_says_so_from_every_call(tmp_path_factory: pytest.TempPathFactory) -> None:
    memory = MemorySink()
    memory.store.available = False
    with new_redis("embedded", tmp_path_factory.mktemp("away")) as server:
        sinks: tuple[Sink, ...] = (memory, RedisSink(server.address))
    for sink in sinks:
        calls: list[Callable[[], object]] = [
            sink.ping,
            sink.claim,
            sink.pointer,
            sink.versions,
            partial(sink.flip, pointer_to(1, epoch=1, buckets=64)),
            partial(sink.write, 1, "items", ["x"], matrix(1)),
            partial(sink.delete, 1, "items", ["x"]),
            partial(sink.read, 1, "items", ["x"]),
            partial(sink.count, 1, "items"),
            partial(next, sink.ids(1, "items")),
            partial(sink.write_head, 1, b""),
            partial(sink.read_head, 1),
            partial(sink.expire, 1, 1.0),
            partial(sink.drop, 1),
        ]
        for call in calls:
            with pytest.raises(SinkUnavailable):
                call()
        sink.close()
