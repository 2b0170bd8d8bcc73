"""A Redis that says no, or nothing at all: one sentence and what to do, and work goes on once it is mended."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from streams.embedded import EmbeddedRedis
from streams.publisher import RedisSink
from streams.reader import Reader
from streams.redis_keys import Pointer, vector_bytes
from streams.sink_types import SinkError, SinkRefused, SinkUnavailable

PAGE = Path(__file__).parents[2] / "docs" / "redis.md"
ONE = np.ones((1, 3), np.float32)


def pointer_to(version: int, *, epoch: int) -> Pointer:
    return Pointer(
        version=version,
        epoch=epoch,
        dim=3,
        buckets=64,
        items=1,
        users=0,
        default_user=vector_bytes(np.zeros(3)),
        published_at="2026-01-02T03:04:05Z",
        writer="disk-a",
    )


@pytest.fixture
def admin(own_redis: EmbeddedRedis) -> Iterator[Any]:
    with redis.Redis.from_url(own_redis.address) as client:
        yield client


@pytest.fixture
def sink(own_redis: EmbeddedRedis) -> Iterator[RedisSink]:
    with RedisSink(own_redis.address) as sink:
        yield sink


def test_out_of_memory_is_refused_and_over_once_there_is_room(admin: Any, sink: RedisSink) -> None:
    ids, vectors = [f"item-{n}" for n in range(20_000)], np.ones((20_000, 65))
    admin.config_set("maxmemory", "3mb")
    with pytest.raises(SinkRefused, match="raise maxmemory"):
        sink.write(1, "items", ids, vectors)
    admin.config_set("maxmemory", "0")
    sink.write(1, "items", ids, vectors)
    assert sink.count(1, "items") == 20_000


def test_a_read_only_replica_is_refused(admin: Any, sink: RedisSink) -> None:
    epoch = sink.claim()
    admin.replicaof("127.0.0.1", "1")
    with pytest.raises(SinkRefused, match="replica"):
        sink.write(1, "items", ["x"], ONE)
    with pytest.raises(SinkRefused, match="replica"):
        sink.flip(pointer_to(1, epoch=epoch))
    admin.replicaof("NO", "ONE")
    sink.write(1, "items", ["x"], ONE)


def test_a_key_that_holds_something_else_is_named(admin: Any, sink: RedisSink) -> None:
    admin.set("headwater:items:{b0}:v1", "mine")
    with pytest.raises(SinkRefused, match="another namespace"):
        sink.write(1, "items", [f"item-{n}" for n in range(200)], np.ones((200, 3)))
    admin.set("headwater:current", "mine")
    with pytest.raises(SinkRefused, match=r"docs/redis\.md"):
        sink.pointer()


def test_a_wrong_password_is_refused_and_a_rotated_one_is_taken_up(own_redis: EmbeddedRedis, admin: Any) -> None:
    secret = "first"
    admin.config_set("requirepass", "first")
    admin.auth("first")
    for given, said in ((None, "user and password"), ("wrong", "user and password")):
        with RedisSink(own_redis.address, password=given) as sink, pytest.raises(SinkRefused, match=said):
            sink.ping()
    with RedisSink(own_redis.address.replace("//", "//:first@")) as sink:
        sink.ping()
    with RedisSink(own_redis.address, password=lambda: secret) as sink:
        sink.ping()
        admin.config_set("requirepass", "second")
        admin.client_kill_filter(_type="normal", skipme=True)
        with pytest.raises(SinkRefused, match="user and password"):
            sink.ping()
        secret = "second"
        sink.write(1, "items", ["x"], ONE)


def test_a_password_never_shows_in_a_message(own_redis: EmbeddedRedis) -> None:
    own_redis.stop()
    messages = []
    for url in (own_redis.address.replace("//", "//me:s3cret@"), "rediss+what://me:s3cret@host"):
        try:
            RedisSink(url).ping()
        except (SinkError, ValueError) as error:
            messages.append(str(error))
    assert len(messages) == 2
    assert not any("s3cret" in message for message in messages)


def test_a_frozen_server_is_given_up_after_the_timeout(own_redis: EmbeddedRedis) -> None:
    with RedisSink(own_redis.address, timeout_s=0.2) as sink:
        sink.ping()
        own_redis.freeze()
        try:
            with pytest.raises(SinkUnavailable, match="away"):
                sink.ping()
            with pytest.raises(SinkUnavailable, match="away"):
                sink.write(1, "items", ["x"], ONE)
        finally:
            own_redis.thaw()
        sink.write(1, "items", ["x"], ONE)
        assert sink.read(1, "items", ["x"]) == [ONE.tobytes()]


def test_after_a_restart_the_same_sink_goes_on(own_redis: EmbeddedRedis, sink: RedisSink) -> None:
    epoch = sink.claim()
    sink.write(1, "items", ["x"], ONE)
    own_redis.kill()
    with pytest.raises(SinkUnavailable):
        sink.write(1, "items", ["x"], ONE)
    own_redis.start()
    assert sink.pointer() is None  # in memory only: everything is gone
    assert sink.still_mine()
    sink.write(1, "items", ["x"], ONE)
    sink.flip(pointer_to(1, epoch=epoch))
    assert sink.count(1, "items") == 1
    assert sink.claim() > epoch  # although the counter was lost


@pytest.mark.parametrize(
    "url", ["localhost:6379", "http://localhost", "redis+sentinel://localhost:26379", "redis://localhost:notaport"]
)
def test_a_url_that_cannot_be_understood_is_said_at_once(url: str) -> None:
    with pytest.raises(ValueError, match=r"url|port|Port"):
        RedisSink(url)


def rights(user: str) -> list[str]:
    """The `ACL SETUSER` line of `docs/redis.md`, for the default namespace."""
    found = re.search(rf"^ +ACL SETUSER {user} (.*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    return found[1].replace("NS:", "headwater:").split()


def test_the_documented_rights_suffice_for_the_daemon_and_no_more(own_redis: EmbeddedRedis, admin: Any) -> None:
    admin.execute_command("ACL", "SETUSER", "headwater", *rights("headwater"))
    with RedisSink(own_redis.address, username="headwater", password="secret") as sink:
        epoch = sink.claim()
        for version in (1, 2):
            sink.write(version, "items", ["x", "y"], np.ones((2, 3)))
            sink.write_head(version, b"head")
            sink.flip(pointer_to(version, epoch=epoch))
        sink.delete(2, "items", ["y"])
        sink.expire(1, 60)
        sink.drop(1)
        assert (sink.count(2, "items"), list(sink.ids(2, "items")), sink.versions()) == (1, ["x"], {2})
        assert (sink.read(2, "items", ["x"]), sink.read_head(2)) == ([ONE.tobytes()], b"head")
        assert sink.claim() == epoch + 1
        assert sink.still_mine()
        sink.ping()
    with redis.Redis.from_url(own_redis.address, username="headwater", password="secret", protocol=2) as client:
        assert client.info("memory")  # what `headwater doctor` asks for
    with (
        RedisSink(own_redis.address, username="headwater", password="secret", namespace="other") as other,
        pytest.raises(SinkRefused, match="lacks a right"),
    ):
        other.write(1, "items", ["x"], ONE)


def test_the_documented_rights_suffice_for_a_reader_and_no_more(
    own_redis: EmbeddedRedis, admin: Any, sink: RedisSink
) -> None:
    sink.write(1, "items", ["x"], ONE)
    sink.flip(pointer_to(1, epoch=sink.claim()))
    admin.execute_command("ACL", "SETUSER", "ranking", *rights("ranking"))
    url = own_redis.address.replace("//", "//ranking:secret@")
    with Reader(url, namespace="headwater") as reader:
        with reader.pinned() as view:
            assert [ids for ids, _ in view.candidates()] == [["x"]]
            assert view.score("nobody", ["x", "unknown"])[0] == ["x"]
        stop = threading.Event()
        reader.follow(lambda pointer: stop.set(), stop, poll_s=0.01)
    with RedisSink(url) as trespasser:
        for attempt in (trespasser.claim, lambda: trespasser.write(1, "items", ["x"], ONE), lambda: trespasser.drop(9)):
            with pytest.raises(SinkRefused, match="lacks a right"):
                attempt()
