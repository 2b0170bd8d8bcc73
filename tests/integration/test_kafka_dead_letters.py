"""Dead letters on real brokers: whole, at least once, within the topic's limit, and never in the way."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from kafka import KafkaAdminClient

from streams.dead_letters import DeadLetter
from streams.embedded import ServerProcess
from streams.events import Record
from streams.kafka_dead_letters import DeadLetterSink
from streams.kafka_source import KafkaSource
from streams.source_types import SourceUnavailable
from tests.servers import Broker

pytestmark = pytest.mark.servers

RECORD = Record("events", 1, 42, 1_700_000_000_000, b"user-1", b"\xff not json", (("ce_id", b"7"),))


@pytest.fixture
def sink(kafka: Broker, namespace: str) -> Iterator[DeadLetterSink]:
    sink = DeadLetterSink(bootstrap_servers=kafka.address, topic=f"{namespace}-dead")
    yield sink
    sink.close()


def letters(address: str, topic: str) -> list[DeadLetter]:
    source = KafkaSource(bootstrap_servers=address, topics=[topic])
    source.assign(source.beginning())
    end, found = source.end(), []
    while any(source.position(tp) < offset for tp, offset in end.items()):
        found += source.poll(1.0)
    source.close()
    assert all(record.key == DeadLetter.read(record).key for record in found)
    return [DeadLetter.read(record) for record in found]


def test_a_letter_has_the_whole_record_and_the_reason(kafka: Broker, sink: DeadLetterSink, namespace: str) -> None:
    sink.send(RECORD, "not_json", "the value is not JSON")
    sink.send(Record("events", 1, 43, -1, None, None), "bad_id", "there is no key")
    sink.flush()
    whole, empty = letters(kafka.address, f"{namespace}-dead")
    assert whole == DeadLetter(record=RECORD, reason="not_json", detail="the value is not JSON")
    assert (empty.record.key, empty.record.value) == (None, None)


def test_each_acknowledged_letter_is_counted(kafka: Broker, namespace: str) -> None:
    written: list[int] = []
    sink = DeadLetterSink(
        bootstrap_servers=kafka.address, topic=f"{namespace}-dead", on_written=lambda: written.append(1)
    )
    for offset in range(10):
        sink.send(Record("events", 0, offset, 0, None, b"x"), "not_json", "no")
    sink.flush()
    sink.close()
    assert len(written) == 10


def test_a_record_over_the_brokers_limit_is_cut_and_its_size_told(
    kafka: Broker, sink: DeadLetterSink, namespace: str
) -> None:
    value = bytes(range(256)) * 8192  # 2 MiB, over the default of 1 MiB
    sink.send(Record("events", 0, 1, 0, b"k", value), "too_large", "it is")
    sink.flush()
    (letter,) = letters(kafka.address, f"{namespace}-dead")
    assert letter.truncated_from == len(value)
    assert letter.record.value is not None
    assert value.startswith(letter.record.value)
    assert len(letter.record.value) > 900_000


def test_a_topic_that_takes_little_is_found_out(kafka: Broker, namespace: str) -> None:
    if kafka.kind == "embedded":
        pytest.skip("the embedded broker has no limit on records")
    topic = f"{namespace}-small"
    with KafkaAdminClient(bootstrap_servers=kafka.address) as admin:
        options = {"num_partitions": 1, "replication_factor": 1, "configs": {"max.message.bytes": "20000"}}
        admin.create_topics({topic: options}, wait_for_metadata=True)
    value = random.Random(1).randbytes(100_000)  # compression does not help
    for limit in (None, 1_000_000):  # asked for, and, were that refused, by trying
        sink = DeadLetterSink(bootstrap_servers=kafka.address, topic=topic, limit_bytes=limit)
        sink.send(Record("events", 0, limit or 0, 0, b"k", value), "too_large", "it is")
        for _ in range(10):
            try:
                sink.flush()
                break
            except SourceUnavailable:
                continue
        sink.close()
        assert sink.given_up == 0
    found = letters(kafka.address, topic)
    assert len(found) == 2
    assert all(letter.truncated_from == len(value) and letter.record.value for letter in found)


def test_letters_wait_while_the_broker_is_away(own_kafka: ServerProcess, request: pytest.FixtureRequest) -> None:
    sink = DeadLetterSink(bootstrap_servers=own_kafka.address, topic="dead", timeout_s=2.0)
    sink.send(RECORD, "not_json", "no")
    sink.flush()
    own_kafka.kill()
    late = Record("events", 1, 43, 0, None, b"late")
    sink.send(late, "not_json", "no")
    for _ in range(2):
        with pytest.raises(SourceUnavailable, match="1 dead letters are not written to 'dead' yet"):
            sink.flush()
    own_kafka.start()
    for _ in range(30):
        try:
            sink.flush()
            break
        except SourceUnavailable:
            continue
    sink.close()
    kept = [late] if "embedded" in request.node.name else [RECORD, late]  # The embedded broker forgets all it had.
    assert [letter.record for letter in letters(own_kafka.address, "dead")] == kept


def test_a_sink_made_while_the_broker_is_away_keeps_what_it_is_given(own_kafka: ServerProcess) -> None:
    own_kafka.stop()
    sink = DeadLetterSink(bootstrap_servers=own_kafka.address, topic="dead", timeout_s=2.0)
    sink.send(RECORD, "not_json", "no")
    with pytest.raises(SourceUnavailable):
        sink.flush()
    own_kafka.start()
    for _ in range(30):
        try:
            sink.flush()
            break
        except SourceUnavailable:
            continue
    sink.close()
    assert [letter.record for letter in letters(own_kafka.address, "dead")] == [RECORD]
