"""What intake hands on: decoded events with the place in Kafka they came from, and the phases cut from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from models.memory import EventBatch
from streams.events import Interaction, Item, Record, User
from streams.source_types import TopicPartition

Offsets = Mapping[str, Mapping[int, int]]
"""Topic → partition → next offset to read."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """One usable event and its record's coordinates."""

    topic: str
    partition: int
    offset: int
    timestamp_s: float
    """The record's Kafka timestamp, seconds since the epoch."""
    event: Interaction | Item | User
    record: Record | None = None
    """What was read, where it may yet become a dead letter."""

    @property
    def time(self) -> float:
        """When it happened: the event's own time, else the record's."""
        return self.timestamp_s if self.event.time is None else self.event.time

    def before(self, offsets: Offsets) -> bool:
        """Whether `offsets`, taken as next offsets to read, have passed this record."""
        return self.offset < offsets.get(self.topic, {}).get(self.partition, 0)


@dataclass(kw_only=True)
class ClosedPhase:
    """A phase as intake closed it: what is in it, up to where, and why it ended."""

    start: Offsets
    end: Offsets
    interactions: list[Arrival] = field(default_factory=list)
    items: list[Arrival] = field(default_factory=list)
    users: list[Arrival] = field(default_factory=list)
    rejected: int = 0
    lost: int = 0
    watermark: float | None = None
    maxima: Mapping[TopicPartition, float] = field(default_factory=dict)
    """The greatest event time of each partition up to here: what the next phase's order rests on."""
    opened_at: float
    closed_at: float
    closed_by: str
    """`count`, `window`, `wait`, `once` or `resumed`."""

    def ordered(self) -> list[Arrival]:
        """Interactions in the order in which they count: event time, topic, partition, offset."""
        return sorted(self.interactions, key=lambda a: (a.time, a.topic, a.partition, a.offset))

    def skipped(self, topic: str) -> int:
        """Offsets of `topic` passed without a record: transaction markers, compaction."""
        passed = sum(end - self.start.get(topic, {}).get(p, 0) for p, end in self.end.get(topic, {}).items())
        return passed - len(self.interactions) - self.rejected - self.lost


def passed(offsets: Offsets, arrivals: Iterable[Arrival]) -> Offsets:
    """`offsets` moved on beyond these, which come in the order of their partitions."""
    moved = {topic: dict(partitions) for topic, partitions in offsets.items()}
    for arrival in arrivals:
        moved.setdefault(arrival.topic, {})[arrival.partition] = arrival.offset + 1
    return moved


def event_batch(interactions: Sequence[Interaction]) -> EventBatch:
    """The columns that models learn from."""
    return EventBatch(
        users=[e.user_id for e in interactions],
        items=[e.item_id for e in interactions],
        actions=[e.action for e in interactions],
        values=np.array([e.value for e in interactions], dtype=np.float32),
        times=np.array([e.time for e in interactions], dtype=np.float64),
    )


def interactions_of(arrivals: Iterable[Arrival]) -> list[Interaction]:
    """The interactions among `arrivals`, in their order."""
    return [a.event for a in arrivals if isinstance(a.event, Interaction)]
