"""Where daemons are killed: a broker, a Redis, a stream, and what a daemon made of it that nobody killed."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streams.kafka_connection import connected_admin
from streams.kafka_producer import EventProducer
from tests.chaos.feed import EVENTS, Feed
from tests.chaos.ledger import Finding, Records, book_findings, witness_findings
from tests.chaos.lives import Life, place_on, run_to_the_end
from tests.chaos.outcomes import Outcome, differences, latest_outcome, log_differences, outcomes
from tests.chaos.readers import champion_findings, pointer_findings, publication_findings
from tests.chaos.remains import Remains
from tests.daemon_process import Place

_numbers = itertools.count(1)


@dataclass
class Servers:
    """A broker and a Redis that chains of lives share."""

    broker: str
    """`host:port`."""
    producer: EventProducer
    redis_url: str
    directory: Path

    def __post_init__(self) -> None:
        self.admin: Any = connected_admin({"bootstrap_servers": [self.broker]})

    def close(self) -> None:
        self.admin.close()

    def feed(self, *, events: int = EVENTS) -> Feed:
        """A stream on new topics, not sent yet."""
        name = f"crash-{next(_numbers)}-{os.getpid()}"
        return Feed.sample({kind: f"{name}-{kind}" for kind in ("interactions", "items", "users")}, events=events)

    def place(self, feed: Feed) -> Place:
        return place_on(feed, self.directory, broker=self.broker, redis_url=self.redis_url)

    def committed_findings(self, left: Remains) -> Iterator[Finding]:
        """Whether the consumer group, which lag tools read, is ahead of the checkpoint."""
        offsets = {} if left.latest is None else left.store.manifest(left.latest).offsets
        group = left.config.kafka.group_id
        for tp, at in self.admin.list_group_offsets(group)[group].items():
            if at.offset > (saved := offsets.get(tp.topic, {}).get(tp.partition, 0)):
                where = f"{at.offset} of {tp.topic}[{tp.partition}]"
                yield Finding("committed", f"the group is at offset {where}, and the checkpoint at {saved}")


@dataclass
class Reference:
    """A stream, and what a daemon made of it that nobody killed."""

    feed: Feed
    records: Records
    place: Place
    after: dict[int, Outcome]
    seconds: float
    """What it took, for those who want to kill another one in the middle."""

    @classmethod
    def run(cls, servers: Servers) -> Reference:
        """One life to the end, on a stream of its own."""
        feed = servers.feed()
        feed.send(servers.producer)
        place = servers.place(feed)
        place.configure(publish={"keep_versions": 100})
        Life(place).kill()  # so that what follows need not wait for the imports
        started = time.monotonic()
        run_to_the_end(place)
        seconds = time.monotonic() - started
        return cls(feed, feed.interactions(servers.broker), place, outcomes(Remains(place)), seconds)

    @property
    def phases(self) -> int:
        return max(self.after)


def findings_so_far(servers: Servers, left: Remains, reference: Reference) -> list[Finding]:
    """What is wrong while nobody runs."""
    found = [*champion_findings(left)]
    if found:
        return found  # nothing else can be asked of it
    with left.place.sink() as sink:
        found += pointer_findings(left, sink)
    found += servers.committed_findings(left)
    found += book_findings(left, reference.feed, reference.records, whole=False)
    now = latest_outcome(left)
    return found if now is None else [*found, *_state_findings(now, reference)]


def findings_at_the_end(servers: Servers, left: Remains, reference: Reference) -> list[Finding]:
    """What is wrong when a life has come to the end of the stream."""
    found = [*champion_findings(left), *servers.committed_findings(left)]
    now = latest_outcome(left)
    if now is None or now.phase != reference.phases:
        found.append(Finding("lost", f"it ended after phase {now and now.phase}, not {reference.phases}"))
    if now is not None:
        found += _state_findings(now, reference)
    found += [Finding("state", text) for text in log_differences(left.place, reference.place)]
    found += book_findings(left, reference.feed, reference.records, whole=True)
    found += witness_findings(left)
    with left.place.sink() as sink:
        found += publication_findings(left, sink)
    return found


def _state_findings(now: Outcome, reference: Reference) -> Iterator[Finding]:
    if now.phase not in reference.after:
        yield Finding("state", f"there is a phase {now.phase}, which the uninterrupted run did not have")
        return
    for text in differences(now, reference.after[now.phase]):
        yield Finding("state", text)


def clear(place: Place) -> None:
    """Gives back the disk and the keys of a place that is done with."""
    with place.sink() as sink, contextlib.suppress(ValueError):
        for version in sink.versions():
            sink.drop(version)
    shutil.rmtree(place.directory)
