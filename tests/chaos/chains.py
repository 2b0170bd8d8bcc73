"""Chains of lives: one state directory, one stream, and a death after the other, each looked into before the next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import msgspec

from service.crash_points import POINTS
from tests.chaos.arena import Reference, Servers, clear, findings_at_the_end, findings_so_far
from tests.chaos.feed import Feed
from tests.chaos.ledger import Finding, book_findings, witness_findings
from tests.chaos.lives import KILLED, Death, live, said
from tests.chaos.outcomes import latest_outcome
from tests.chaos.readers import champion_findings, pointer_findings, publication_findings
from tests.chaos.remains import Remains
from tests.chaos.schedule import Schedule
from tests.daemon_process import Place

LONGEST_CHAIN = 30
"""Kills, after which a chain goes to its end, wherever it is: what it may have gathered has to show."""
CHAINS_BETWEEN = 8
"""Other chains between two that forget."""
PORTION = 120
"""Events between two deletions of a chain that forgets."""


@dataclass
class Tally:
    """What was done, and what was found."""

    kills: Counter[str] = field(default_factory=Counter)
    """By point, or by the kind of a random one."""
    chains: int = 0
    findings: list[tuple[str, Finding]] = field(default_factory=list)
    """After which deaths, and what."""

    @property
    def total(self) -> int:
        return self.kills.total()

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.kills + other.kills, self.chains + other.chains, self.findings + other.findings)

    def count(self, death: Death) -> None:
        self.kills[death.name or death.kind] += 1

    def found(self, history: list[str], findings: list[Finding]) -> bool:
        """Notes what was found; whether there was anything."""
        self.findings += [(", ".join(history), finding) for finding in findings]
        return bool(findings)


def run_chain(
    servers: Servers,
    reference: Reference,
    schedule: Schedule,
    tally: Tally,
    progress: Callable[[], None] = lambda: None,
) -> None:
    """Lives on the reference's stream, killed as the schedule has it, until it is learned to its end."""
    place, history, to_come = servers.place(reference.feed), list[str](), reference.phases
    tally.chains += 1
    while len(history) < LONGEST_CHAIN:
        last = to_come <= 1
        death = schedule.last(to_come) if last else schedule.take(place)
        if death is None:
            break
        code = live(place, death)
        if code == 0:
            if not last:
                schedule.give_back(death)
            break
        history.append(str(death))
        if _not_killed(code, place, history, tally):
            return
        tally.count(death)
        schedule.happened(death)
        progress()
        left = Remains(place)
        if tally.found(history, findings_so_far(servers, left, reference)):
            return
        to_come = reference.phases - (left.lines[-1].phase if left.lines else 0)
        if last:
            break
    if not _not_ended(live(place), place, history, tally):
        tally.found(history, findings_at_the_end(servers, Remains(place), reference))
    if not tally.findings:
        clear(place)


def _not_killed(code: int, place: Place, history: list[str], tally: Tally) -> bool:
    return code != KILLED and tally.found(history, [Finding("life", f"exit code {code}: {said(place)}")])


def _not_ended(code: int, place: Place, history: list[str], tally: Tally) -> bool:
    return code != 0 and tally.found(history, [Finding("life", f"exit code {code}: {said(place)}")])


def run_forgetting_chain(
    servers: Servers, schedule: Schedule, tally: Tally, progress: Callable[[], None] = lambda: None
) -> None:
    """Lives on a stream that grows by a portion at a time, each with a user and an item deleted in it; killed at what
    only deletions reach, and anywhere else."""
    feed = servers.feed(events=900)
    later = feed.cut(number=400)
    sent, history = feed.send(servers.producer), list[str]()
    place = servers.place(feed)
    tally.chains += 1
    gone: list[str] = []
    if _not_ended(live(place), place, history, tally):
        return
    while later and any(schedule.forgetting.values()):
        if (names := feed.gone_after(later)) is not None:
            feed.delete("users", names[0])
            feed.delete("items", names[1])
            gone += names
        start = later[0].number
        portion = Feed(feed.topics, later)
        later = portion.cut(number=start + PORTION)
        feed.sent += portion.sent
        sent = feed.send(servers.producer, since=sent)
        for death in _deaths_of_a_portion(schedule):
            code = live(place, death)
            if code == 0:
                break  # nothing is left to be killed at in this portion
            history.append(str(death))
            if _not_killed(code, place, history, tally):
                return
            tally.count(death)
            schedule.forgetting[death.name] = max(0, schedule.forgetting.get(death.name, 0) - 1)
            progress()
            if tally.found(history, [*_while_it_forgets(Remains(place), gone)]):
                return
        if _not_ended(live(place), place, history, tally):
            return
        records = feed.interactions(servers.broker)
        left = Remains(place)
        found = [*_while_it_forgets(left, gone), *_forgotten(left, gone)]
        found += [*book_findings(left, feed, records, whole=True), *witness_findings(left, histories=False)]
        if tally.found(history, found):
            return
    clear(place)


def _deaths_of_a_portion(schedule: Schedule) -> list[Death]:
    return [Death("point", point) for point, count in schedule.forgetting.items() if count > 0]


def _while_it_forgets(left: Remains, gone: list[str]) -> Iterator[Finding]:
    yield from champion_findings(left)
    with left.place.sink() as sink:
        yield from pointer_findings(left, sink, gone)


def _forgotten(left: Remains, gone: list[str]) -> Iterator[Finding]:
    """Whether what was deleted is in neither the last checkpoint nor in front of readers."""
    after, champion = latest_outcome(left), left.champion
    with left.place.sink() as sink:
        yield from publication_findings(left, sink, gone)
        for one in gone:
            # Ids stand in the vocabulary alone; the others have its rows, and floats, which may look like a short id.
            if after is None or msgspec.msgpack.encode(one) in after.segments["vocabulary"]:
                yield Finding("forgotten", f"{one} is still in the last checkpoint")
            if champion is not None and sink.read(champion, "users", [one]) != [None]:
                yield Finding("forgotten", f"the user {one} is still in front of readers")
            if champion is not None and sink.read(champion, "items", [one]) != [None]:
                yield Finding("forgotten", f"the item {one} is still in front of readers")


def run(servers: Servers, *, kills: int, seed: int, progress: Callable[[Tally], None] = lambda _tally: None) -> Tally:
    """So many kills: at every named point, and at random."""
    reference, tally = Reference.run(servers), Tally()
    decisions = Counter(line.decision for line in reference.place.lines())
    if decisions["refused"] != 1 or decisions["promoted"] < 5:
        tally.found([], [Finding("state", f"the uninterrupted run is not worth comparing with: {decisions}")])
    if tally.found([], findings_at_the_end(servers, Remains(reference.place), reference)):
        return tally
    schedule = Schedule(kills=kills, seed=seed, run_s=reference.seconds)
    stopped = False
    try:
        while (schedule or any(schedule.forgetting.values())) and not tally.findings:
            # the two kinds in turn, so that a run that is stopped early has had some of both
            if any(schedule.forgetting.values()) and (not schedule or tally.chains % CHAINS_BETWEEN == 0):
                run_forgetting_chain(servers, schedule, tally, lambda: progress(tally))
            if schedule and not tally.findings:
                run_chain(servers, reference, schedule, tally, lambda: progress(tally))
    except KeyboardInterrupt:
        stopped = True  # what there is by now is told all the same
    if stopped:
        return tally
    for death in schedule.unreachable:
        tally.found([], [Finding("points", f"{death} was never reached")])
    for point in POINTS:
        if not tally.kills[point] and not tally.findings:
            tally.found([], [Finding("points", f"nobody died at {point}")])
    return tally
