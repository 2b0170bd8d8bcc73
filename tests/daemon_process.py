"""Headwater as it is run: a namespace with topics, a configuration and a state directory of its own, verbs on it, and
the daemon as a real process that a test starts, watches from outside, and ends."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from prometheus_client.parser import text_string_to_metric_families

from service.config import Config, load_config
from service.phase_log import PhaseLine, read_phase_lines
from streams.embedded import ServerProcess
from streams.kafka_producer import EventProducer
from streams.publisher import RedisSink
from streams.simulator import Simulator, World
from streams.simulator_messages import MODALITIES, USER_FEATURES, Message, messages

PATIENCE_S = 120.0
"""Longest wait for anything; only a test that fails waits so long."""
LOOK_S = 0.05
TOKEN = "open sesame"

Tables = Mapping[str, Any]


def small_world(*, events: int, seed: int = 3) -> list[Message]:
    """The messages of a small simulated world, `events` of them interactions."""
    world = World(seed=seed, users=60, items=80, events=events, latent_dim=4, no_repeat=20)
    return list(messages(Simulator(world)))


def run_headwater(*args: str, timeout_s: float = PATIENCE_S) -> subprocess.CompletedProcess[str]:
    """`headwater ARGS` in a process of its own, to its end."""
    return subprocess.run(
        [sys.executable, "-m", "service.cli", *args], capture_output=True, text=True, timeout=timeout_s, check=False
    )


@dataclass
class Place:
    """Everything that one recommender has of its own; models are tiny, so that a phase takes a blink."""

    directory: Path
    namespace: str
    broker: str
    """`host:port`."""
    redis_url: str
    redis: ServerProcess | None = None
    """The Redis itself, where it is the test's own to kill."""
    producer: EventProducer | None = None
    """What `send` sends with, if nothing else is said."""

    def __post_init__(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self.path = self.directory / "headwater.toml"
        self.state_dir = self.directory / "state"
        self.topics = {kind: f"{self.namespace}-{kind}" for kind in ("interactions", "items", "users", "dead")}
        self.tables: dict[str, Any] = {}
        self.configure()

    def configure(self, **tables: Tables | str | int) -> Config:
        """Writes the configuration, with these tables' keys over those that were there."""
        token = self.directory / "token"
        token.write_text(TOKEN)
        for name, value in (self._defaults(token) if not self.tables else {}).items():
            self.tables[name] = value
        for name, value in tables.items():
            self.tables[name] = {**self.tables.get(name, {}), **value} if isinstance(value, Mapping) else value
        self.path.write_text(toml(self.tables))
        return load_config(self.path)

    @property
    def config(self) -> Config:
        return load_config(self.path)

    def _defaults(self, token: Path) -> dict[str, Any]:
        return {
            "namespace": self.namespace,
            "state_dir": str(self.state_dir),
            "kafka": {
                "bootstrap_servers": self.broker,
                "group_id": self.namespace,
                "interactions_topic": self.topics["interactions"],
                "items_topic": self.topics["items"],
                "users_topic": self.topics["users"],
                "dead_letter_topic": self.topics["dead"],
                # A partition without traffic must not hold a test up.
                "partition_idle_s": 1.0,
            },
            "redis": {"url": self.redis_url, "timeout_s": 2.0},
            "phase": {"max_events": 500, "max_wait_s": 2.0},
            "model": {"dim": 8, "history": 8, "modalities": dict(MODALITIES), "user_features": dict(USER_FEATURES)},
            "train": {"threads": 1, "batch": 128, "replay_ratio": 1.0},
            "evaluate": {"max_per_phase": 100},
            # So few events prove nothing about quality: what is tested here must not hang on a gate's chance.
            "promotion": {"tolerance": 0.99, "min_events": 1_000_000},
            "publish": {"buckets": 8, "keep_versions": 20, "grace_s": 60.0},
            "http": {"port": 0, "token_file": str(token)},
            "log": {"format": "json"},
        }

    def create_topics(self, producer: EventProducer, *, partitions: int = 4) -> None:
        """All four; the dead letters' has one partition."""
        compacted = [self.topics["items"], self.topics["users"]]
        producer.ensure_topics([self.topics["interactions"], *compacted], partitions=partitions, compacted=compacted)
        producer.ensure_topics([self.topics["dead"]], partitions=1)

    def send(self, stream: Iterable[Message], producer: EventProducer | None = None) -> None:
        """What `headwater produce` does: each message to its topic under its key; returns when the broker has them."""
        producer = producer or self.producer
        assert producer is not None
        for message in stream:
            producer.send(self.topics[message.kind], message.key, message.value)
        producer.flush()

    def lines(self) -> list[PhaseLine]:
        """The phases so far."""
        path = self.state_dir / "phases.jsonl"
        return read_phase_lines(path) if path.exists() else []

    def sink(self) -> RedisSink:
        """A look into Redis; close it."""
        return RedisSink(self.redis_url, namespace=self.namespace, buckets=self.tables["publish"]["buckets"])

    def verb(self, *args: str) -> subprocess.CompletedProcess[str]:
        """`headwater ARGS -c FILE` in a process of its own."""
        return run_headwater(*args, "-c", str(self.path))


class DaemonProcess(ServerProcess):
    """`headwater run` on a place's configuration; ends with the test's process at the latest."""

    name = "daemon"

    def __init__(self, place: Place, *args: str) -> None:
        super().__init__(directory=place.directory, ready_timeout_s=PATIENCE_S)
        self.place = place
        self.args = args

    def command(self, port: int) -> list[str]:
        self.place.configure(http={"port": port})
        return [sys.executable, "-m", "service.cli", "run", "-c", str(self.place.path), *self.args]

    def get(self, path: str) -> tuple[int, Any]:
        """Status code and body of an answer, decoded if it is JSON."""
        return self.ask(urllib.request.Request(f"http://{self.address}{path}"))

    def post(self, path: str, body: Mapping[str, Any], token: str | None = TOKEN) -> tuple[int, Any]:
        """The same for an admin verb."""
        request = urllib.request.Request(f"http://{self.address}{path}", data=json.dumps(body).encode())
        if token is not None:
            request.add_header("Authorization", f"Bearer {token}")
        return self.ask(request)

    def ask(self, request: urllib.request.Request) -> tuple[int, Any]:
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
                return answer.status, _decoded(answer.headers.get_content_type(), answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, _decoded(error.headers.get_content_type(), error.read())

    def recommend(self, user: str, k: int = 20) -> list[dict[str, Any]]:
        code, answer = self.get(f"/recommend/{quote(user, safe='')}?k={k}&include_seen=1")
        assert code == 200, answer
        return list(answer)

    def status(self) -> dict[str, Any]:
        code, answer = self.get("/status")
        assert code == 200, answer
        return dict(answer)

    def metric(self, name: str, **labels: str) -> float:
        """One sample of /metrics; its labels must include these."""
        code, text = self.get("/metrics")
        assert code == 200
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    return float(sample.value)
        raise AssertionError(f"no metric {name} with {labels}")

    def wait_until(self, what: str, true: Callable[[], bool]) -> None:
        """Looks again and again; fails with the end of the log if the daemon ends or patience does."""
        deadline = time.monotonic() + PATIENCE_S
        while not true():
            assert self.running, f"the daemon ended before {what}: {self.tail()}"
            assert time.monotonic() < deadline, f"waited in vain for {what}: {self.tail()}"
            time.sleep(LOOK_S)

    def wait_ready(self) -> None:
        self.wait_until("/readyz", lambda: self.get("/readyz")[0] == 200)

    def wait_learned(self, events: int) -> None:
        """Until so many events are in finished phases, and what was learned of them is served: a phase's line is
        written last."""
        self.wait_until(f"{events} learned events", lambda: sum(line.events for line in self.place.lines()) >= events)

    def terminate(self) -> int:
        """SIGTERM; the exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        code = self._process.wait(PATIENCE_S)
        self._process = None
        return code

    def wait_ended(self) -> int:
        """The exit code of a daemon that ends by itself."""
        assert self._process is not None
        code = self._process.wait(PATIENCE_S)
        self._process = None
        return code

    def said(self) -> Iterator[dict[str, Any]]:
        """The lines of the log."""
        for line in self.log.read_text().splitlines():
            if line.startswith("{"):
                yield json.loads(line)

    def tail(self) -> str:
        return self.log.read_text()[-3000:]


def _decoded(kind: str, body: bytes) -> Any:
    return json.loads(body) if kind == "application/json" else body.decode()


def toml(tables: Mapping[str, Any], prefix: str = "") -> str:
    """TOML of nested tables: what JSON says of strings, numbers, truth values and lists of them, TOML reads alike."""
    plain = [f"{json.dumps(k)} = {json.dumps(v)}\n" for k, v in tables.items() if not isinstance(v, Mapping)]
    inner = {prefix + name: table for name, table in tables.items() if isinstance(table, Mapping)}
    return "".join([*plain, *(f"\n[{name}]\n{toml(table, f'{name}.')}" for name, table in inner.items())])
