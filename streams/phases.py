"""When a phase closes, and in which order records of several partitions come to it.

Everything here is pure: time is passed in as `now`, and a partition is whatever names it, in practice
`(topic, partition)`. `PartitionMerge` puts a backlog into one order, whatever the polls; `PhaseCutter` counts along it.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Set
from typing import Generic, Literal, TypeVar

from streams.source_types import TopicPartition

Cause = Literal["count", "window", "wait"]
R = TypeVar("R")


class PhaseCutter:
    """Decides when the phase that is being read closes: call `add` for each record, then `closed`.

    max_events: interactions in a phase. max_wait_s: seconds on the clock since the phase's first record. window_s:
    length of event-time windows, which start at multiples of it; 0 for none. allowed_lateness_s: how far the
    watermark must pass a window's end. maxima: the greatest event time of each partition so far, from `maxima` of
    the cutter that read up to here. Raises ValueError for limits that no phase could meet.
    """

    def __init__(
        self,
        *,
        max_events: int,
        max_wait_s: float,
        window_s: float,
        allowed_lateness_s: float,
        maxima: Mapping[TopicPartition, float] | None = None,
    ) -> None:
        if max_events < 1 or min(max_wait_s, window_s, allowed_lateness_s) < 0:
            raise ValueError("A phase needs `max_events` of at least 1 and no negative times.")
        self._max_events = max_events
        self._max_wait_s = max_wait_s
        self._window_s = window_s
        self._allowed_lateness_s = allowed_lateness_s
        self._maxima = dict(maxima or {})
        self._maxima_before = dict(self._maxima)
        self._events = 0
        self._opened_at: float | None = None
        self._first_time: float | None = None
        self._window_end: float | None = None

    @property
    def events(self) -> int:
        """Interactions in the phase so far."""
        return self._events

    @property
    def opened_at(self) -> float | None:
        """When the phase's first record arrived; None while it has none."""
        return self._opened_at

    @property
    def maxima(self) -> dict[TopicPartition, float]:
        """The greatest event time of each partition, over all phases; a copy."""
        return dict(self._maxima)

    def add(self, tp: TopicPartition, event_time: float | None, now: float) -> None:
        """One record of the interactions topic; `event_time` None for one that was refused, absurd times among them.

        A refused record starts the wait, so that its offset is committed in the end, and counts towards nothing else.
        """
        if self._opened_at is None:
            self._opened_at = now
        if event_time is None:
            return
        self._events += 1
        if event_time > self._maxima.get(tp, -math.inf):
            self._maxima[tp] = event_time
        if self._first_time is None:
            self._first_time = event_time

    def closed(self, now: float, *, idle: Set[TopicPartition]) -> Cause | None:
        """Why the phase closes at `now`, or None while it stays open. `idle`: partitions that wait for no record."""
        if self._opened_at is None:
            return None
        if self._events >= self._max_events:
            return "count"
        if self._window_passed(idle):
            return "window"
        if now >= self._opened_at + self._max_wait_s:
            return "wait"
        return None

    def watermark(self, idle: Set[TopicPartition]) -> float | None:
        """Event time that is taken to be complete: the least maximum of partitions that are not idle.

        With all of them idle, the greatest; None before any event.
        """
        return _least(self._maxima, idle)

    def reset(self) -> None:
        """Begin the next phase; the partitions' maxima stay."""
        self._maxima_before = dict(self._maxima)
        self._events = 0
        self._opened_at = self._first_time = self._window_end = None

    def _window_passed(self, idle: Set[TopicPartition]) -> bool:
        if self._window_s == 0 or self._first_time is None:
            return False
        watermark = self.watermark(idle)
        if watermark is None:
            return False
        if self._window_end is None:
            # A phase that begins with a late record gets the first window still open, or each late record would find
            # its own window passed and close a phase alone.
            before = _least(self._maxima_before, idle)
            late = -math.inf if before is None else before - self._allowed_lateness_s
            self._window_end = (math.floor(max(self._first_time, late) / self._window_s) + 1) * self._window_s
        return watermark >= self._window_end + self._allowed_lateness_s


def _least(maxima: Mapping[TopicPartition, float], idle: Set[TopicPartition]) -> float | None:
    active = [time for tp, time in maxima.items() if tp not in idle]
    return min(active) if active else max(maxima.values(), default=None)


class PartitionMerge(Generic[R]):
    """Records of several partitions in one order that depends on the records alone, not on how polls returned them.

    Next is the head with the least (event time, topic, partition). A refused record, which has no time, takes the
    greatest of its partition so far. A partition with nothing buffered blocks until it is filled or caught up,
    because what it holds next may come first; so back-pressure must pause only partitions that have some. Within a
    partition records keep their order.

    partitions: all that are read. maxima: as in `PhaseCutter`, so that a restart goes on in the same order.
    """

    def __init__(
        self, partitions: Iterable[TopicPartition] = (), *, maxima: Mapping[TopicPartition, float] | None = None
    ) -> None:
        self._maxima = dict(maxima or {})
        self._buffers: dict[TopicPartition, deque[tuple[float, R]]] = {}
        self._heads: list[tuple[float, TopicPartition]] = []  # a heap with the head of each buffer that is not empty
        self._empty: set[TopicPartition] = set()
        self._total = 0
        self.read(partitions)

    @property
    def total(self) -> int:
        """Records buffered over all partitions."""
        return self._total

    def buffered(self, tp: TopicPartition) -> int:
        """Records buffered of one partition."""
        return len(self._buffers.get(tp, ()))

    def read(self, partitions: Iterable[TopicPartition]) -> None:
        """Take in further partitions; known ones stay as they are."""
        for tp in partitions:
            if tp not in self._buffers:
                self._buffers[tp] = deque()
                self._empty.add(tp)

    def push(self, tp: TopicPartition, records: Iterable[tuple[R, float | None]]) -> None:
        """Append records of one partition, in offset order, each with its event time or None if it was refused."""
        self.read((tp,))
        buffer, greatest = self._buffers[tp], self._maxima.get(tp, -math.inf)
        for record, event_time in records:
            greatest = greatest if event_time is None else max(greatest, event_time)
            buffer.append((greatest if event_time is None else event_time, record))
            self._total += 1
        self._maxima[tp] = greatest
        if buffer and tp in self._empty:
            self._empty.remove(tp)
            heapq.heappush(self._heads, (buffer[0][0], tp))

    def pop(self, caught_up: Callable[[TopicPartition], bool]) -> tuple[TopicPartition, R] | None:
        """The next record; None where nothing is buffered, or a partition must be read further first."""
        if not self._heads or not all(caught_up(tp) for tp in self._empty):
            return None
        tp = self._heads[0][1]
        buffer = self._buffers[tp]
        _, record = buffer.popleft()
        self._total -= 1
        if buffer:
            heapq.heapreplace(self._heads, (buffer[0][0], tp))
        else:
            heapq.heappop(self._heads)
            self._empty.add(tp)
        return tp, record
