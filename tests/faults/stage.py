"""Where a fault is played: servers of its own, a daemon on a stream, and the proof afterwards that nothing was lost.

A fault is a function of a `Stage`. It has the daemon learn and serve something, does the damage, mends what a person
or a supervisor would (a server comes back, a disk has room again), and asks for the `Outcome`; that it comes about
without any other help is what is tested.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from service.checkpoints import CheckpointStore
from service.live import SINK_TROUBLE
from streams.embedded import EmbeddedRedis, ServerProcess
from streams.kafka_producer import EventProducer
from streams.simulator_messages import Message
from tests.daemon_process import DaemonProcess, Place, small_world
from tests.faults import ledger
from tests.faults.forked_daemon import Before, ForkedDaemon, _nothing
from tests.servers import new_broker, new_redis

Group = Literal["Redis", "Kafka", "Disk", "Process", "Quality"]

FIRST = 400
"""Interactions that are learned and served before a fault."""
PER_PHASE = 200
SAID_LIMIT = 180


@dataclass(frozen=True)
class Outcome:
    """What became of a fault."""

    what: str
    """What the daemon did, in words that hold for every run."""
    seconds: float | None
    """From the moment the cause was gone (or, where it stays, from the fault) until everything sent was learned, the
    newest version served, and every vector there. None where the daemon is to stop, and did."""
    lost: int
    """Events that were sent and not learned."""
    said: str
    """The line in which the daemon said so."""


@dataclass(frozen=True)
class Fault:
    """One row of the schedule."""

    group: Group
    name: str
    play: Callable[[Stage], Outcome]
    quick: bool
    """Played in every run of the tests."""
    needs: frozenset[str]
    """Of `apache`, `debian`, `root`."""

    @property
    def id(self) -> str:
        """As on the command line."""
        return re.sub(r"[^a-z0-9]+", "-", f"{self.group} {self.name}".lower()).strip("-")


SCHEDULE: list[Fault] = []
"""Every fault, in the order of the table."""


class Unplayable(Exception):  # noqa: N818
    """This machine cannot do that; the message says why."""


def fault(
    group: Group, name: str, *, quick: bool = False, needs: str = ""
) -> Callable[[Callable[[Stage], Outcome]], Callable[[Stage], Outcome]]:
    """Puts a function into the schedule."""

    def add(play: Callable[[Stage], Outcome]) -> Callable[[Stage], Outcome]:
        SCHEDULE.append(Fault(group, name, play, quick, frozenset(needs.split())))
        return play

    return add


@dataclass
class Stage:
    """What a fault may use. Servers of its own end with it."""

    directory: Path
    namespace: str
    broker: ServerProcess
    """Shared with other faults: make topics on it, and leave it alone."""
    producer: EventProducer
    kafka_kind: str = "embedded"
    redis_kind: str = "embedded"
    outage_s: float = 20.0
    """How long something that is away stays away."""
    restarts: int = 200
    stack: ExitStack = field(default_factory=ExitStack)

    def own_redis(self, name: str = "redis", **settings: str) -> EmbeddedRedis:
        """A Redis that may be harmed, running."""
        return self.stack.enter_context(
            new_redis(
                self.redis_kind, self.directory / name, settings={k.replace("_", "-"): v for k, v in settings.items()}
            )
        )

    def own_kafka(self, **settings: str) -> tuple[ServerProcess, EventProducer]:
        """A broker that may be harmed, running, and a producer."""
        options = {"settings": {k.replace("_", "."): v for k, v in settings.items()}} if settings else {}
        server = self.stack.enter_context(new_broker(self.kafka_kind, self.directory / "kafka", **options))
        return server, self.stack.enter_context(EventProducer(bootstrap_servers=server.address, linger_ms=0))

    def place(
        self,
        *,
        redis_url: str | None = None,
        kafka: tuple[ServerProcess, EventProducer] | None = None,
        partitions: int = 2,
        name: str = "place",
    ) -> Place:
        """Topics and a configuration."""
        redis = None if redis_url else self.own_redis()
        broker, producer = kafka or (self.broker, self.producer)
        url = redis_url or redis.address  # type: ignore[union-attr]
        place = Place(self.directory / name, self.namespace, broker.address, url, redis, producer)
        place.configure(phase={"max_events": PER_PHASE, "max_wait_s": 1.0}, publish={"grace_s": 5.0})
        place.create_topics(producer, partitions=partitions)
        return place

    def serving(self, place: Place | None = None, *, before: Before = _nothing) -> Run:
        """A daemon that has learned its first events and serves them."""
        run = Run(self, place or self.place(), before=before)
        run.send(FIRST)
        run.start()
        run.wait_learned()
        run.daemon.wait_ready()
        run.wait_whole()
        return run


class Run:
    """A daemon on a stream, of which a fault sends a part at a time."""

    def __init__(self, stage: Stage, place: Place, *, before: Before = _nothing) -> None:
        self.stage, self.place = stage, place
        self.daemon = ForkedDaemon(place, before=before)
        stage.stack.callback(self.daemon.kill)
        self._stream = iter(small_world(events=20_000))
        self._ahead: Message | None = None
        self.sent: list[Message] = []
        self.interactions = 0
        self.lost = 0
        self._lifted: float | None = None
        self._log_from = 0

    @property
    def redis(self) -> ServerProcess:
        assert self.place.redis is not None
        return self.place.redis

    # What the world does

    def send(self, events: int, producer: EventProducer | None = None) -> list[Message]:
        """The next messages of the stream, so many of them interactions; acknowledged when this returns."""
        part = self.take(events)
        self.place.send(part, producer)
        return part

    def take(self, events: int) -> list[Message]:
        """The same, for somebody else to send."""
        part: list[Message] = []
        while sum(message.kind == "interactions" for message in part) < events:
            part.append(next(self._stream))
        self.sent += part
        self.interactions += events
        return part

    def start(self) -> None:
        """Starts the daemon, again if it ran before."""
        self.daemon.start()

    @contextmanager
    def fault(self) -> Iterator[None]:
        """Around the damage: what the daemon says from here on is about it. Without `lift`, the clock runs from its
        end."""
        self._log_from = self.daemon.log.stat().st_size if self.daemon.log.exists() else 0
        yield
        self._lifted = time.monotonic()

    def lift(self) -> None:
        """The cause is gone, now."""
        self._lifted = time.monotonic()

    # What must come of it

    def wait_learned(self) -> None:
        """Everything sent, but for what is said to be lost."""
        self.daemon.wait_learned(self.interactions - self.lost)

    def wait_whole(self) -> None:
        """Readers find the champion, and a vector of everything that was ever sent."""
        self.daemon.wait_until("the champion, whole", self.whole)

    def whole(self) -> bool:
        """Whether readers of the champion miss nothing at this moment."""
        champion = CheckpointStore(self.place.state_dir, keep_versions=2).named()[1]
        try:
            with self.place.sink() as sink:
                pointer = sink.pointer()
            missing = ledger.missing_from_redis(self.place, self.sent)
        except SINK_TROUBLE:
            return False
        return pointer is not None and pointer.version == champion and not missing

    def recovered(self, what: str, *, said: str, lost: int = 0, duplicates: int = 0) -> Outcome:
        """Waits until all is well again, checks the books, and that the daemon said what it did."""
        self.lost = lost
        self.wait_learned()
        self.daemon.wait_ready()
        self.wait_whole()
        assert self._lifted is not None
        seconds = time.monotonic() - self._lifted
        # All is as before also for what comes from now on.
        self.send(PER_PHASE)
        self.wait_learned()
        self.wait_whole()
        assert self.daemon.terminate() == 0, self.daemon.tail()
        return Outcome(what, seconds, self.check_books(lost=lost, duplicates=duplicates), self.said(said))

    def check_books(self, *, lost: int = 0, duplicates: int = 0) -> int:
        """Everything sent was learned once, and every offset is accounted for; how many events were lost."""
        counted = ledger.books(self.place)
        assert ledger.offsets_unread(self.place) == 0
        assert (counted.lost, counted.duplicates, counted.rejected) == (lost, duplicates, 0), counted
        assert counted.events == self.interactions - lost
        missing = ledger.unlearned(self.place, self.sent).total()
        assert missing == lost, f"{missing} events were not learned"
        return missing

    def said(self, pattern: str) -> str:
        """The last line of the log since the fault that `pattern` is found in, as a person would read it. Fails where
        there is none, or where a traceback was all there was to read."""
        with self.daemon.log.open("rb") as log:
            log.seek(self._log_from)
            text = log.read().decode(errors="replace")
        assert "Traceback" not in text, text[-3000:]
        found = [line for line in map(readable, text.splitlines()) if re.search(pattern, line)]
        assert found, f"nothing in the log says {pattern!r}: {text[-3000:]}"
        return found[-1]


def readable(line: str) -> str:
    """A line of the log as a sentence: the event, and the words that came with it."""
    if not line.startswith("{"):
        return line.strip()
    fields: dict[str, Any] = json.loads(line)
    more = [str(fields[name]) for name in ("what", "done", "error", "message", "reason") if fields.get(name)]
    return ": ".join([str(fields.get("event", "")), *more])


def abridged(said: str) -> str:
    """For a cell of a table."""
    said = re.sub(r"/\S+/(?=[\w.-]+)", "…/", said).replace("|", "\\|")
    said = re.sub(r"127\.0\.0\.1:\d+", "HOST:PORT", said)
    return said if len(said) <= SAID_LIMIT else f"{said[:SAID_LIMIT]}…"


def wait_for(what: str, true: Callable[[], bool], *, patience_s: float = 120.0) -> None:
    """Looks again and again; fails when patience ends."""
    deadline = time.monotonic() + patience_s
    while not true():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.05)


__all__ = ["SCHEDULE", "DaemonProcess", "Fault", "Outcome", "Run", "Stage", "Unplayable", "fault", "wait_for"]
