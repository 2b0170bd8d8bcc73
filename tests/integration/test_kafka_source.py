"""KafkaSource against real brokers: codecs, transactions, outages, group commits and security."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
from kafka import KafkaAdminClient, KafkaProducer
from kafka import TopicPartition as ClientPartition

from streams.embedded import ServerProcess
from streams.events import Record
from streams.kafka_producer import EventProducer
from streams.kafka_source import KafkaSource
from streams.source_types import DataLost, SourceError, SourceUnavailable, TopicMissing
from tests.servers import Broker, kafka_kinds

pytestmark = pytest.mark.servers

POLLS = 200
CODECS = [None, "gzip", "snappy", "lz4", "zstd"]


@pytest.fixture
def apache(brokers: Callable[[str], Broker]) -> Broker:
    if "apache" not in kafka_kinds():
        pytest.skip("needs Apache Kafka: set HEADWATER_TEST_KAFKA")
    return brokers("apache")


@pytest.fixture
def open_source() -> Iterator[Callable[..., KafkaSource]]:
    opened: list[KafkaSource] = []

    def build(address: str, *topics: str, **options: object) -> KafkaSource:
        settings = {"request_timeout_s": 3.0, "metadata_refresh_s": 0.2, **options}
        opened.append(KafkaSource(bootstrap_servers=address, topics=topics, **settings))  # type: ignore[arg-type]
        return opened[-1]

    yield build
    for source in opened:
        source.close()


def read_to_end(source: KafkaSource) -> list[Record]:
    records: list[Record] = []
    for _ in range(POLLS):
        records += source.poll(0.2)
        if all(source.caught_up(tp) for tp in source.end()):
            return records
    raise AssertionError("never caught up")


def poll_until(source: KafkaSource, wanted: int) -> list[Record]:
    """Polls through an outage until so many records came."""
    records: list[Record] = []
    for _ in range(POLLS):
        try:
            records += source.poll(0.2)
        except SourceUnavailable:
            continue
        if len(records) >= wanted:
            return records
    raise AssertionError(f"only {len(records)} of {wanted} records came")


def first_error(source: KafkaSource, *, unless: type[SourceError] | None = None) -> SourceError:
    """The first error that polling meets, other than `unless`; no records may come before it."""
    for _ in range(POLLS):
        try:
            assert source.poll(0.2) == []
        except SourceError as error:
            if unless is None or not isinstance(error, unless):
                return error
    raise AssertionError("no error was raised")


@pytest.mark.parametrize("codec", CODECS)
def test_every_codec_is_read(kafka: Broker, codec: str | None, open_source: Callable[..., KafkaSource]) -> None:
    topic = kafka.topic()
    with EventProducer(bootstrap_servers=kafka.address, compression=codec) as producer:
        for number in range(500):
            producer.send(topic, b"k", b'{"user_id": "u%d"}' % number, 1_700_000_000_000 + number)
        producer.flush()
    source = open_source(kafka.address, topic)
    source.assign(source.beginning())
    records = read_to_end(source)
    assert [record.value for record in records] == [b'{"user_id": "u%d"}' % number for number in range(500)]
    assert [record.timestamp_ms for record in records] == [1_700_000_000_000 + number for number in range(500)]


class NotUtf8(str):
    """A header's name as a client of another language may send it."""

    def encode(self, *_: object) -> bytes:
        return b"caf\xe9"


@pytest.mark.parametrize("codec", [None, "zstd"])
def test_a_header_whose_name_is_not_utf8_does_not_end_the_reading(
    kafka: Broker, codec: str | None, open_source: Callable[..., KafkaSource]
) -> None:
    topic = kafka.topic()
    with EventProducer(bootstrap_servers=kafka.address, compression=codec, linger_ms=200) as producer:
        producer.send(topic, b"k", b"before", headers=[("ce_id", b"1")])
        producer.send(topic, b"k", b"itself", headers=[(NotUtf8("name"), b"v"), ("ce_id", b"2")])
        producer.send(topic, b"k", b"after", headers=[("caf\xe9", b"w")])
        producer.flush()
    source = open_source(kafka.address, topic)
    source.assign(source.beginning())
    records = read_to_end(source)
    assert [record.value for record in records] == [b"before", b"itself", b"after"]
    assert [record.headers for record in records] == [
        (("ce_id", b"1"),), (("caf\ufffd", b"v"), ("ce_id", b"2")), (("caf\xe9", b"w"),)
    ]  # fmt: skip


def test_the_end_is_true_for_many_small_batches(kafka: Broker, open_source: Callable[..., KafkaSource]) -> None:
    topic = kafka.topic(partitions=3)
    for number in range(90):
        kafka.producer.send(topic, None, b"%d" % number, partition=number % 3)
        kafka.producer.flush()
    source = open_source(kafka.address, topic)
    assert source.end() == {(topic, 0): 30, (topic, 1): 30, (topic, 2): 30}


def test_commits_are_seen_by_lag_tools(kafka: Broker, open_source: Callable[..., KafkaSource]) -> None:
    topic = kafka.topic(partitions=2)
    source = open_source(kafka.address, topic, group_id=f"group-of-{topic}")
    source.commit({(topic, 0): 3})
    source.commit({(topic, 0): 5, (topic, 1): 7})
    source.close()
    with KafkaAdminClient(bootstrap_servers=kafka.address) as admin:
        committed = admin.list_group_offsets(f"group-of-{topic}")[f"group-of-{topic}"]
    assert {tp.partition: at.offset for tp, at in committed.items()} == {0: 5, 1: 7}


class TestTransactions:
    """Read committed: what is open or aborted is never returned, and never keeps a reader from its end."""

    @pytest.fixture
    def topic(self, apache: Broker) -> str:
        return apache.topic()

    @pytest.fixture
    def producer(self, apache: Broker, topic: str) -> Iterator[KafkaProducer]:
        producer = KafkaProducer(bootstrap_servers=apache.address, transactional_id=f"tx-{topic}")
        producer.init_transactions()
        yield producer
        producer.close(timeout=1)

    @pytest.fixture
    def source(self, apache: Broker, topic: str, open_source: Callable[..., KafkaSource]) -> KafkaSource:
        source = open_source(apache.address, topic)
        source.assign(source.beginning())
        return source

    def send(self, producer: KafkaProducer, topic: str, *values: bytes) -> None:
        for value in values:
            producer.send(topic, value=value)
        producer.flush()

    def test_a_committed_one_is_read_and_its_marker_passed(
        self, producer: KafkaProducer, topic: str, source: KafkaSource
    ) -> None:
        producer.begin_transaction()
        self.send(producer, topic, b"1", b"2")
        producer.commit_transaction()
        assert [record.value for record in poll_until(source, 2)] == [b"1", b"2"]
        assert read_to_end(source) == []
        assert source.position((topic, 0)) == 3
        assert source.end() == {(topic, 0): 3}

    def test_an_aborted_one_at_the_end_is_passed_over(
        self, producer: KafkaProducer, topic: str, source: KafkaSource
    ) -> None:
        producer.begin_transaction()
        self.send(producer, topic, b"kept")
        producer.commit_transaction()
        producer.begin_transaction()
        self.send(producer, topic, b"dropped", b"dropped")
        producer.abort_transaction()
        records = read_to_end(source)
        for _ in range(POLLS):  # The broker answers the abort before it has written the marker.
            if source.position((topic, 0)) == 5:
                break
            records += source.poll(0.2)
        assert [record.value for record in records] == [b"kept"]
        assert source.position((topic, 0)) == 5
        assert source.caught_up((topic, 0))
        assert source.end() == {(topic, 0): 5}

    def test_before_an_open_one_the_reader_has_caught_up(
        self, apache: Broker, producer: KafkaProducer, topic: str, source: KafkaSource
    ) -> None:
        apache.producer.send(topic, None, b"before")
        apache.producer.flush()
        producer.begin_transaction()
        self.send(producer, topic, b"open")
        apache.producer.send(topic, None, b"after")
        apache.producer.flush()
        assert [record.value for record in read_to_end(source)] == [b"before"]
        assert source.position((topic, 0)) == 1
        assert source.end() == {(topic, 0): 1}
        producer.commit_transaction()
        assert [record.value for record in poll_until(source, 2)] == [b"open", b"after"]


def test_a_broker_that_is_away_is_said_to_be_and_waited_for(
    own_kafka: ServerProcess, open_source: Callable[..., KafkaSource], request: pytest.FixtureRequest
) -> None:
    with EventProducer(bootstrap_servers=own_kafka.address, linger_ms=0) as producer:
        producer.ensure_topics(["events"], partitions=2)
        for number in range(20):
            producer.send("events", b"%d" % number, b"%d" % number)
        producer.flush()
    source = open_source(own_kafka.address, "events")
    source.assign(source.beginning())
    assert len(read_to_end(source)) == 20
    before = source.identity()

    own_kafka.kill()
    assert isinstance(first_error(source), SourceUnavailable)
    for ask in (source.identity, source.end, source.beginning):
        with pytest.raises(SourceUnavailable):
            ask()

    own_kafka.start()
    if "embedded" in request.node.name:
        # In memory: all is gone, which must be said rather than waited for.
        assert isinstance(first_error(source, unless=SourceUnavailable), TopicMissing | DataLost)
        return
    with EventProducer(bootstrap_servers=own_kafka.address, linger_ms=0) as producer:
        producer.send("events", b"0", b"new")
        producer.flush()
    assert [record.value for record in poll_until(source, 1)] == [b"new"]
    assert source.identity() == before


def test_a_broker_that_answers_nothing_is_away(
    own_kafka: ServerProcess, open_source: Callable[..., KafkaSource]
) -> None:
    with EventProducer(bootstrap_servers=own_kafka.address, linger_ms=0) as producer:
        producer.ensure_topics(["events"], partitions=1)
        producer.send("events", None, b"1")
        producer.flush()
    source = open_source(own_kafka.address, "events", request_timeout_s=1.0)
    source.assign(source.beginning())
    assert len(read_to_end(source)) == 1
    own_kafka.freeze()
    try:
        assert isinstance(first_error(source), SourceUnavailable)
    finally:
        own_kafka.thaw()
    with EventProducer(bootstrap_servers=own_kafka.address, linger_ms=0) as producer:
        producer.send("events", None, b"2")
        producer.flush()
    assert [record.value for record in poll_until(source, 1)] == [b"2"]


def test_without_a_broker_the_first_use_says_so_and_leaves_no_thread(
    open_source: Callable[..., KafkaSource], own_kafka: ServerProcess
) -> None:
    own_kafka.stop()
    before = {thread.name for thread in threading.enumerate()}
    source = open_source(own_kafka.address, "events", request_timeout_s=0.5, client_id="lonely")
    for _ in range(2):
        with pytest.raises(SourceUnavailable, match=own_kafka.address):
            source.partitions()
    assert {thread.name for thread in threading.enumerate()} <= before


def test_a_topic_deleted_while_it_is_read_is_missing(apache: Broker, open_source: Callable[..., KafkaSource]) -> None:
    topic = apache.topic()
    apache.producer.send(topic, None, b"1")
    apache.producer.flush()
    source = open_source(apache.address, topic)
    source.assign(source.beginning())
    assert len(read_to_end(source)) == 1
    with KafkaAdminClient(bootstrap_servers=apache.address) as admin:
        admin.delete_topics([topic])
    missing = first_error(source)
    assert isinstance(missing, TopicMissing)
    assert missing.topic == topic


def test_a_topic_made_anew_has_another_identity(apache: Broker, open_source: Callable[..., KafkaSource]) -> None:
    topic = apache.topic()
    before = open_source(apache.address, topic).identity()
    with KafkaAdminClient(bootstrap_servers=apache.address) as admin:
        admin.delete_topics([topic])
        admin.create_topics({topic: {"num_partitions": 1, "replication_factor": 1}}, wait_for_metadata=True)
    after = open_source(apache.address, topic).identity()
    assert after.cluster_id == before.cluster_id
    assert after.topic_ids != before.topic_ids


def test_compacted_holes_are_passed(apache: Broker, open_source: Callable[..., KafkaSource]) -> None:
    """Deleting the first records leaves a hole like compaction's; the reader goes on at what is left."""
    topic = apache.topic()
    for number in range(6):
        apache.producer.send(topic, None, b"%d" % number)
    apache.producer.flush()
    with KafkaAdminClient(bootstrap_servers=apache.address) as admin:
        admin.delete_records({ClientPartition(topic, 0): 4})
    source = open_source(apache.address, topic)
    source.assign(source.beginning())
    assert [record.offset for record in read_to_end(source)] == [4, 5]


def test_other_settings_than_security_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'acks' is no security setting"):
        KafkaSource(bootstrap_servers="x:1", topics=["t"], security={"acks": "all"})
