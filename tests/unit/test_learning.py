"""Dead letters that cannot be written yet hold a phase up, and end nothing."""

from __future__ import annotations

import threading
from queue import Queue
from types import SimpleNamespace
from typing import Any

import pytest

from service.arrivals import Arrival, ClosedPhase
from service.commands import CommandQueue
from service.id_limits import TOO_MANY_IDS
from service.learning import Learning
from streams.events import Interaction, Record
from streams.source_types import SourceUnavailable


class Letters:
    """The broker is away for so many flushes."""

    def __init__(self, away: int) -> None:
        self.away, self.sent = away, list[tuple[int, str]]()
        self.flushed = 0

    def send(self, record: Record, reason: str, detail: str) -> None:
        self.sent.append((record.offset, reason))

    def flush(self) -> None:
        self.flushed += 1
        if self.flushed <= self.away:
            raise SourceUnavailable("2 dead letters are not written yet")


def engine_with(letters: Letters, stopping: threading.Event) -> Any:
    """The engine of a daemon that writes these letters."""
    nothing: Any = SimpleNamespace(waiting=None)
    engine: Any = SimpleNamespace()
    made = Learning(
        engine=engine, publisher=nothing, fast_path=nothing, commands=CommandQueue(), stopping=stopping, disk=nothing
    )
    phases: Queue[ClosedPhase] = Queue()
    made.connect(nothing, phases, letters, None)
    return engine


def over(offset: int) -> Arrival:
    event = Interaction(user_id="u", item_id="i", action="view", value=1.0, time=1.0, event_id=None)
    return Arrival("interactions", 0, offset, 1.0, event)


def test_letters_about_too_many_ids_are_waited_for_until_kafka_is_back() -> None:
    letters = Letters(away=1)
    engine = engine_with(letters, threading.Event())
    engine.on_over_limit([over(3), over(4)])
    assert letters.sent == [(3, TOO_MANY_IDS), (4, TOO_MANY_IDS)]
    assert letters.flushed == 2


def test_a_stop_ends_the_waiting() -> None:
    stopping = threading.Event()
    stopping.set()
    engine = engine_with(Letters(away=10), stopping)
    with pytest.raises(SourceUnavailable):
        engine.on_over_limit([over(3)])
