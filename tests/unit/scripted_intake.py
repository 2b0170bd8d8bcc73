"""Intake over topics in memory, in the caller's own thread.

Before each poll it carries out the next step of a script, which produces, moves the clock, or looks; the script's end
stops it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from queue import Empty, Queue
from typing import Any

from prometheus_client import CollectorRegistry

from service.arrivals import ClosedPhase
from service.config import Config
from service.connections import event_decoder
from service.errors import ForeignState
from service.fast_path import FastPath
from service.intake import Intake
from service.live import Live
from service.metrics import Metrics
from streams.events import Record
from streams.memory_sink import MemorySink
from streams.memory_source import MemorySource, MemoryTopics
from streams.source_types import Identity, SourceUnavailable, TopicPartition

PARTITIONS = 3
NAMES = ("interactions", "items", "users")
START = 1_700_000_000.0
Step = Callable[[], object]


class Scripted(MemorySource):
    """Carries out a step before each poll; never waits."""

    def __init__(self, topics: MemoryTopics, *, max_poll_records: int) -> None:
        super().__init__(topics, NAMES, max_poll_records=max_poll_records)
        self.steps: list[Step] = []
        self.at_the_end: Step = lambda: None
        self.refuse_next_assignment = False

    def poll(self, timeout_s: float) -> list[Record]:
        if self.steps:
            self.steps.pop(0)()
        else:
            self.at_the_end()
        return super().poll(0)

    def assign(self, positions: Mapping[TopicPartition, int]) -> None:
        if self.refuse_next_assignment:
            self.refuse_next_assignment = False
            raise SourceUnavailable("the broker went away")
        super().assign(positions)


@dataclass
class Letters:
    """Keeps what cannot be used."""

    sent: list[tuple[str, int, str]] = field(default_factory=list)

    def send(self, record: Record, reason: str, detail: str) -> None:
        self.sent.append((record.topic, record.offset, reason))

    def flush(self) -> None: ...


@dataclass
class World:
    """Topics that outlive the intakes reading them, as a broker outlives daemons."""

    topics: MemoryTopics = field(default_factory=MemoryTopics)
    now: float = START
    turned: float = 0.0
    """How far somebody has set the clock of the day since, in seconds."""

    def __post_init__(self) -> None:
        for name in NAMES:
            self.topics.create(name, partitions=PARTITIONS if name == "interactions" else 1)

    def click(self, partition: int, *, time: float = 0.0, user: str = "u") -> None:
        event = {"user_id": user, "item_id": "i", "action": "view", "time": START + time}
        self._send("interactions", user, event, partition)

    def item(self, name: str) -> None:
        self._send("items", name, {"item_id": name}, 0)

    def garbage(self, topic: str, partition: int = 0) -> None:
        self.topics.append(topic, b"k", b"{", int(START * 1000), partition=partition)

    def _send(self, topic: str, key: str, event: dict[str, Any], partition: int) -> None:
        self.topics.append(topic, key.encode(), json.dumps(event).encode(), int(START * 1000), partition=partition)

    def end(self) -> dict[TopicPartition, int]:
        return MemorySource(self.topics, NAMES).end()


class Reading:
    """One intake, and what learning would have been given."""

    def __init__(
        self,
        world: World,
        *,
        after: ClosedPhase | None = None,
        resume: ClosedPhase | None = None,
        once: bool = False,
        poll: int = 1000,
        kafka: Mapping[str, Any] | None = None,
        **phase: Any,
    ) -> None:
        self.world, self.phases = world, list[ClosedPhase]()
        self.source = Scripted(world.topics, max_poll_records=poll)
        self.letters = Letters()
        self.metrics = Metrics(CollectorRegistry())
        self.queue: Queue[ClosedPhase] = Queue(maxsize=1)
        config = Config(
            kafka={"users_topic": "users", "partition_idle_s": 1e6, **(kafka or {})},  # type: ignore[arg-type]
            phase={"max_events": 1000, "max_wait_s": 1e6, **phase},  # type: ignore[arg-type]
        )
        clock = lambda: world.now + world.turned  # noqa: E731
        positions = self.source.beginning()
        if after is not None:
            positions |= {(topic, p): at for topic, ps in after.end.items() for p, at in ps.items()}
        self.fast_path = FastPath(live=Live(), sink=MemorySink(), metrics=self.metrics, clock=clock)
        self.intake = Intake(
            config=config,
            source=self.source,
            decoder=event_decoder(config),
            fast_path=self.fast_path,
            dead_letters=self.letters,
            phases=self.queue,
            metrics=self.metrics,
            clock=clock,
            positions=positions,
            maxima={} if after is None else after.maxima,
            resume_to=None if resume is None else resume.end,
            stop_at=world.end() if once else None,
            ticks=lambda: world.now,
            recognise=lambda identity: self.recognise(identity),
        )

    def recognise(self, identity: Identity) -> None:
        """As the state directory does: other topics than at the first look are refused."""
        self.known = getattr(self, "known", identity)
        if identity != self.known:
            raise ForeignState("A topic was made anew.")

    def learn(self) -> None:
        """Takes the phase that waits, if one does."""
        try:
            self.phases.append(self.queue.get_nowait())
        except Empty:
            return

    def pass_s(self, seconds: float) -> Step:
        def tick() -> None:
            self.world.now += seconds

        return tick

    def run(self, *script: Step, polls: int = 0) -> Reading:
        """The script, then as many polls in which learning keeps up as are needed (or `polls`), then the end."""
        left = [polls or 10_000]
        still = [0]

        def keep_up() -> None:
            before = len(self.phases)
            self.learn()
            left[0] -= 1
            still[0] = 0 if len(self.phases) > before or not self._all_read() else still[0] + 1
            if left[0] <= 0 or (not polls and still[0] > 3):
                self.intake.stop()

        self.source.steps = list(script)
        self.source.at_the_end = keep_up
        self.intake.run()
        self.learn()
        self.check_books()
        return self

    def _all_read(self) -> bool:
        return all(self.source.position(tp) >= end for tp, end in self.world.end().items())

    def check_books(self) -> None:
        for before, after in zip(self.phases, self.phases[1:], strict=False):
            assert {**after.start, **before.end} == after.start, "a phase starts where the last one ended"
        for phase in self.phases:
            assert phase.skipped("interactions") >= 0
