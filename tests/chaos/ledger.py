"""The books kept from outside: what became of every record of the broker, by topic, partition and offset.

What was sent is read back from the broker; what was learned, from the last checkpoint's segments and from the witness
beside the process. Where the two differ, a line says so.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from models.memory import Memory
from service.dedupe import hash_ids
from service.manifest import Manifest
from service.phase_log import PhaseLine
from tests.chaos.feed import Feed, RecordId, Sent
from tests.chaos.remains import Remains
from tests.chaos.witness import Seen, wrong_histories

Records = Mapping[RecordId, Sent]


class Finding(NamedTuple):
    """Something that must not be."""

    check: str
    """Which of the checks found it."""
    text: str


class Booked(NamedTuple):
    """What one phase made of the records between its offsets."""

    line: PhaseLine
    events: list[RecordId]
    """Those that count, in the order in which they are learned."""
    duplicates: int
    unusable: int


def book_findings(left: Remains, feed: Feed, records: Records, *, whole: bool) -> Iterator[Finding]:
    """Lost and repeated events, and lines that do not add up; `whole` where all that was sent must be learned."""
    latest = left.latest
    if latest is None:
        if whole:
            yield Finding("lost", "there is no checkpoint")
        return
    lines, manifest = left.lines, left.store.manifest(latest)
    yield from _lines_that_do_not_fit(feed, lines, manifest)
    phases = list(_booked(feed, records, lines))
    for one in phases:
        counts = (one.line.events, one.line.duplicates, one.line.rejected, one.line.skipped, one.line.lost)
        if counts != (len(one.events), one.duplicates, one.unusable, 0, 0):
            expected = (len(one.events), one.duplicates, one.unusable, 0, 0)
            yield Finding("books", f"phase {one.line.phase} booked {counts} and passed {expected}")
    places = [place for one in phases for place in one.events]
    yield from _log_findings(left.memory(latest), feed, records, places, manifest)
    stored = b"".join(left.segments(latest).get("event_ids", ()))
    if stored != hash_ids([str(records[place].event_id) for place in places]).astype("<u8").tobytes():
        yield Finding("books", "the remembered event ids are not those of the events that were learned")
    if whole:
        yield from _never_read(records, {place for one in phases for place in _between(records, one.line, feed)})


def _lines_that_do_not_fit(feed: Feed, lines: Sequence[PhaseLine], manifest: Manifest) -> Iterator[Finding]:
    if [line.phase for line in lines] != list(range(1, len(lines) + 1)):
        yield Finding("books", f"phases {[line.phase for line in lines]}")
    topic = feed.topics["interactions"]
    if any(lines[0].start.get(topic, {}).values()):
        yield Finding("lost", f"phase 1 starts at {lines[0].start}")
    for before, after in itertools.pairwise(lines):
        for name, partitions in after.start.items():
            for number, start in partitions.items():
                end = before.end.get(name, {}).get(number, 0)
                if start != end:
                    what = "lost" if start > end else "twice"
                    where = f"phase {after.phase} starts at offset {start} of {name}[{number}], phase {before.phase}"
                    yield Finding(what, f"{where} ends at {end}")
    if lines[-1].end != manifest.offsets:
        yield Finding("books", "the last checkpoint's offsets are not those of its phase")


def _booked(feed: Feed, records: Records, lines: Iterable[PhaseLine]) -> Iterator[Booked]:
    seen: set[str] = set()
    for line in lines:
        between = _between(records, line, feed)
        usable = sorted((place for place in between if records[place].event_id is not None), key=_order(records))
        events = []
        for place in usable:
            if (event_id := str(records[place].event_id)) not in seen:
                seen.add(event_id)
                events.append(place)
        yield Booked(line, events, len(usable) - len(events), len(between) - len(usable))


def _order(records: Records) -> Any:
    return lambda place: (records[place].time, *place)


def _between(records: Records, line: PhaseLine, feed: Feed) -> list[RecordId]:
    topic = feed.topics["interactions"]
    spans = {p: range(line.start[topic].get(p, 0), end) for p, end in line.end[topic].items()}
    return [place for p, span in spans.items() for offset in span if (place := (topic, p, offset)) in records]


def _log_findings(
    memory: Memory, feed: Feed, records: Records, places: Sequence[RecordId], manifest: Manifest
) -> Iterator[Finding]:
    """Whether the log of events is made of these records, each once, in this order."""
    log = memory.view()
    learned = [
        (memory.users.ids[user] if user >= 0 else None, memory.items.ids[item] if item >= 0 else None, time)
        for user, item, time in zip(log.user.tolist(), log.item.tolist(), log.time.tolist(), strict=True)
    ]
    gone = {
        one
        for one, (topic, partition, offset) in feed.deleted.items()
        if offset < manifest.offsets.get(topic, {}).get(partition, 0)
    }

    def wanted(sent: Sent) -> tuple[str | None, str | None, float]:
        nobody = sent.user in gone  # with whom goes what they did
        return None if nobody else sent.user, None if nobody or sent.item in gone else sent.item, sent.time

    expected = [wanted(records[place]) for place in places]
    if learned == expected:
        return
    missing, more = Counter(expected) - Counter(learned), Counter(learned) - Counter(expected)
    if missing:
        first = next(place for place in places if wanted(records[place]) in missing)
        yield Finding("lost", f"{missing.total()} events are not in the log, the first of them {first}")
    if more:
        yield Finding("twice", f"{more.total()} events are in the log twice, or should not be")
    if not missing and not more:
        yield Finding("state", "the log has another order than time, partition and offset give")


def _never_read(records: Records, read: set[RecordId]) -> Iterator[Finding]:
    if unread := sorted(records.keys() - read):
        yield Finding("lost", f"{len(unread)} records are in no phase, the first of them {unread[0]}")


def witness_findings(left: Remains, *, histories: bool = True) -> Iterator[Finding]:
    """What the learner was given as new, attempt by attempt: over all phases, each place of the log exactly once; and
    every example with the history of its own time."""
    if left.latest is None:
        return
    phases = {line.phase for line in left.lines if line.decision != "empty"}
    attempts = [one for one in left.testimony if one.phase in phases]
    last: dict[int, Seen] = {}
    for one in attempts:
        if one.phase in last and one != last[one.phase]:
            yield Finding("state", f"phase {one.phase} was learned from other examples when it was done again")
        last[one.phase] = one
    if unseen := sorted(phases - last.keys()):
        yield Finding("lost", f"nobody saw phases {unseen} being learned")
    held_out = left.checkpoint(left.latest).state["trainer"]["held_out"][0]
    times = Counter(at for one in last.values() for at in one.new)
    if twice := sum(count > 1 for count in times.values()):
        yield Finding("twice", f"{twice} events were new to the learner more than once")
    if never := held_out - len(times.keys() & set(range(held_out))):
        yield Finding("lost", f"{never} events were never new to the learner")
    if early := times.keys() - set(range(held_out)):
        yield Finding("twice", f"{len(early)} events were learned that are still held out")
    if histories:
        log = left.memory(left.latest).view()
        for text in wrong_histories(list(last.values()), log.user, log.item, np.asarray(log.time)):
            yield Finding("history", text)
