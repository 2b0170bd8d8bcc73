"""The same sink and reader over TLS, through Sentinel with a failover, and in a Cluster of three."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
import tenacity

from streams.embedded import EmbeddedRedis, free_port
from streams.publisher import RedisSink
from streams.reader import Reader
from streams.redis_connection import connect
from streams.redis_keys import Pointer, vector_bytes
from streams.sink_types import Fenced, SinkRefused, SinkUnavailable
from tests.integration.test_redis_refusals import PAGE, rights
from tests.redis_topologies import WAIT_S, RedisSentinel, three_primaries, until
from tests.servers import new_redis, redis_kinds

IDS = [f"item-{n}" for n in range(500)]
VECTORS = np.arange(1500, dtype=np.float32).reshape(500, 3)


def publish(sink: RedisSink, version: int) -> None:
    """One version, by the book."""
    sink.write(version, "items", IDS, VECTORS + version)
    sink.write(version, "users", ["user-1"], np.ones((1, 3)))
    sink.write_head(version, b"head")
    assert sink.count(version, "items") == 500
    epoch = sink.claim()
    sink.flip(
        Pointer(
            version=version,
            epoch=epoch,
            dim=3,
            buckets=64,
            items=500,
            users=1,
            default_user=vector_bytes(np.zeros(3)),
            published_at="2026-01-02T03:04:05Z",
            writer="disk-a",
        )
    )


def use_everything(url: str) -> None:
    """Publish, read, delete, expire and sweep; what the contract tests hold in detail for one server."""
    with RedisSink(url) as sink, RedisSink(url) as other, Reader(url) as reader:
        publish(sink, 1)
        publish(sink, 2)
        sink.expire(1, 0.0)
        assert sink.versions() == {2}
        assert sorted(sink.ids(2, "items")) == sorted(IDS)
        assert sink.read_head(2) == b"head"
        with reader.pinned() as view:
            ids, vectors = view.items([*IDS, "unknown"])
            assert ids == IDS
            np.testing.assert_array_equal(vectors, VECTORS + 2)
            assert view.user("nobody").tolist() == [0, 0, 0]
            assert sum(len(names) for names, _ in view.candidates()) == 500
            assert view.score("user-1", ["item-1"])[1].tolist() == [(VECTORS[1] + 2).sum()]
        sink.delete(2, "items", IDS[:100])
        assert sink.count(2, "items") == 400
        owner = sink.pointer()
        assert owner is not None
        other.claim()
        assert not sink.still_mine()
        with pytest.raises(Fenced):
            sink.flip(owner)
        sink.write(3, "items", IDS, VECTORS)
        sink.drop(3)
        assert sink.versions() == {2}
        sink.ping()


# -- TLS


@pytest.fixture
def tls(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A TLS server's `host:port`, and the certificate that vouches for it."""
    if "debian" not in redis_kinds() or shutil.which("openssl") is None:
        pytest.skip("no redis-server or openssl on PATH; install Debian's redis-server to run this test")
    certificate, key, port = tmp_path / "cert.pem", tmp_path / "key.pem", free_port()
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-days", "1", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    settings = {"tls-port": str(port), "tls-cert-file": str(certificate), "tls-key-file": str(key)}
    settings |= {"tls-ca-cert-file": str(certificate), "tls-auth-clients": "no"}
    with new_redis("debian", tmp_path / "redis", settings=settings):
        yield f"localhost:{port}", certificate


def test_over_tls(tls: tuple[str, Path]) -> None:
    address, certificate = tls
    use_everything(f"rediss://{address}/0?ssl_ca_certs={certificate}")


def test_a_fresh_connection_over_tls_holds_nothing_unread(tls: tuple[str, Path]) -> None:
    """TLS 1.3 sends tickets after the handshake; redis-py takes a connection with anything unread for a spoiled one."""
    address, certificate = tls
    client: Any = connect(f"rediss://{address}/0?ssl_ca_certs={certificate}")
    with closing(client):
        connection = client.connection_pool.make_connection()
        connection.connect()
        assert not connection.can_read(timeout=0.5)
        connection.disconnect()


def test_a_certificate_that_nobody_vouches_for_is_not_taken(tls: tuple[str, Path]) -> None:
    with RedisSink(f"rediss://{tls[0]}/0") as sink, pytest.raises(SinkUnavailable, match="certificate"):
        sink.ping()


# -- Sentinel


@pytest.mark.slow
def test_through_sentinel_and_over_a_failover(tmp_path: Path) -> None:
    if "debian" not in redis_kinds():
        pytest.skip("no redis-server on PATH; install Debian's redis-server to run this test")
    with ExitStack() as stack:
        primary = stack.enter_context(new_redis("debian", tmp_path / "primary"))
        replica_of = {"replicaof": f"127.0.0.1 {primary.port}", "repl-diskless-sync-delay": "0"}
        replica = stack.enter_context(new_redis("debian", tmp_path / "replica", settings=replica_of))
        copy = stack.enter_context(redis.Redis.from_url(replica.address))
        until(lambda: copy.info("replication")["master_link_status"] == "up")
        sentinel = stack.enter_context(RedisSentinel(directory=tmp_path / "sentinel", primary=primary))
        watch = stack.enter_context(redis.Redis.from_url(f"redis://{sentinel.address}"))
        until(lambda: len(watch.execute_command("SENTINEL", "REPLICAS", "mymaster")) == 1)
        url = f"redis+sentinel://{sentinel.address}/mymaster/0"
        use_everything(url)
        with RedisSink(url, timeout_s=2) as sink, Reader(url) as reader:
            publish(sink, 5)
            until(
                lambda: (
                    bool(copy.exists("headwater:head:v5")) and b'"version":5,' in (copy.get("headwater:current") or b"")
                )
            )
            primary.kill()
            retry = tenacity.Retrying(
                stop=tenacity.stop_after_delay(WAIT_S),
                wait=tenacity.wait_fixed(0.1),
                retry=tenacity.retry_if_exception_type((SinkUnavailable, SinkRefused)),
            )
            retry(publish, sink, 6)
            assert reader.pointer().version == 6
            assert copy.role()[0] == b"master"


def test_a_sentinel_that_knows_no_such_service_is_away(tmp_path: Path) -> None:
    if "debian" not in redis_kinds():
        pytest.skip("no redis-server on PATH; install Debian's redis-server to run this test")
    with (
        new_redis("debian", tmp_path / "primary") as primary,
        RedisSentinel(directory=tmp_path / "sentinel", primary=primary) as sentinel,
        RedisSink(f"redis+sentinel://{sentinel.address}/typo") as sink,
        pytest.raises(SinkUnavailable, match="typo"),
    ):
        sink.ping()


# -- Cluster


@pytest.fixture(params=redis_kinds())
def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[list[EmbeddedRedis]]:
    """Three primaries that share the slots."""
    with three_primaries(request.param, tmp_path) as nodes:
        yield nodes


def test_in_a_cluster_of_three(cluster: list[EmbeddedRedis]) -> None:
    use_everything(f"redis+cluster://{cluster[1].address.removeprefix('redis://').removesuffix('/0')}")
    for node in cluster:
        with redis.Redis.from_url(node.address) as client:
            assert client.dbsize() > 10  # the buckets are spread


def test_a_cluster_that_lost_a_node_says_so_and_goes_on_after(cluster: list[EmbeddedRedis]) -> None:
    hosts = ",".join(node.address.removeprefix("redis://").removesuffix("/0") for node in cluster)
    with RedisSink(f"redis+cluster://{hosts}", timeout_s=2) as sink:
        publish(sink, 1)
        cluster[2].kill()
        with pytest.raises(SinkUnavailable):
            sink.write(2, "items", IDS, VECTORS)
        cluster[2].start()
        retry = tenacity.Retrying(
            stop=tenacity.stop_after_delay(WAIT_S),
            wait=tenacity.wait_fixed(0.1),
            retry=tenacity.retry_if_exception_type(SinkUnavailable),
        )
        retry(sink.write, 2, "items", IDS, VECTORS)
        assert retry(sink.count, 2, "items") == 500


def test_the_documented_rights_suffice_in_a_cluster(cluster: list[EmbeddedRedis]) -> None:
    further = re.search(r"a Cluster\s+`([^`]+)`", PAGE.read_text(encoding="utf-8"))
    assert further is not None
    for node in cluster:
        with redis.Redis.from_url(node.address) as client:
            admin: Any = client
            for user in ("headwater", "ranking"):
                admin.execute_command("ACL", "SETUSER", user, *rights(user), *further[1].split())
    url = f"redis+cluster://USER:secret@{cluster[0].address.removeprefix('redis://').removesuffix('/0')}"
    with RedisSink(url.replace("USER", "headwater")) as sink, Reader(url.replace("USER", "ranking")) as reader:
        publish(sink, 1)
        publish(sink, 2)
        sink.delete(2, "items", IDS[1:2])
        sink.expire(1, 0.0)
        assert sink.versions() == {2}
        assert sorted(sink.ids(2, "items")) == sorted({*IDS} - {IDS[1]})
        with reader.pinned() as view:
            assert view.items(IDS[:3])[0] == [IDS[0], IDS[2]]
            assert sum(len(names) for names, _ in view.candidates()) == 499
        stop = threading.Event()
        reader.follow(lambda pointer: stop.set(), stop, poll_s=0.01)


def test_a_cluster_that_is_away_says_so_at_once() -> None:
    with pytest.raises(SinkUnavailable):
        RedisSink(f"redis+cluster://127.0.0.1:{free_port()}", timeout_s=1)
