"""Building phases from records in their merged order: pure bookkeeping of what is in, and up to which offsets."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from service.arrivals import Arrival, ClosedPhase, Offsets
from service.config_tables import PhaseConfig
from streams.events import Item
from streams.phases import PhaseCutter
from streams.source_types import TopicPartition


@dataclass(frozen=True, slots=True)
class Entry:
    """One interactions record as it came: `arrival` is None where it could not be used."""

    offset: int
    arrival: Arrival | None


class PhaseBuilder:
    """The phase being collected. With `resume_to`, its end is given: that of an intent written before a crash."""

    def __init__(
        self,
        *,
        config: PhaseConfig,
        positions: Mapping[TopicPartition, int],
        maxima: Mapping[TopicPartition, float],
        resume_to: Offsets | None = None,
    ) -> None:
        self._max_wait_s = config.max_wait_s
        self._cutter = PhaseCutter(
            max_events=config.max_events,
            max_wait_s=config.max_wait_s,
            window_s=config.window_s,
            allowed_lateness_s=config.allowed_lateness_s,
            maxima=maxima,
        )
        self._next = dict(positions)
        self._resume_to = resume_to
        self._later: list[tuple[TopicPartition, int, Arrival | None]] = []
        """Content past the end of the phase being resumed, None where it could not be used: for the one after."""
        self._gaps: list[tuple[TopicPartition, int, int]] = []
        """Interactions that Kafka no longer has, [from, to), as far as no phase has passed them."""
        self._begin()

    @property
    def resuming(self) -> bool:
        """Whether the phase's end is an intent's, not the stream's."""
        return self._resume_to is not None

    def within_resumed(self, tp: TopicPartition, offset: int) -> bool:
        """Whether a record belongs to the phase that is being resumed."""
        return self._resume_to is not None and offset < self._resume_to.get(tp[0], {}).get(tp[1], 0)

    def resumed_whole(self, position: Mapping[TopicPartition, int]) -> bool:
        """Whether reading has reached the end of the phase that is being resumed."""
        assert self._resume_to is not None
        # A topic that was taken out of the configuration since will not be read on.
        return all(position[tp] >= end for tp, end in _flat(self._resume_to).items() if tp in position)

    def add_partition(self, tp: TopicPartition, position: int) -> None:
        """A partition that was added to its topic: its offsets count from here on."""
        self._next.setdefault(tp, position)
        self._start.setdefault(tp, position)

    def lose(self, tp: TopicPartition, wanted: int, beginning: int) -> None:
        """Kafka no longer has the interactions from `wanted` to `beginning`: they count in the phase that passes
        them."""
        self._gaps.append((tp, wanted, beginning))

    def take_content(self, arrival: Arrival, now: float) -> None:
        """An item or user event."""
        tp = (arrival.topic, arrival.partition)
        if self._resume_to is not None and not self.within_resumed(tp, arrival.offset):
            self._later.append((tp, arrival.offset, arrival))
            return
        self._open(now)
        self._content.append(arrival)
        self._next[tp] = arrival.offset + 1

    def pass_content(self, tp: TopicPartition, offset: int) -> None:
        """An item or user record that could not be used: its offset is passed all the same."""
        if self._resume_to is not None and not self.within_resumed(tp, offset):
            self._later.append((tp, offset, None))
        else:
            self._next[tp] = offset + 1

    def take(self, tp: TopicPartition, entry: Entry, now: float) -> None:
        """An interactions record, usable or not, the next in the merged order."""
        self._open(now)
        self._next[tp] = entry.offset + 1
        if entry.arrival is None:
            self._rejected += 1
            self._cutter.add(tp, None, now)
        else:
            self._interactions.append(entry.arrival)
            self._cutter.add(tp, entry.arrival.time, now)

    @property
    def events(self) -> int:
        """Usable interactions so far."""
        return len(self._interactions)

    def closing(self, now: float, idle: set[TopicPartition]) -> str | None:
        """Why the phase should close now, or None."""
        if self._opened_at is None or self._resume_to is not None:
            return None
        waited = now >= self._opened_at + self._max_wait_s  # the cutter does not know of items and users
        return self._cutter.closed(now, idle=idle) or ("wait" if waited else None)

    @property
    def maxima(self) -> dict[TopicPartition, float]:
        """The greatest event time of each partition, of all that was taken."""
        return self._cutter.maxima

    @property
    def empty(self) -> bool:
        """Whether nothing at all has come since the last phase."""
        return self._opened_at is None

    def close(self, *, now: float, at: float, idle: set[TopicPartition], closed_by: str) -> ClosedPhase:
        """Hands over the phase and begins the next one where it ends; `at` is the time of day, in epoch seconds."""
        # A partition added after the intent was written belongs to the phase after.
        end = dict(self._next) if self._resume_to is None else _flat(self._resume_to)
        self._next.update(end)
        phase = ClosedPhase(
            start=_nested({tp: offset for tp, offset in self._start.items() if tp in end}),
            end=_nested(end),
            interactions=self._interactions,
            items=[a for a in self._content if _is_item(a)],
            users=[a for a in self._content if not _is_item(a)],
            rejected=self._rejected,
            lost=self._pass_gaps(end),
            watermark=self._cutter.watermark(idle),
            maxima=dict(sorted(self._cutter.maxima.items())),
            opened_at=at if self._opened_at is None else at - (now - self._opened_at),
            closed_at=at,
            closed_by=closed_by,
        )
        self._resume_to = None
        self._begin()
        later, self._later = self._later, []
        for tp, offset, arrival in later:
            if arrival is None:
                self.pass_content(tp, offset)
            else:
                self.take_content(arrival, now)
        return phase

    def _pass_gaps(self, end: Mapping[TopicPartition, int]) -> int:
        """How many offsets of gaps lie before `end`; forgets these."""
        lost, left = 0, []
        for tp, wanted, beginning in self._gaps:
            passed = min(max(end.get(tp, 0), wanted), beginning)
            lost += passed - wanted
            if passed < beginning:
                left.append((tp, passed, beginning))
        self._gaps = left
        return lost

    def _begin(self) -> None:
        self._cutter.reset()
        self._start = dict(self._next)
        self._interactions: list[Arrival] = []
        self._content: list[Arrival] = []
        self._rejected = 0
        self._opened_at: float | None = None

    def _open(self, now: float) -> None:
        if self._opened_at is None:
            self._opened_at = now


def _is_item(arrival: Arrival) -> bool:
    return isinstance(arrival.event, Item)


def _nested(flat: Mapping[TopicPartition, int]) -> dict[str, dict[int, int]]:
    nested: defaultdict[str, dict[int, int]] = defaultdict(dict)
    for (topic, partition), offset in sorted(flat.items()):
        nested[topic][partition] = offset
    return dict(nested)


def _flat(nested: Offsets) -> dict[TopicPartition, int]:
    return {(topic, p): offset for topic, partitions in nested.items() for p, offset in partitions.items()}
