"""What every source of records promises, held against the one in memory and against Kafka on each broker at hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

import pytest
from kafka import KafkaAdminClient
from kafka import TopicPartition as ClientPartition

from streams.events import Record
from streams.kafka_producer import EventProducer
from streams.kafka_source import KafkaSource
from streams.memory_source import MemorySource, MemoryTopics
from streams.source_types import DataLost, TopicMissing, TopicPartition
from tests.servers import Broker, kafka_kinds

if TYPE_CHECKING:
    from service.intake import Source

pytestmark = pytest.mark.servers

POLLS = 200  # of up to 0.2 s each: far more than any of these needs


class World(Protocol):
    """Topics and sources of one kind."""

    kind: str

    def topic(self, partitions: int = 1) -> str: ...
    def send(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = b"k",
        timestamp_ms: int = 1_700_000_000_000,
        headers: Sequence[tuple[str, bytes]] = (),
        partition: int = 0,
    ) -> None: ...
    def source(self, *topics: str) -> Source: ...
    def add_partitions(self, topic: str, more: int) -> None: ...
    def truncate(self, tp: TopicPartition, before: int) -> None: ...


class MemoryWorld:
    kind = "memory"

    def __init__(self) -> None:
        self._topics = MemoryTopics()
        self._made = 0

    def topic(self, partitions: int = 1) -> str:
        self._made += 1
        self._topics.create(f"topic-{self._made}", partitions=partitions)
        return f"topic-{self._made}"

    def send(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = b"k",
        timestamp_ms: int = 1_700_000_000_000,
        headers: Sequence[tuple[str, bytes]] = (),
        partition: int = 0,
    ) -> None:
        self._topics.append(topic, key, value, timestamp_ms, headers=headers, partition=partition)

    def source(self, *topics: str) -> Source:
        return MemorySource(self._topics, topics, max_poll_records=50)

    def add_partitions(self, topic: str, more: int) -> None:
        self._topics.add_partitions(topic, more)

    def truncate(self, tp: TopicPartition, before: int) -> None:
        self._topics.truncate(tp[0], partition=tp[1], before=before)


class KafkaWorld:
    def __init__(self, broker: Broker) -> None:
        self.kind = broker.kind
        self._broker = broker
        self._producer = broker.producer
        self._fresh: EventProducer | None = None
        self._open: list[KafkaSource] = []

    def topic(self, partitions: int = 1) -> str:
        return self._broker.topic(partitions=partitions)

    def send(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = b"k",
        timestamp_ms: int = 1_700_000_000_000,
        headers: Sequence[tuple[str, bytes]] = (),
        partition: int = 0,
    ) -> None:
        self._producer.send(topic, key, value, timestamp_ms, headers=headers, partition=partition)

    def source(self, *topics: str) -> Source:
        self._producer.flush()
        source = KafkaSource(
            bootstrap_servers=self._broker.address, topics=topics, metadata_refresh_s=0.0, max_poll_records=50
        )
        self._open.append(source)
        return source

    def add_partitions(self, topic: str, more: int) -> None:
        if self.kind == "embedded":
            pytest.skip("the embedded broker cannot add partitions")
        with KafkaAdminClient(bootstrap_servers=self._broker.address) as admin:
            admin.create_partitions({topic: 1 + more})
        # One that knows the new partitions; the shared one may not for minutes.
        self._producer = self._fresh = EventProducer(bootstrap_servers=self._broker.address, linger_ms=0)

    def truncate(self, tp: TopicPartition, before: int) -> None:
        if self.kind == "embedded":
            pytest.skip("the embedded broker cannot delete records")
        self._producer.flush()
        with KafkaAdminClient(bootstrap_servers=self._broker.address) as admin:
            admin.delete_records({ClientPartition(*tp): before})

    def close(self) -> None:
        self._producer.flush()
        for source in self._open:
            source.close()
        if self._fresh is not None:
            self._fresh.close()


@pytest.fixture(params=["memory", *kafka_kinds()])
def world(request: pytest.FixtureRequest, brokers: Callable[[str], Broker]) -> Iterator[World]:
    if request.param == "memory":
        yield MemoryWorld()
        return
    kafka_world = KafkaWorld(brokers(request.param))
    yield kafka_world
    kafka_world.close()


def read_to_end(source: Source) -> list[Record]:
    """Polls until the source says it has returned everything of all partitions."""
    records: list[Record] = []
    tps = list(source.end())
    for _ in range(POLLS):
        records += source.poll(0.2)
        if all(source.caught_up(tp) for tp in tps):
            return records
    raise AssertionError(f"not caught up: at {[(tp, source.position(tp)) for tp in tps]} of {source.end()}")


def values(records: list[Record]) -> list[bytes | None]:
    return [record.value for record in records]


def test_records_come_whole(world: World) -> None:
    topic = world.topic()
    world.send(topic, b"value", key=b"key", timestamp_ms=1_234_567_890_123, headers=[("a", b"1"), ("a", b"\xff\x00")])
    world.send(topic, None, key=b"\x00\xff")
    world.send(topic, b"", key=None)
    source = world.source(topic)
    source.assign(source.beginning())
    whole, tombstone, keyless = read_to_end(source)
    assert whole == Record(topic, 0, 0, 1_234_567_890_123, b"key", b"value", (("a", b"1"), ("a", b"\xff\x00")))
    assert (tombstone.key, tombstone.value, tombstone.headers) == (b"\x00\xff", None, ())
    assert (keyless.key, keyless.value) == (None, b"")


def test_each_partition_is_read_in_the_order_of_its_offsets(world: World) -> None:
    topic = world.topic(partitions=3)
    for number in range(200):
        world.send(topic, b"%d" % number, partition=number % 3)
    source = world.source(topic)
    source.assign(source.beginning())
    records = read_to_end(source)
    for partition in range(3):
        mine = [record for record in records if record.partition == partition]
        assert [record.offset for record in mine] == list(range(len(mine)))
        assert values(mine) == [b"%d" % number for number in range(partition, 200, 3)]
    assert len(records) == 200


def test_several_topics_are_read_together(world: World) -> None:
    one, two = world.topic(), world.topic(partitions=2)
    world.send(one, b"1")
    world.send(two, b"2", partition=1)
    source = world.source(one, two)
    assert source.partitions() == {one: [0], two: [0, 1]}
    source.assign(source.beginning())
    assert {(record.topic, record.value) for record in read_to_end(source)} == {(one, b"1"), (two, b"2")}


def test_reading_starts_at_the_assigned_offset(world: World) -> None:
    topic = world.topic()
    for number in range(10):
        world.send(topic, b"%d" % number)
    source = world.source(topic)
    source.assign({(topic, 0): 7})
    assert source.position((topic, 0)) == 7
    assert values(read_to_end(source)) == [b"7", b"8", b"9"]
    assert source.position((topic, 0)) == 10


def test_assigning_again_goes_back(world: World) -> None:
    topic = world.topic()
    for number in range(3):
        world.send(topic, b"%d" % number)
    source = world.source(topic)
    source.assign(source.beginning())
    read_to_end(source)
    source.assign({(topic, 0): 1})
    assert not source.caught_up((topic, 0))
    assert values(read_to_end(source)) == [b"1", b"2"]


def test_the_end_is_the_next_offset_to_be_written(world: World) -> None:
    topic = world.topic(partitions=2)
    for number in range(150):
        world.send(topic, b"%d" % number)
    source = world.source(topic)
    assert source.beginning() == {(topic, 0): 0, (topic, 1): 0}
    assert source.end() == {(topic, 0): 150, (topic, 1): 0}


def test_an_empty_topic_is_caught_up_after_one_look(world: World) -> None:
    source = world.source(world.topic())
    source.assign(source.beginning())
    assert read_to_end(source) == []


def test_caught_up_is_unknown_before_the_first_look(world: World) -> None:
    topic = world.topic()
    world.send(topic, b"1")
    source = world.source(topic)
    source.assign(source.end())
    assert not source.caught_up((topic, 0))
    assert read_to_end(source) == []


def test_caught_up_does_not_run_ahead_of_what_was_returned(world: World) -> None:
    topic = world.topic()
    for number in range(120):
        world.send(topic, b"%d" % number)
    source = world.source(topic)
    source.assign(source.beginning())
    seen = 0
    for _ in range(POLLS):
        seen += len(source.poll(0.2))
        assert source.caught_up((topic, 0)) == (seen == 120)
        if seen == 120:
            break
    assert seen == 120


def test_new_records_are_read_after_catching_up(world: World) -> None:
    topic = world.topic()
    world.send(topic, b"1")
    source = world.source(topic)
    source.assign(source.beginning())
    assert values(read_to_end(source)) == [b"1"]
    world.send(topic, b"2")
    found: list[Record] = []
    for _ in range(POLLS):
        found += source.poll(0.2)
        if found:
            break
    assert values(found) == [b"2"]


def test_paused_partitions_give_nothing_and_lose_nothing(world: World) -> None:
    topic = world.topic(partitions=2)
    for number in range(100):
        world.send(topic, b"%d" % number, partition=number % 2)
    source = world.source(topic)
    source.assign(source.beginning())
    source.pause([(topic, 0)])
    while not source.caught_up((topic, 1)):
        assert all(record.partition == 1 for record in source.poll(0.2))
    assert source.position((topic, 0)) == 0
    source.resume([(topic, 0)])
    assert values(read_to_end(source)) == [b"%d" % number for number in range(0, 100, 2)]


def test_partitions_added_later_are_seen_and_read(world: World) -> None:
    topic = world.topic()
    world.send(topic, b"old")
    source = world.source(topic)
    source.assign(source.beginning())
    assert values(read_to_end(source)) == [b"old"]
    world.add_partitions(topic, 1)
    for _ in range(POLLS):
        if source.partitions() == {topic: [0, 1]}:
            break
        source.poll(0.05)
    world.send(topic, b"new", partition=1)
    source.assign({(topic, 1): source.beginning()[topic, 1]})
    assert source.position((topic, 0)) == 1
    assert values(read_to_end(source)) == [b"new"]


def test_offsets_are_found_by_time(world: World) -> None:
    if world.kind == "embedded":
        pytest.skip("the embedded broker finds offsets by arrival, not by the records' own timestamps")
    topic = world.topic(partitions=2)
    for number in range(5):
        world.send(topic, b"%d" % number, timestamp_ms=1_700_000_000_000 + number * 1000)
    source = world.source(topic)
    assert source.offsets_at(1_700_000_002.5) == {(topic, 0): 3, (topic, 1): 0}
    assert source.offsets_at(0) == {(topic, 0): 0, (topic, 1): 0}
    assert source.offsets_at(1_800_000_000) == {(topic, 0): 5, (topic, 1): 0}


def test_a_truncated_offset_is_data_lost_until_passed_over(world: World) -> None:
    topic = world.topic()
    for number in range(10):
        world.send(topic, b"%d" % number)
    world.truncate((topic, 0), before=6)
    source = world.source(topic)
    assert source.beginning() == {(topic, 0): 6}
    source.assign({(topic, 0): 2})
    for _ in range(2):
        lost = _lost(source)
        assert (lost.tp, lost.wanted, lost.beginning, lost.end) == ((topic, 0), 2, 6, 10)
        assert "begins at 6" in str(lost)
    source.assign({(topic, 0): lost.beginning})
    assert values(read_to_end(source)) == [b"6", b"7", b"8", b"9"]


def test_an_offset_past_the_end_is_data_lost(world: World) -> None:
    topic = world.topic()
    world.send(topic, b"1")
    source = world.source(topic)
    source.assign({(topic, 0): 40})
    lost = _lost(source)
    assert (lost.tp, lost.wanted, lost.end) == ((topic, 0), 40, 1)
    assert "ends at 1" in str(lost)


def _lost(source: Source) -> DataLost:
    for _ in range(POLLS):
        try:
            assert source.poll(0.2) == []
        except DataLost as lost:
            return lost
    raise AssertionError("nothing was said to be lost")


def test_a_missing_topic_is_named(world: World) -> None:
    source = world.source(world.topic(), "no-such-topic")
    for ask in (source.identity, source.partitions, source.beginning, source.end):
        with pytest.raises(TopicMissing, match="'no-such-topic' does not exist") as missing:
            ask()
        assert missing.value.topic == "no-such-topic"


def test_asking_for_a_missing_topic_does_not_make_it(world: World) -> None:
    for _ in range(2):
        with pytest.raises(TopicMissing):
            world.source("still-no-such-topic").partitions()


def test_the_identity_is_the_same_for_every_source_and_tells_topics_apart(world: World) -> None:
    one, two = world.topic(), world.topic()
    identity = world.source(one, two).identity()
    assert world.source(one, two).identity() == identity
    assert identity.cluster_id
    assert identity.topic_ids[one] != identity.topic_ids[two]


def test_a_commit_never_raises(world: World) -> None:
    topic = world.topic()
    source = world.source(topic)
    source.commit({(topic, 0): 3})
    source.commit({("no-such-topic", 0): 3})
