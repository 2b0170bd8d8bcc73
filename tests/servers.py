"""Real servers for the tests: brokers, Redis, Prometheus's tools; each found on this machine, or left out and said so.

The embedded ones always run. `HEADWATER_TEST_KAFKA`, a script called as `SCRIPT run DIR PORT [key=value …]` that stays
in the foreground, adds Apache Kafka; a `redis-server` on PATH adds Redis itself. With
`HEADWATER_TEST_REQUIRE_SERVERS=1`, as in CI, one that is missing fails its tests instead of being left out.
"""

from __future__ import annotations

import functools
import itertools
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from streams.embedded import EmbeddedBroker, EmbeddedRedis, ServerProcess, find_redis_server, free_port
from streams.kafka_producer import EventProducer

_LAUNCHER = "HEADWATER_TEST_KAFKA"
_REQUIRED = os.environ.get("HEADWATER_TEST_REQUIRE_SERVERS") == "1"


class ApacheKafka(ServerProcess):
    """One Apache Kafka node; `port` serves clients and `port` + 1 is its controller. State is in its directory."""

    name = "apache-kafka"

    def __init__(self, *, directory: Path, port: int | None = None, settings: Mapping[str, str] | None = None) -> None:
        super().__init__(directory=directory, port=port, ready_timeout_s=90.0)
        self._settings = {"num.partitions": "1", "auto.create.topics.enable": "true", **(settings or {})}

    def choose_port(self) -> int:
        return free_port(consecutive=2)

    def command(self, port: int) -> list[str]:
        launcher = os.environ.get(_LAUNCHER)
        if launcher is None:
            pytest.fail(f"{_LAUNCHER} is not set, and HEADWATER_TEST_REQUIRE_SERVERS asks for Apache Kafka")
        settings = [f"{key}={value}" for key, value in self._settings.items()]
        return [launcher, "run", str(self.directory / "state"), str(port), *settings]


def kafka_kinds() -> list[str]:
    """The brokers to test with: `embedded`, and `apache` where there is one or it is required."""
    return ["embedded", "apache"] if os.environ.get(_LAUNCHER) or _REQUIRED else ["embedded"]


def redis_kinds() -> list[str]:
    """The Redis servers to test with: `embedded` (Valkey), and `debian` where there is one or it is required."""
    return ["embedded", "debian"] if find_redis_server() or _REQUIRED else ["embedded"]


def new_broker(kind: str, directory: Path, **options: Any) -> ServerProcess:
    """A broker of this kind, not yet started; it can be stopped, killed, frozen and started again on its port."""
    return (
        EmbeddedBroker(directory=directory, **options)
        if kind == "embedded"
        else ApacheKafka(directory=directory, **options)
    )


def new_redis(kind: str, directory: Path, **options: Any) -> EmbeddedRedis:
    """A Redis of this kind, not yet started; `settings={"appendonly": "yes"}` makes it outlive a restart."""
    if kind == "embedded":
        return EmbeddedRedis(directory=directory, **options)
    binary = find_redis_server()
    if binary is None:
        pytest.fail("no redis-server on PATH, and HEADWATER_TEST_REQUIRE_SERVERS asks for it")
    return EmbeddedRedis(directory=directory, binary=binary, **options)


@dataclass(frozen=True)
class Broker:
    """A running broker that tests share: its kind, where clients find it, and how to make topics on it."""

    kind: str
    server: ServerProcess
    producer: EventProducer

    @property
    def address(self) -> str:
        return self.server.address

    def topic(self, *, partitions: int = 1, compacted: bool = False) -> str:
        """A new topic with a name of its own."""
        name = f"topic-{next(_numbers)}-{os.getpid()}"
        self.producer.ensure_topics([name], partitions=partitions, compacted=[name] if compacted else [])
        return name


_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def brokers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Broker]]:
    """A function from a kind to the broker of that kind that all tests share, started when first asked for."""
    with ExitStack() as running:

        @functools.cache
        def broker(kind: str) -> Broker:
            server = running.enter_context(new_broker(kind, tmp_path_factory.mktemp(f"kafka-{kind}")))
            producer = running.enter_context(EventProducer(bootstrap_servers=server.address, linger_ms=0))
            return Broker(kind=kind, server=server, producer=producer)

        yield broker


@pytest.fixture(scope="session", params=kafka_kinds())
def kafka(request: pytest.FixtureRequest, brokers: Callable[[str], Broker]) -> Broker:
    """A broker of each kind at hand, shared by all tests: make topics of your own with `kafka.topic()`."""
    return brokers(request.param)


@pytest.fixture(params=kafka_kinds())
def own_kafka(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ServerProcess]:
    """A broker for one test alone, running; the test may stop, kill, freeze and restart it."""
    with new_broker(request.param, tmp_path / "kafka") as server:
        yield server


@pytest.fixture(scope="session", params=redis_kinds())
def redis_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Redis of each kind at hand, shared by all tests: use keys of your own (`namespace`)."""
    with new_redis(request.param, tmp_path_factory.mktemp(f"redis-{request.param}")) as server:
        yield server.address


@pytest.fixture(params=redis_kinds())
def own_redis(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EmbeddedRedis]:
    """A Redis for one test alone, running; the test may stop, kill, freeze and restart it."""
    with new_redis(request.param, tmp_path / "redis") as server:
        yield server


@pytest.fixture
def namespace() -> str:
    """A prefix of keys that no other test uses."""
    return f"test{next(_numbers)}-{os.getpid()}"


@pytest.fixture(scope="session")
def promtool() -> str:
    """Prometheus's checker of rules and metrics."""
    return _tool("promtool")


@pytest.fixture(scope="session")
def prometheus() -> str:
    """The Prometheus server's binary."""
    return _tool("prometheus")


def _tool(name: str) -> str:
    path = shutil.which(name)
    if path is not None:
        return path
    if _REQUIRED:
        pytest.fail(f"no {name} on PATH, and HEADWATER_TEST_REQUIRE_SERVERS asks for it")
    pytest.skip(f"no {name} on PATH; install Debian's prometheus to run this test")


def report_line() -> str:
    """Which servers this run uses, for pytest's header."""
    found: dict[str, Callable[[], bool]] = {
        "Apache Kafka": lambda: bool(os.environ.get(_LAUNCHER)),
        "redis-server": lambda: find_redis_server() is not None,
        "prometheus": lambda: shutil.which("prometheus") is not None,
        "promtool": lambda: shutil.which("promtool") is not None,
    }
    there = [name for name, check in found.items() if check()]
    absent = [name for name in found if name not in there]
    missing = f"; missing, {'required' if _REQUIRED else 'left out'}: {', '.join(absent)}" if absent else ""
    return f"servers: {', '.join(['embedded broker', 'embedded Redis', *there])}{missing}"
