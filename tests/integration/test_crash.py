"""SIGKILL at every step of a phase: nothing is lost, nothing learned twice, and the weights are those of an
uninterrupted run, bit for bit.

Daemons are real processes on real servers, over four partitions. What they leave is compared, phase by phase, with what
a daemon left that nobody killed; the books are kept from outside. The files tests/crash_*.py have the how.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from service.crash_points import POINTS
from tests import crash_ledger as ledger
from tests.crash_harness import EVENTS, Feed, Life, live, place_on, run_to_the_end
from tests.crash_outcomes import Outcome, differences, latest_outcome, log_differences, outcomes
from tests.daemon_process import Place
from tests.servers import Broker, kafka_kinds, new_redis, redis_kinds

pytestmark = [pytest.mark.servers, pytest.mark.slow, pytest.mark.timeout(900)]

KILLED = -signal.SIGKILL
PAIRS = list(itertools.zip_longest(kafka_kinds(), redis_kinds(), fillvalue="embedded"))
"""Both embedded servers, and both real ones where they are found."""

DELETING = ("tombstones.half", "tombstones.written")
SWEEPING = ("sweep.half",)
"""Reached only after a death that left something half done, and in this order."""
LEAVING_HALVES = ("checkpoint.temporary", "checkpoint.synced")

_numbers = itertools.count(1)


@dataclass
class Servers:
    """A broker, a Redis, and a stream on the broker."""

    broker: Broker
    redis_url: str
    directory: Path

    def feed(self, *, events: int = EVENTS) -> Feed:
        """A stream on new topics, not sent yet."""
        name = f"crash-{next(_numbers)}-{os.getpid()}"
        return Feed.sample({kind: f"{name}-{kind}" for kind in ("interactions", "items", "users")}, events=events)

    def place(self, feed: Feed) -> Place:
        return place_on(feed, self.directory, broker=self.broker.address, redis_url=self.redis_url)


@dataclass
class Reference:
    """A stream, and what a daemon made of it that nobody killed."""

    feed: Feed
    place: Place
    after: dict[int, Outcome]
    seconds: float
    """What it took, for those who want to kill another one in the middle."""


@pytest.fixture(scope="module", params=PAIRS, ids="+".join)
def servers(
    request: pytest.FixtureRequest, brokers: Callable[[str], Broker], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Servers]:
    broker, redis = request.param
    directory = tmp_path_factory.mktemp("crash")
    with ExitStack() as stack:
        store = stack.enter_context(new_redis(redis, directory / "redis"))
        yield Servers(brokers(broker), store.address, directory)


@pytest.fixture(scope="module")
def reference(servers: Servers) -> Reference:
    feed = servers.feed()
    feed.send(servers.broker.producer)
    place = servers.place(feed)
    place.configure(publish={"keep_versions": 100})
    Life(place).kill()  # so that what follows need not wait for the imports
    started = time.monotonic()
    run_to_the_end(place)
    return Reference(feed, place, outcomes(place), time.monotonic() - started)


def faults_so_far(place: Place, reference: Reference) -> list[str]:
    """What is wrong while nobody runs: what is learned differs, or readers find a torn version."""
    found = ledger.pointer_faults(place)
    now = latest_outcome(place)
    return found if now is None else found + differences(now, reference.after[now.phase])


def faults_at_the_end(place: Place, reference: Reference) -> list[str]:
    last = max(reference.after)
    now = latest_outcome(place)
    if now is None or now.phase != last:
        return [f"it ended after phase {now and now.phase}, not {last}"]
    return [
        *differences(now, reference.after[last]),
        *log_differences(place, reference.place),
        *ledger.faults(place, reference.feed),
        *ledger.publication_faults(place),
    ]


def test_the_uninterrupted_run_is_worth_comparing_with(reference: Reference) -> None:
    lines = reference.place.lines()
    assert sorted(reference.after) == list(range(1, len(lines) + 1))
    assert Counter(line.decision for line in lines) == {"promoted": len(lines) - 1, "refused": 1}
    assert len(lines) > 5
    assert faults_at_the_end(reference.place, reference) == []


def test_another_uninterrupted_run_is_equal(servers: Servers, reference: Reference) -> None:
    place = servers.place(reference.feed)
    run_to_the_end(place)
    assert faults_at_the_end(place, reference) == []


def chains() -> list[tuple[str, ...]]:
    """All points but those that need deletions, in rows short enough for one stream: each death may cost a phase."""
    plain = [point for point in POINTS if point not in (*DELETING, *SWEEPING, *LEAVING_HALVES)]
    rows = [plain[start::4] for start in range(4)]
    for row, leaving in zip(rows, LEAVING_HALVES, strict=False):
        row[1:1] = [leaving, *SWEEPING]
    return [tuple(row) for row in rows]


@pytest.mark.parametrize("deaths", chains(), ids="…".join)
def test_killed_at_every_point_it_goes_on_as_if_nothing_had_happened(
    servers: Servers, reference: Reference, deaths: tuple[str, ...]
) -> None:
    place = servers.place(reference.feed)
    for number, point in enumerate(deaths):
        # The first time it can be reached, then the second, so that some also die in a phase they had not resumed.
        times = 1 + (number % 3 == 2 and point not in SWEEPING)
        assert live(place, die_at=f"{point}:{times}") == KILLED, f"{point}:{times} was not reached after {deaths}"
        assert faults_so_far(place, reference) == [], f"dead at {point}, number {number} of {deaths}"
    run_to_the_end(place)
    assert faults_at_the_end(place, reference) == [], f"after {deaths}"


def test_no_point_is_left_out() -> None:
    assert {point for row in chains() for point in row} | set(DELETING) == set(POINTS)


AFTER_THE_SAVE = ("phase.checkpointed", "champion.before", "flip.before", "flip.after")


@pytest.mark.parametrize("point", AFTER_THE_SAVE)
def test_killed_in_the_last_phase_its_version_is_served_by_the_next_start(servers: Servers, point: str) -> None:
    feed = servers.feed(events=500)
    feed.send(servers.broker.producer)
    place = servers.place(feed)
    assert live(place, die_at=f"{point}:2") == KILLED
    assert ledger.pointer_faults(place) == []
    run_to_the_end(place)
    assert [line.decision for line in place.lines()] == ["promoted", "promoted"]
    assert all(line.published_at is not None for line in place.lines())
    assert ledger.publication_faults(place) == []
    assert ledger.faults(place, feed) == []


def test_killed_in_the_middle_of_learning_it_learns_the_phase_anew(servers: Servers, reference: Reference) -> None:
    place = servers.place(reference.feed)
    # Steps of the optimizer since the start: in the first phase, in the second, and past several.
    for step in (5, 19, 3, 40):
        assert live(place, die_at_step=step) == KILLED
        assert faults_so_far(place, reference) == [], f"dead at step {step}"
    run_to_the_end(place)
    assert faults_at_the_end(place, reference) == []


@pytest.mark.parametrize("seed", [1, 2])
def test_killed_at_any_time_it_goes_on_as_if_nothing_had_happened(
    servers: Servers, reference: Reference, seed: int
) -> None:
    place, draw = servers.place(reference.feed), random.Random(seed)
    killed = 0
    for _ in range(12):
        life = Life(place)
        # The first comes early, lest on a machine that is less busy now all is done before it.
        life.join(draw.uniform(0.1, 0.6 if killed else 0.2) * reference.seconds)
        if life.kill() == 0:
            break
        killed += 1
        assert faults_so_far(place, reference) == []
    assert killed
    run_to_the_end(place)
    assert faults_at_the_end(place, reference) == []


@pytest.mark.parametrize("point", [*DELETING, "segments.half", "checkpoint.weights", "phase.checkpointed"])
def test_killed_while_it_forgets_it_forgets_all_the_same(servers: Servers, point: str) -> None:
    feed = servers.feed(events=700)
    later = feed.cut(number=500)
    user, item = feed.gone_after(later)
    sent = feed.send(servers.broker.producer)
    place = servers.place(feed)
    run_to_the_end(place)
    before = latest_outcome(place)
    assert before is not None
    assert all(one.encode() in before.segments["vocabulary"] for one in (user, item))

    feed.delete("users", user)
    feed.delete("items", item)
    feed.sent += later
    feed.send(servers.broker.producer, since=sent)
    assert live(place, die_at=point) == KILLED
    run_to_the_end(place)
    assert ledger.faults(place, feed) == []
    assert ledger.publication_faults(place) == []
    after = latest_outcome(place)
    assert after is not None
    for one in (user, item):
        assert not any(one.encode() in content for content in after.segments.values())
    with place.sink() as sink:
        pointer = sink.pointer()
        assert pointer is not None
        assert sink.read(pointer.version, "users", [user]) == sink.read(pointer.version, "items", [item]) == [None]
