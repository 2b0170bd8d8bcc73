"""Readers under fire: processes that look vectors up without pause while versions are published, flipped, rolled back
and written to by the fast path.

    python -m tests.faults.readers [--lookups 10000000] [--flips 500] [--readers 2] [--write]

That the readers' checks can fail is shown by publishers with a fault each (`tests/faults/test_readers.py`).
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from streams.embedded import EmbeddedRedis, find_redis_server
from streams.publisher import RedisSink
from streams.redis_keys import Pointer, bucket_of, vector_bytes
from tests.faults.page import write_section
from tests.faults.reading import DEFAULT_ID, DIM, IDS, REQUEST, Counts, read_without_pause, stamped

BUCKETS, GRACE_S = 16, 5.0
LAST_BUCKET = max(bucket_of(one, BUCKETS) for one in IDS["items"])
WAIT_S = 120

spawn = multiprocessing.get_context("spawn")  # fork would share the parent's sockets


class Publisher:
    """Publishes versions as the daemon does, the steps apart for publishers with a fault."""

    def __init__(self, sink: RedisSink) -> None:
        self.sink, self.epoch, self.version = sink, sink.claim(), 0
        self.rng = np.random.default_rng(7)
        self.flips = self.fast_writes = self.rollbacks = 0

    def write(self, version: int, *, but: int | None = None) -> None:
        """Every vector; none of the bucket `but`."""
        for kind, ids in IDS.items():
            numbers = [n for n, one in enumerate(ids) if bucket_of(one, BUCKETS) != but]
            self.sink.write(version, kind, [ids[n] for n in numbers], stamped(version, numbers))

    def flip(self, version: int) -> None:
        self.sink.flip(
            Pointer(
                version=version,
                previous=version - 1 or None,
                epoch=self.epoch,
                dim=DIM,
                buckets=BUCKETS,
                items=len(IDS["items"]),
                users=len(IDS["users"]),
                default_user=vector_bytes(stamped(version, [DEFAULT_ID])[0]),
                published_at="2026-01-02T03:04:05Z",
                writer="disk-a",
            )
        )
        self.version = version
        self.flips += 1

    def publish(self, *, rollback: bool = False) -> None:
        """The next version, by the book; a rollback is a version too, and the one it leaves may go at once."""
        version = self.version + 1
        self.write(version)
        self.flip(version)
        if version > 1:
            self.sink.expire(version - 1, 0.0 if rollback else GRACE_S)
        self.rollbacks += rollback

    def write_fast(self) -> None:
        """Single vectors of the served version, as clicks and new items bring them."""
        for kind, ids in IDS.items():
            numbers = self.rng.choice(len(ids), 20, replace=False)
            self.sink.write(self.version, kind, [ids[n] for n in numbers], stamped(self.version, numbers.tolist()))
            self.fast_writes += len(numbers)


@contextmanager
def readers(url: str, namespace: str, count: int, seen: list[Counts]) -> Iterator[Callable[[], None]]:
    """Reading processes; yields a call that returns once they have made whole requests that began after it."""
    stop, made = spawn.Event(), spawn.Semaphore(0)
    started = []
    for number in range(count):
        receive, send = spawn.Pipe(duplex=False)
        process = spawn.Process(target=read_without_pause, args=(url, namespace, number, stop, made, send))
        process.start()
        started.append((process, receive))

    def requests_made() -> None:
        while made.acquire(block=False):
            pass
        # One more than twice as many: by then some process has made a second request, begun after this call.
        for _ in range(2 * count + 1):
            assert made.acquire(timeout=WAIT_S), "the readers stopped reading"

    try:
        yield requests_made
    finally:
        stop.set()
        for process, receive in started:
            if receive.poll(WAIT_S):
                seen.append(Counts(**receive.recv()))
            process.join(WAIT_S)
            process.kill()


def under_fire(url: str, namespace: str, *, lookups: int, flips: int, count: int) -> tuple[Counts, Publisher]:
    """Readers through so many flips, one in ten a rollback, until they have made so many lookups."""
    seen: list[Counts] = []
    requests = 0
    with RedisSink(url, namespace=namespace, buckets=BUCKETS) as sink:
        publisher = Publisher(sink)
        publisher.publish()
        with readers(url, namespace, count, seen) as requests_made:
            while publisher.flips <= flips or requests * (REQUEST + 2) < lookups:
                publisher.publish(rollback=publisher.flips % 10 == 0)
                # As many requests between two flips as make the lookups of all flips, and at least one.
                while True:
                    publisher.write_fast()
                    requests_made()
                    requests += 2 * count + 1
                    if requests * (REQUEST + 2) * flips >= lookups * publisher.flips:
                        break
    assert len(seen) == count
    return sum(seen, Counts()), publisher


def main() -> int:
    """Prints the figures; exit code 1 for any vector that was wrong."""
    arguments = argparse.ArgumentParser(prog="python -m tests.faults.readers", description=__doc__)
    arguments.add_argument("--lookups", type=int, default=10_000_000)
    arguments.add_argument("--flips", type=int, default=500)
    arguments.add_argument("--readers", type=int, default=2)
    arguments.add_argument("--write", action="store_true", help="put the figures into docs/reliability.md")
    options = arguments.parse_args()
    began = time.monotonic()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory()))
        server = stack.enter_context(EmbeddedRedis(directory=directory, binary=find_redis_server()))
        seen, publisher = under_fire(
            server.address, "fire", lookups=options.lookups, flips=options.flips, count=options.readers
        )
    found = (
        f"{seen.lookups:,} vectors in {seen.requests:,} requests by {options.readers} processes, through "
        f"{publisher.flips} flips, {publisher.rollbacks} of them rollbacks whose predecessor vanished at once, and "
        f"{publisher.fast_writes:,} fast-path writes: **{seen.mixed} mixed versions, {seen.missing} missing ids, "
        f"{seen.torn} torn vectors**; {seen.repeated} requests were begun again because their version had expired "
        f"({time.monotonic() - began:.0f} s)."
    )
    print(found)
    if options.write and not seen.wrong:
        write_section("readers", found)
    return 1 if seen.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
