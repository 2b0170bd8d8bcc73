"""No reader sees a mixed version, a known id without a vector, or half a vector; and the checks would find each."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from streams.publisher import RedisSink
from tests.faults.readers import BUCKETS, LAST_BUCKET, Publisher, readers, under_fire
from tests.faults.reading import IDS, Counts, stamped
from tests.servers import new_redis, redis_kinds

pytestmark = [pytest.mark.servers, pytest.mark.slow]

READERS = 2


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One kind is enough here: `tests/contracts` has both."""
    with new_redis(redis_kinds()[-1], tmp_path_factory.mktemp("redis")) as server:
        yield server.address


def test_a_hundred_flips_and_no_reader_sees_anything_wrong(redis_url: str, namespace: str) -> None:
    seen, publisher = under_fire(redis_url, namespace, lookups=300_000, flips=100, count=READERS)
    assert seen.wrong == 0, seen
    assert seen.lookups >= 300_000
    assert publisher.flips > 100
    assert publisher.rollbacks >= 10
    assert publisher.fast_writes >= 4_000
    assert seen.versions >= 30, "the readers hardly moved along"


Fault = Callable[[Publisher, Callable[[], None]], None]


def flips_before_the_last_bucket(publisher: Publisher, requests_made: Callable[[], None]) -> None:
    version = publisher.version + 1
    publisher.write(version, but=LAST_BUCKET)
    publisher.flip(version)
    requests_made()
    publisher.write(version)


def writes_the_next_version_over_the_served_one(publisher: Publisher, requests_made: Callable[[], None]) -> None:
    ids = IDS["items"][::2]
    numbers = list(range(0, len(IDS["items"]), 2))
    publisher.sink.write(publisher.version, "items", ids, stamped(publisher.version + 1, numbers))
    requests_made()


def writes_half_of_each_vector(publisher: Publisher, requests_made: Callable[[], None]) -> None:
    numbers = list(range(len(IDS["items"])))
    matrix = stamped(publisher.version, numbers)
    matrix[:, 6:] = np.roll(matrix[:, 6:], 1, axis=0)
    publisher.sink.write(publisher.version, "items", IDS["items"], matrix)
    requests_made()


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        (flips_before_the_last_bucket, "missing"),
        (writes_the_next_version_over_the_served_one, "mixed"),
        (writes_half_of_each_vector, "torn"),
    ],
)
def test_a_publisher_with_a_fault_is_caught(redis_url: str, namespace: str, fault: Fault, found: str) -> None:
    seen: list[Counts] = []
    with RedisSink(redis_url, namespace=namespace, buckets=BUCKETS) as sink:
        publisher = Publisher(sink)
        publisher.publish()
        with readers(redis_url, namespace, READERS, seen) as requests_made:
            requests_made()
            fault(publisher, requests_made)
    assert getattr(sum(seen, Counts()), found) > 0
