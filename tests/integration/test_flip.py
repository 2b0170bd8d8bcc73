"""No reader ever sees a mixed version: other processes read without pause while versions are published and flipped.

Every vector of version N is N in all its coordinates, so that a request can tell by itself whether what it got is whole
and of one version. That the check can fail is shown by two publishers with a fault each.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event, Semaphore

import numpy as np
import pytest

from streams.publisher import RedisSink
from streams.reader import Reader, VersionExpired
from streams.redis_keys import Pointer, bucket_of, vector_bytes

BUCKETS, DIM, READERS, FLIPS = 8, 16, 2, 200
ITEMS = [f"item-{n}" for n in range(64)]
USERS = ["user-1", "user-2"]
LAST_BUCKET = max(bucket_of(id_, BUCKETS) for id_ in ITEMS)
WAIT_S = 60

spawn = multiprocessing.get_context("spawn")  # fork would share the parent's sockets


@dataclass(frozen=True)
class Seen:
    """What one reading process counted."""

    whole: int
    versions: int
    repeated: int
    wrong: list[str]


def read_without_pause(url: str, namespace: str, stop: Event, checked: Semaphore, result: Connection) -> None:
    whole, repeated, versions, wrong = 0, 0, set[int](), list[str]()
    with Reader(url, namespace=namespace, refresh_s=0, timeout_s=30) as reader:
        while not stop.is_set():
            try:
                with reader.pinned() as view:
                    user = view.user("user-1")
                    ids, matrix = view.items(ITEMS)
                    default = view.user("nobody")
            except VersionExpired:
                repeated += 1
                continue
            got = set(np.unique([*user, *default, *matrix.ravel()]).tolist())
            if got != {float(view.version)} or ids != ITEMS:
                wrong.append(f"version {view.version}: {len(ids)} items, of versions {sorted(got)}")
            else:
                whole += 1
            versions.add(view.version)
            checked.release()
    result.send(Seen(whole, len(versions), repeated, wrong[:5]))


class Publisher:
    """Publishes versions in the right order; `write_items` and `flip` apart, for those that do not."""

    def __init__(self, sink: RedisSink) -> None:
        self.sink, self.epoch = sink, sink.claim()

    def write(self, version: int, items: list[str] = ITEMS, *, value: float | None = None) -> None:
        for kind, ids in (("items", items), ("users", USERS)):
            rows = np.full((len(ids), DIM), version if value is None else value)
            self.sink.write(version, "items" if kind == "items" else "users", ids, rows)

    def flip(self, version: int) -> None:
        self.sink.flip(
            Pointer(
                version=version,
                epoch=self.epoch,
                dim=DIM,
                buckets=BUCKETS,
                items=len(ITEMS),
                users=len(USERS),
                default_user=vector_bytes(np.full(DIM, version)),
                published_at="2026-01-02T03:04:05Z",
                writer="disk-a",
            )
        )

    def publish(self, version: int) -> None:
        self.write(version)
        self.flip(version)


@pytest.fixture
def publisher(redis_url: str, namespace: str) -> Iterator[Publisher]:
    with RedisSink(redis_url, namespace=namespace, buckets=BUCKETS) as sink:
        yield Publisher(sink)


@contextmanager
def readers(url: str, namespace: str, seen: list[Seen]) -> Iterator[Callable[[], None]]:
    """Reading processes; yields a call that returns once they have made a whole request each that began after it."""
    stop, checked = spawn.Event(), spawn.Semaphore(0)
    started = []
    for _ in range(READERS):
        receive, send = spawn.Pipe(duplex=False)
        process = spawn.Process(target=read_without_pause, args=(url, namespace, stop, checked, send))
        process.start()
        started.append((process, receive))

    def requests_made() -> None:
        while checked.acquire(block=False):
            pass
        # One more than twice as many: by then some process has made a second request, begun after this call.
        for _ in range(2 * READERS + 1):
            assert checked.acquire(timeout=WAIT_S), "the readers stopped reading"

    try:
        yield requests_made
    finally:
        stop.set()
        for process, receive in started:
            if receive.poll(WAIT_S):
                seen.append(receive.recv())
            process.join(WAIT_S)
            process.kill()


def test_hundreds_of_flips_and_no_reader_sees_a_mixed_version(
    publisher: Publisher, redis_url: str, namespace: str
) -> None:
    publisher.publish(1)
    seen: list[Seen] = []
    with readers(redis_url, namespace, seen) as requests_made:
        requests_made()
        for version in range(2, FLIPS + 2):
            publisher.publish(version)
            publisher.write(version)  # the fast path writes single vectors of the served version all the time
            publisher.sink.expire(version - 1, 0.0)  # the hardest case: no grace at all
            if version % 10 == 0:
                requests_made()
    assert len(seen) == READERS
    assert [one.wrong for one in seen] == [[]] * READERS
    assert sum(one.versions for one in seen) >= FLIPS // 10


def flips_before_the_last_bucket(publisher: Publisher, version: int, requests_made: Callable[[], None]) -> None:
    publisher.write(version, [id_ for id_ in ITEMS if bucket_of(id_, BUCKETS) != LAST_BUCKET])
    publisher.flip(version)
    requests_made()
    publisher.write(version)


def writes_over_the_served_version(publisher: Publisher, version: int, requests_made: Callable[[], None]) -> None:
    publisher.write(version - 1, ITEMS[:32], value=version)
    requests_made()
    publisher.publish(version)


@pytest.mark.parametrize("fault", [flips_before_the_last_bucket, writes_over_the_served_version])
def test_the_same_check_catches_a_publisher_with_a_fault(
    publisher: Publisher,
    redis_url: str,
    namespace: str,
    fault: Callable[[Publisher, int, Callable[[], None]], None],
) -> None:
    publisher.publish(1)
    seen: list[Seen] = []
    with readers(redis_url, namespace, seen) as requests_made:
        requests_made()
        fault(publisher, 2, requests_made)
    assert any(one.wrong for one in seen)
