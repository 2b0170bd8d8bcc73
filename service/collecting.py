"""Step 1 of a phase: which of its interactions count, in which order; and what its item and user events say."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from models.memory import EventBatch, Memory
from service.arrivals import Arrival, ClosedPhase, event_batch, interactions_of
from service.dedupe import Deduplicator
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
    """Item and user events in the order of their offsets."""


def collect(phase: ClosedPhase, *, dedupe: Deduplicator, late_before: float | None) -> Collected:
    """Sorts by event time and offset, drops duplicates, and counts events before `late_before` (they are learned)."""
    interactions = interactions_of(phase.ordered())
    repeated = dedupe.duplicates([event.event_id for event in interactions])
    kept = [event for event, again in zip(interactions, repeated, strict=True) if not again]
    batch = event_batch(kept)
    return Collected(
        batch=batch,
        event_ids=[event.event_id for event in kept],
        duplicates=int(repeated.sum()),
        late=0 if late_before is None else int((batch.times < late_before).sum()),
        content=sorted([*phase.items, *phase.users], key=lambda a: (a.topic, a.partition, a.offset)),
    )


def apply_content(memory: Memory, content: Iterable[Arrival], *, cluster_id: str | None) -> list[Tombstone]:
    """Tells memory of item and user events; returns a tombstone for each deletion among them."""
    stones = []
    for arrival in content:
        event = arrival.event
        if isinstance(event, Interaction):
            raise TypeError("An interaction is no content; collect it instead.")
        if event.deleted:
            stones.append(_forget(memory, arrival, event, cluster_id))
        elif isinstance(event, Item):
            attributes = event.attributes if event.text is None else {"text": event.text, **event.attributes}
            memory.announce(event.item_id, arrival.time, event.features, attributes)
        else:
            memory.enrol(event.user_id, arrival.time, event.features)
    return stones


def _forget(memory: Memory, arrival: Arrival, event: Item | User, cluster_id: str | None) -> Tombstone:
    if isinstance(event, Item):
        memory.forget_item(event.item_id)
    else:
        memory.forget_user(event.user_id)
    return Tombstone(
        kind="items" if isinstance(event, Item) else "users",
        id=event.item_id if isinstance(event, Item) else event.user_id,
        time=arrival.timestamp_s,
        topic=arrival.topic,
        partition=arrival.partition,
        offset=arrival.offset,
        cluster_id=cluster_id,
    )
