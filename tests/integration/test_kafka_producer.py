"""EventProducer against real brokers: keys and partitions, topics, failures that are told."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

import pytest
from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType

from streams.embedded import ServerProcess
from streams.events import Record
from streams.kafka_producer import EventProducer, SendFailed
from streams.kafka_source import KafkaSource
from streams.source_types import SourceUnavailable, TopicMissing
from tests.servers import Broker

pytestmark = pytest.mark.servers


# From Apache Kafka's own tests (UtilsTest.testMurmur2).
MURMUR2 = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}


@pytest.fixture
def producer(kafka: Broker) -> Iterator[EventProducer]:
    with EventProducer(bootstrap_servers=kafka.address) as producer:
        yield producer


def everything(kafka: Broker, topic: str) -> list[Record]:
    source = KafkaSource(bootstrap_servers=kafka.address, topics=[topic])
    source.assign(source.beginning())
    records: list[Record] = []
    end = source.end()
    while any(source.position(tp) < offset for tp, offset in end.items()):
        records += source.poll(1.0)
    source.close()
    return records


def test_a_key_always_goes_to_its_partition_as_with_kafkas_own_clients(kafka: Broker, producer: EventProducer) -> None:
    topic = kafka.topic(partitions=4)
    for _ in range(3):
        for key in MURMUR2:
            producer.send(topic, key, b"{}")
    producer.flush()
    records = everything(kafka, topic)
    assert len(records) == 3 * len(MURMUR2)
    for record in records:
        assert record.key is not None
        assert record.partition == (MURMUR2[record.key] & 0x7FFFFFFF) % 4


def test_records_keep_their_key_time_and_headers(kafka: Broker, producer: EventProducer) -> None:
    topic = kafka.topic()
    producer.send(topic, b"k", None, 1_600_000_000_000, headers=[("ce_id", b"1")])
    producer.flush()
    assert everything(kafka, topic) == [Record(topic, 0, 0, 1_600_000_000_000, b"k", None, (("ce_id", b"1"),))]


def test_topics_are_made_once_and_left_alone_after(kafka: Broker, producer: EventProducer, namespace: str) -> None:
    names = [f"{namespace}-events", f"{namespace}-items"]
    assert producer.ensure_topics(names, partitions=3, compacted=names[1:]) == names
    assert producer.ensure_topics(names, partitions=5) == []
    with KafkaAdminClient(bootstrap_servers=kafka.address) as admin:
        described = admin.describe_configs(
            [ConfigResource(ConfigResourceType.TOPIC, name) for name in names], config_filter="all"
        )["topic"]
        partitions = {topic["name"]: len(topic["partitions"]) for topic in admin.describe_topics(names)}
    assert partitions == dict.fromkeys(names, 3)
    assert described[names[1]]["cleanup.policy"]["value"] == "compact"
    assert described[names[0]].get("cleanup.policy", {}).get("value", "delete") == "delete"


def test_sending_to_a_missing_topic_is_an_error_at_once_and_makes_none(producer: EventProducer) -> None:
    for _ in range(2):
        with pytest.raises(TopicMissing, match="'never-made'"):
            producer.send("never-made", b"k", b"v")


def test_a_record_over_the_limit_is_refused(kafka: Broker, producer: EventProducer) -> None:
    with pytest.raises(SendFailed, match="too large"):
        producer.send(kafka.topic(), b"k", b"v" * 2_000_000)


def test_a_broker_that_is_away_is_told_by_flush(own_kafka: ServerProcess) -> None:
    with EventProducer(bootstrap_servers=own_kafka.address, timeout_s=2.0, linger_ms=0) as producer:
        producer.ensure_topics(["events"], partitions=1)
        producer.send("events", None, b"1")
        producer.flush()
        own_kafka.kill()
        producer.send("events", None, b"2")
        producer.send("events", None, b"3")
        with pytest.raises(SendFailed, match="2 records were not taken") as failed:
            producer.flush()
        assert failed.value.failed == 2
        producer.flush()  # told once


def test_a_topic_that_is_gone_keeps_nobody_busy(
    kafka: Broker, producer: EventProducer, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = kafka.topic()
    producer.send(topic, None, b"1")
    producer.flush()
    with KafkaAdminClient(bootstrap_servers=kafka.address) as admin:
        admin.delete_topics([topic])
    known, sender = producer._producer._metadata, producer._producer._sender
    known.request_update()
    while known.partitions_for_topic(topic) is not None:
        time.sleep(0.01)
    turns = itertools.count()
    turn = sender.run_once
    monkeypatch.setattr(sender, "run_once", lambda: (next(turns), turn()))
    time.sleep(1.0)
    assert next(turns) < 200  # it looks for the topic ten times a second; unmended it turned some ten thousand times


def test_without_a_broker_there_is_no_producer(own_kafka: ServerProcess) -> None:
    own_kafka.stop()
    with pytest.raises(SourceUnavailable, match=f"connecting to {own_kafka.address}"):
        EventProducer(bootstrap_servers=own_kafka.address, timeout_s=0.5)
