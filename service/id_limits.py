"""How many ids a phase may bring and the memory may hold: a flood of invented ones goes to the dead letters.

Decided as a phase is collected, from its records in their order and what its parent knows, so that a phase that is done
again decides the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from models.memory import Memory
from service.arrivals import Arrival
from service.config_tables import EventsConfig
from streams.event_values import TOO_MANY_IDS
from streams.events import Interaction, Item, Record

__all__ = ["TOO_MANY_IDS", "IdLimits", "Kept"]

KEPT_BYTES = 16_384
"""Of a value, for the dead letter of a record that may turn out to be one too many."""


@dataclass
class Kept:
    """What of a phase is within the limits, in its order, and what is not."""

    content: list[Arrival] = field(default_factory=list)
    interactions: list[Arrival] = field(default_factory=list)
    over: list[Arrival] = field(default_factory=list)


class IdLimits:
    """`[events] max_new_ids`, `max_users` and `max_items`."""

    def __init__(self, events: EventsConfig) -> None:
        self._new = events.max_new_ids
        self._most = {"users": events.max_users, "items": events.max_items}

    def phase_in_reach(self, interactions: int) -> bool:
        """Whether a phase of so many could bring too many ids."""
        return interactions > self._new

    def totals_in_reach(self, *, users: int, items: int, coming: int) -> bool:
        """Whether one of `coming` records could be too many, beside so many ids that are known."""
        return users + coming > self._most["users"] or items + coming > self._most["items"]

    def keep(self, memory: Memory, content: Sequence[Arrival], interactions: Sequence[Arrival]) -> Kept:
        """What `memory` takes of a phase: all but what would bring an id beyond a limit."""
        known = {"users": len(memory.users), "items": len(memory.items)}
        in_reach = self.totals_in_reach(**known, coming=len(content) + len(interactions))
        if not in_reach and not self.phase_in_reach(len(interactions)):
            return Kept(list(content), list(interactions))
        kept, count = Kept(), _Counted(memory)
        for arrival in content:
            new = count.new_in(arrival)
            if all(known[kind] + len(count.new[kind]) < self._most[kind] for kind, _ in new):
                count.add(new)
                kept.content.append(arrival)
            else:
                kept.over.append(arrival)
        announced = {kind: len(ids) for kind, ids in count.new.items()}
        for arrival in interactions:
            new = count.new_in(arrival)
            room = {
                kind: min(self._most[kind] - known[kind] - len(ids), self._new - len(ids) + announced[kind])
                for kind, ids in count.new.items()
            }
            if all(room[kind] > 0 for kind, _ in new):
                count.add(new)
                kept.interactions.append(arrival)
            else:
                kept.over.append(arrival)
        return kept


class _Counted:
    """Ids that a phase brings, by kind."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self.new: dict[str, set[str]] = {"users": set(), "items": set()}

    def new_in(self, arrival: Arrival) -> list[tuple[str, str]]:
        """Kind and id of what this would add."""
        event = arrival.event
        if isinstance(event, Interaction):
            named = [("users", event.user_id), ("items", event.item_id)]
        elif event.deleted:
            return []
        else:
            named = [("items", event.item_id) if isinstance(event, Item) else ("users", event.user_id)]
        rows = {"users": self._memory.user_index, "items": self._memory.item_index}
        return [(kind, one) for kind, one in named if one not in self.new[kind] and rows[kind](one) is None]

    def add(self, new: list[tuple[str, str]]) -> None:
        for kind, one in new:
            self.new[kind].add(one)


def to_keep(record: Record) -> Record:
    """A record as it is kept until its phase is collected: the beginning of it, if it is large."""
    value = record.value
    if value is None or len(value) <= KEPT_BYTES:
        return record
    return Record(
        record.topic, record.partition, record.offset, record.timestamp_ms, record.key, value[:KEPT_BYTES],
        record.headers,
    )  # fmt: skip


def letter_of(arrival: Arrival) -> tuple[Record, str]:
    """The record to write a dead letter about, and its detail. Its bytes are in it where they were kept."""
    detail = "It names an id beyond `max_new_ids`, `max_users` or `max_items` of [events]."
    if arrival.record is not None:
        return arrival.record, detail
    stamp = round(arrival.timestamp_s * 1000)
    record = Record(arrival.topic, arrival.partition, arrival.offset, stamp, None, None)
    return record, f"{detail} Its bytes are where it was read."
