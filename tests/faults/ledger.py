"""The books kept from outside after a fault: every offset in one phase, every event learned once, every id that was
ever announced or seen found by readers."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from models.memory import Memory
from service.checkpoints import CheckpointStore
from service.connections import kafka_source
from streams.simulator_messages import Message
from tests.daemon_process import Place

Event = tuple[str, str, float]
"""User, item and time: what tells an interaction of the simulated worlds from every other."""


@dataclass(frozen=True)
class Books:
    """What the phases say became of the offsets that they passed."""

    events: int
    duplicates: int
    rejected: int
    skipped: int
    lost: int

    @property
    def passed(self) -> int:
        return self.events + self.duplicates + self.rejected + self.skipped + self.lost


def books(place: Place) -> Books:
    """Adds the phases up. Fails where one does not begin where the last ended, or leaves an offset out."""
    lines, topic = place.lines(), place.topics["interactions"]
    assert [line.phase for line in lines] == list(range(1, len(lines) + 1))
    for before, after in itertools.pairwise(lines):
        for name, ends in before.end.items():
            # A partition that was added since begins where it was found.
            assert {p: at for p, at in after.start[name].items() if p in ends} == ends
        assert (after.version or 0) > (before.version or 0)
    names = ("events", "duplicates", "rejected", "skipped", "lost")
    for line in lines:
        passed = sum(end - line.start[topic].get(p, 0) for p, end in line.end[topic].items())
        assert passed == sum(getattr(line, name) for name in names), f"phase {line.phase} leaves offsets out"
    return Books(**{name: sum(getattr(line, name) for line in lines) for name in names})


def unlearned(place: Place, sent: Iterable[Message]) -> Counter[Event]:
    """Interactions among `sent` that the latest checkpoint has not learned. Fails for one that was learned twice, or
    that nobody sent."""
    wanted: Counter[Event] = Counter()
    for message in sent:
        if message.kind == "interactions":
            body = json.loads(message.value)
            wanted[str(body["user_id"]), str(body["item_id"]), float(body["time"])] += 1
    learned = _learned(place)
    assert not learned - wanted, f"{(learned - wanted).total()} events were learned twice, or never sent"
    return wanted - learned


def _learned(place: Place) -> Counter[Event]:
    store = CheckpointStore(place.state_dir, keep_versions=2)
    segments: dict[str, Any] = dict(store.load(store.latest() or 0).segments)
    segments.pop("event_ids", None)
    memory = Memory.restore(place.config.model, place.config.train.actions, segments)
    log = memory.view()
    users, items = memory.users.ids, memory.items.ids
    return Counter(
        (str(users[user]), str(items[item]), time)
        for user, item, time in zip(log.user.tolist(), log.item.tolist(), log.time.tolist(), strict=True)
    )


def offsets_unread(place: Place) -> int:
    """How many offsets of the interactions topic no phase has passed."""
    source = kafka_source(place.config, topics=[place.topics["interactions"]], group=False)
    try:
        end = source.end()
    finally:
        source.close()
    lines = place.lines()
    reached = lines[-1].end if lines else {}
    return sum(offset - reached.get(topic, {}).get(partition, 0) for (topic, partition), offset in end.items())


def missing_from_redis(place: Place, sent: Iterable[Message]) -> list[str]:
    """Ids of `sent` for whom readers of the served version find no vector; all of them if nothing is served."""
    ids: dict[str, set[str]] = {"items": set(), "users": set()}
    for message in sent:
        body = json.loads(message.value)
        ids["items"] |= {str(body["item_id"])} if "item_id" in body else set()
        ids["users"] |= {str(body["user_id"])} if "user_id" in body else set()
    with place.sink() as sink:
        pointer = sink.pointer()
        if pointer is None:
            return sorted(ids["items"] | ids["users"])
        return [
            one
            for kind, known in ids.items()
            for one, raw in zip(sorted(known), sink.read(pointer.version, kind, sorted(known)), strict=True)  # type: ignore[arg-type]
            if raw is None or len(raw) != 4 * pointer.dim
        ]
