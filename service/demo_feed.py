"""Sends the demo's simulated stream to Kafka: first a backlog at once, then a constant stream."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Protocol

import msgspec

from service.demo_state import TOPICS, DemoDirectory, Progress
from service.errors import StateError
from streams.kafka_producer import EventProducer
from streams.simulator import Simulator
from streams.simulator_messages import Message, digest, messages

_AHEAD = 500
"""How many interactions are announced in `demo.json` before they are sent."""
_TICK_S = 0.02


class Observer(Protocol):
    """Told of each message right before it is sent; `live` in the constant stream."""

    def __call__(self, message: Message, *, live: bool) -> None: ...


class Feed:
    """The stream, sent from its beginning once.

    One thread at a time may send.
    """

    def __init__(
        self,
        *,
        producer: EventProducer,
        simulator: Simulator,
        directory: DemoDirectory,
        progress: Progress,
        observer: Observer | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._producer, self._directory, self._progress = producer, directory, progress
        self._observer, self._clock, self._wall = observer, clock, wall_clock
        self._messages: Iterator[Message] = messages(simulator)
        self._next: Message | None = next(self._messages, None)
        self._digest = 0
        self._checkpoint = (progress.checked, progress.digest)
        self._so_far = (0, 0)
        self.sent = 0
        """Interactions sent so far, in this run."""

    def burst(self, until: int, *, stopping: threading.Event | None = None) -> None:
        """Send everything before interaction number `until` as fast as it goes, and wait until the broker has it.

        Raises `StateError` if it is not the stream that this directory's state has learned from.
        """
        self._announce(until)
        while self._next is not None and self._next.number < until:
            self._send(self._next, live=False)
            if stopping is not None and stopping.is_set():
                break
        self._producer.flush()
        self._announce(self.sent)

    def stream(self, until: int, *, rate: float, stopping: threading.Event) -> None:
        """Send everything before number `until` at `rate` interactions per second, until done or stopped."""
        begun, first = self._clock(), self.sent
        while self._next is not None and self._next.number < until and not stopping.is_set():
            due = min(until, first + int((self._clock() - begun) * rate) + 1)
            while self._next is not None and self._next.number < due:
                if self._next.number >= self._progress.sent:
                    self._announce(self._next.number + _AHEAD)
                self._send(self._next, live=True)
            stopping.wait(_TICK_S)
        self._producer.flush()
        self._announce(self.sent)

    def _send(self, message: Message, *, live: bool) -> None:
        if self._observer is not None:
            self._observer(message, live=live)
        self._producer.send(TOPICS[message.kind], message.key, message.value, int(self._wall() * 1000))
        self._digest = digest(self._digest, message)
        if message.kind == "interactions":
            self.sent = message.number + 1
            self._so_far = (self.sent, self._digest)
            if self.sent == self._checkpoint[0] and self._so_far != self._checkpoint:
                raise StateError(
                    f"{self._directory.root} has learned from another stream than this Headwater simulates.",
                    hint="Name another --state-dir, or remove this one to start anew.",
                )
        self._next = next(self._messages, None)

    def _announce(self, sent: int) -> None:
        """Before sending: a daemon may be killed with an offset that the next demo must reach before it starts one."""
        if self.sent >= self._checkpoint[0]:
            self._checkpoint = self._so_far
        checked, value = self._checkpoint
        sent = max(sent, self._progress.sent)
        self._progress = msgspec.structs.replace(self._progress, sent=sent, checked=checked, digest=value)
        self._directory.write_progress(self._progress)
