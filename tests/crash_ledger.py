"""The books kept from outside: every event learned once, every offset in one phase, and readers who find what the
pointer promises."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable
from typing import Any

from models.memory import Memory
from models.serving import Snapshot
from service.checkpoints import CheckpointStore
from streams.redis_keys import Pointer, vector_bytes
from tests.crash_harness import Feed
from tests.daemon_process import Place


def faults(place: Place, feed: Feed) -> list[str]:
    """What the books do not account for: offsets in no phase or in two, events not learned or learned twice."""
    return [*_faults_of_lines(place, feed), *_faults_of_log(place, feed)]


def _faults_of_lines(place: Place, feed: Feed) -> Iterable[str]:
    lines, topic = place.lines(), feed.topics["interactions"]
    if [line.phase for line in lines] != list(range(1, len(lines) + 1)):
        yield f"phases {[line.phase for line in lines]}"
    for before, after in itertools.pairwise(lines):
        if after.start != before.end:
            yield f"phase {after.phase} starts where phase {before.phase} does not end"
    for line in lines:
        passed = sum(end - line.start[topic][p] for p, end in line.end[topic].items())
        booked = line.events + line.duplicates + line.rejected + line.skipped + line.lost
        if passed != booked or min(line.events, line.duplicates, line.rejected, line.skipped, line.lost) < 0:
            yield f"phase {line.phase} passed {passed} offsets and booked {booked}"
    for name, wanted in (
        ("events", len(feed.interactions())),
        ("duplicates", feed.repeated),
        ("rejected", feed.unusable),
        ("skipped", 0),
        ("lost", 0),
        ("items", sum(m.kind == "items" for m in feed.sent)),
        ("users", sum(m.kind == "users" for m in feed.sent)),
    ):
        counted = sum(getattr(line, name) for line in lines)
        if counted != wanted:
            yield f"{counted} {name} booked of {wanted}"
    sent = sum(m.kind == "interactions" for m in feed.sent)
    if lines and (sum(lines[0].start[topic].values()), sum(lines[-1].end[topic].values())) != (0, sent):
        yield f"the phases do not reach from 0 to {sent}"


def _faults_of_log(place: Place, feed: Feed) -> Iterable[str]:
    remembered = _memory(place)
    log = remembered.view()
    learned = Counter(
        (remembered.users.ids[user] if user >= 0 else None, remembered.items.ids[item] if item >= 0 else None, time)
        for user, item, time in zip(log.user.tolist(), log.item.tolist(), log.time.tolist(), strict=True)
    )
    if missing := feed.interactions() - learned:
        yield f"{missing.total()} events were not learned"
    if too_many := learned - feed.interactions():
        yield f"{too_many.total()} events were learned that should not, or twice"


def _memory(place: Place) -> Memory:
    store = CheckpointStore(place.state_dir, keep_versions=2)
    segments: dict[str, Any] = dict(store.load(store.latest() or 0).segments)
    segments.pop("event_ids", None)
    return Memory.restore(place.config.model, place.config.train.actions, segments)


def pointer_faults(place: Place) -> list[str]:
    """Whether readers, at this very moment, find less than the pointer promises."""
    with place.sink() as sink:
        pointer = sink.pointer()
        if pointer is None:
            return []
        found = {kind: sink.count(pointer.version, kind) for kind in ("items", "users")}
    short = [kind for kind, there in found.items() if there < getattr(pointer, kind)]
    return [f"version {pointer.version} lacks {kind}: {found}" for kind in short]


def publication_faults(place: Place) -> list[str]:
    """Whether readers find the champion, whole, and vectors that its weights give."""
    store = CheckpointStore(place.state_dir, keep_versions=2)
    champion, latest = store.champion(), store.latest()
    assert champion is not None
    with place.sink() as sink:
        pointer = sink.pointer()
        if pointer is None or pointer.version != champion:
            return [f"the pointer is at {pointer and pointer.version}, not at {champion}"]
        memory = _memory(place)
        snapshot = Snapshot.build(
            place.config.model, store.load(champion).state["trainer"]["learner"], memory, version=champion
        )
        found = [*pointer_faults(place)]
        for kind, ids in (("items", snapshot.item_ids), ("users", snapshot.user_ids())):
            stored = sink.read(champion, kind, ids)  # type: ignore[arg-type]
            if None in stored:
                found.append(f"{stored.count(None)} {kind} are not there")
            elif champion == latest:
                wanted = snapshot.vectors(kind)  # type: ignore[arg-type]
                if [vector_bytes(row) for row in wanted] != stored:
                    found.append(f"the {kind}' vectors are not those of version {champion}")
        found += _leftovers(sink.versions(), pointer)
    return found


def _leftovers(versions: set[int], pointer: Pointer) -> list[str]:
    # The one before lives on for its grace period; any other was cut short and swept, or is about to expire too.
    return [] if pointer.version in versions else [f"version {pointer.version} has no keys"]
