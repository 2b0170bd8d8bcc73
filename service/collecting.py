"""Step 1 of a phase: which of its interactions count, in which order; what its item and user events say; and how all of
it comes into memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from models.memory import EventBatch, Memory
from service.arrivals import Arrival, ClosedPhase, event_batch, interactions_of
from service.dedupe import Deduplicator
from service.id_limits import IdLimits
from service.tombstones import Tombstone
from streams.events import Interaction, Item, User


@dataclass(kw_only=True)
class Collected:
    """A phase's interactions in the order that counts, without duplicates."""

    batch: EventBatch
    event_ids: list[str | None]
    duplicates: int
    late: int
    content: list[Arrival]
    """Item and user events; those of one id stand together, in the order of their offsets."""
    over: list[Arrival]
    """What would bring an id beyond a limit: dead letters."""

    @property
    def over_limit(self) -> int:
        """How many of `over` are interactions."""
        return sum(isinstance(arrival.event, Interaction) for arrival in self.over)


def collect(
    phase: ClosedPhase, *, dedupe: Deduplicator, late_before: float | None, limits: IdLimits, memory: Memory
) -> Collected:
    """Sorts by event time and offset, drops duplicates, then what would bring `memory` ids beyond the limits, and
    counts events before `late_before` (they are learned)."""
    ordered = phase.ordered()
    repeated = dedupe.duplicates([event.event_id for event in interactions_of(ordered)])
    once = [arrival for arrival, again in zip(ordered, repeated, strict=True) if not again]
    within = limits.keep(memory, _in_order([*phase.items, *phase.users]), once)
    kept = interactions_of(within.interactions)
    batch = event_batch(kept)
    return Collected(
        batch=batch,
        event_ids=[event.event_id for event in kept],
        duplicates=int(repeated.sum()),
        late=0 if late_before is None else int((batch.times < late_before).sum()),
        content=within.content,
        over=within.over,
    )


def announcement_order(
    item_id: str, time: float, features: Mapping[str, NDArray[np.float32]]
) -> tuple[float, int, str]:
    """Sorts announcements: by time, then by content, then by id.

    The items of one moment come in any order, for a broker's partitions have none between them; told to memory in this
    one, they get the same rows each time, and the same is learned.
    """
    digest = 0
    for name in sorted(features):
        digest = crc32(features[name].astype(np.float32, copy=False).tobytes(), digest)
    return time, digest, item_id


def _in_order(content: list[Arrival]) -> list[Arrival]:
    """By the first announcement of each id, whatever partition it came from; then by offset."""
    content = sorted(content, key=lambda arrival: (arrival.topic, arrival.partition, arrival.offset))
    first: dict[tuple[str, str], tuple[float, int, str]] = {}
    keys = []
    for arrival in content:
        event = arrival.event
        assert not isinstance(event, Interaction)
        id_ = _id(event)
        order = first.setdefault((arrival.topic, id_), announcement_order(id_, arrival.time, event.features))
        keys.append((arrival.topic, *order))
    # sorting is stable: one id's events keep their order
    return [content[place] for place in sorted(range(len(content)), key=keys.__getitem__)]


def apply_content(memory: Memory, content: Iterable[Arrival], *, cluster_id: str | None) -> list[Tombstone]:
    """Tells memory of item and user events; returns a tombstone for each deletion among them."""
    stones = []
    for arrival in content:
        event = arrival.event
        if isinstance(event, Interaction):
            raise TypeError("An interaction is no content; collect it instead.")
        if event.deleted:
            _forget(memory, event)
            stones.append(_tombstone(arrival, event, cluster_id))
        elif isinstance(event, Item):
            attributes = event.attributes if event.text is None else {"text": event.text, **event.attributes}
            memory.announce(event.item_id, arrival.time, event.features, attributes)
        else:
            memory.enrol(event.user_id, arrival.time, event.features)
    return stones


def remember(memory: Memory, collected: Collected) -> range:
    """Appends the phase's interactions to memory, after its content was applied; returns their log positions.

    What was done before a deletion must not bring the id back: it is forgotten once more behind the last such event.
    """
    first, done, batch = memory.n_events, 0, collected.batch
    for time, event in _deletions_that_stand(collected.content):
        upto = int(np.searchsorted(batch.times, time, side="right"))
        memory.append(batch[done:upto])
        _forget(memory, event)
        done = upto
    memory.append(batch[done:])
    return range(first, memory.n_events)


def _deletions_that_stand(content: Iterable[Arrival]) -> list[tuple[float, Item | User]]:
    """When, and what; those that a later announcement took back are not among them. In the order of time."""
    last: dict[tuple[str, str], Arrival] = {}
    for arrival in content:
        if isinstance(arrival.event, Item | User):
            last[arrival.topic, _id(arrival.event)] = arrival
    standing = [(a.time, a.event) for a in last.values() if isinstance(a.event, Item | User) and a.event.deleted]
    return sorted(standing, key=lambda one: one[0])


def _forget(memory: Memory, event: Item | User) -> None:
    if isinstance(event, Item):
        memory.forget_item(event.item_id)
    else:
        memory.forget_user(event.user_id)


def _id(event: Item | User) -> str:
    return event.item_id if isinstance(event, Item) else event.user_id


def _tombstone(arrival: Arrival, event: Item | User, cluster_id: str | None) -> Tombstone:
    return Tombstone(
        kind="items" if isinstance(event, Item) else "users",
        id=_id(event),
        time=arrival.timestamp_s,
        topic=arrival.topic,
        partition=arrival.partition,
        offset=arrival.offset,
        cluster_id=cluster_id,
    )
