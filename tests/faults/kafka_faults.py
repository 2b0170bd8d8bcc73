"""Kafka goes away, loses records, or changes its topics under the daemon."""

from __future__ import annotations

import json
import time
from contextlib import closing

from kafka import KafkaAdminClient, KafkaProducer
from kafka import TopicPartition as ClientPartition

from streams.kafka_producer import EventProducer
from tests.faults.ledger import books
from tests.faults.stage import PER_PHASE, Outcome, Run, Stage, fault, wait_for


def admin(run: Run) -> KafkaAdminClient:
    """A client for changing topics; close it."""
    return KafkaAdminClient(bootstrap_servers=run.place.broker)


@fault("Kafka", "killed and restarted", needs="apache")
def killed(stage: Stage) -> Outcome:
    server, producer = stage.own_kafka()
    run = stage.serving(stage.place(kafka=(server, producer)))
    with run.fault():
        server.kill()
    run.daemon.wait_until("kafka_up to be 0", lambda: run.daemon.metric("headwater_kafka_up") == 0)
    assert run.daemon.get("/readyz")[0] == 200, "what is served is there all the same"
    server.start()
    run.lift()
    run.send(PER_PHASE)
    return run.recovered("went on where it was; what was served stayed", said="kafka is away")


@fault("Kafka", "unreachable for a while (SIGSTOP)", needs="apache")
def unreachable(stage: Stage) -> Outcome:
    server, producer = stage.own_kafka()
    run = stage.serving(stage.place(kafka=(server, producer)))
    with run.fault():
        server.freeze()
    try:
        time.sleep(stage.outage_s)
        run.daemon.wait_until("kafka_up to be 0", lambda: run.daemon.metric("headwater_kafka_up") == 0)
    finally:
        server.thaw()
    run.lift()
    run.send(PER_PHASE)
    return run.recovered("went on where it was; what was served stayed", said="kafka is away")


@fault("Kafka", "killed and restarted five times in a row", needs="apache")
def flapping(stage: Stage) -> Outcome:
    server, producer = stage.own_kafka()
    run = stage.serving(stage.place(kafka=(server, producer)))
    with run.fault():
        for _ in range(5):
            server.kill()
            server.start()
    run.send(PER_PHASE)
    return run.recovered("went on where it was", said="kafka is away")


@fault("Kafka", "records deleted before they were read, on_data_loss = stop", needs="apache")
def truncated_stop(stage: Stage) -> Outcome:
    run = stage.serving()
    assert run.daemon.terminate() == 0
    deleted = truncate(run)
    with run.fault():
        run.daemon.launch()
        assert run.daemon.end() == 1
    return Outcome(
        f"stopped and passed nothing over: a person decides ({deleted} were gone)",
        None,
        deleted,
        run.said("no longer has"),
    )


@fault("Kafka", "records deleted before they were read, on_data_loss = count", needs="apache")
def truncated_count(stage: Stage) -> Outcome:
    place = stage.place()
    place.configure(kafka={"on_data_loss": "count"})
    run = stage.serving(place)
    assert run.daemon.terminate() == 0
    deleted = truncate(run)
    with run.fault():
        run.start()
    outcome = run.recovered("counted them and went on", said="counted", lost=deleted)
    assert books(place).lost == deleted
    return outcome


def truncate(run: Run) -> int:
    """Sends events that are deleted before anybody has read them, and some that are not; how many were deleted."""
    before = books(run.place).passed
    topic = run.place.topics["interactions"]
    run.send(PER_PHASE)
    with closing(admin(run)) as client:
        ends = run.place.lines()[-1].end[topic]
        client.delete_records({ClientPartition(topic, 0): ends[0] + 20})
    run.send(PER_PHASE)
    assert before == books(run.place).passed
    return 20


@fault("Kafka", "topic deleted and made again while it is read", needs="apache")
def remade_running(stage: Stage) -> Outcome:
    run = stage.serving()
    topic = run.place.topics["interactions"]
    with run.fault():
        run.daemon.freeze()  # it must not see the topic while that is still shorter than its offsets
        try:
            remake(run, topic)
            # So much that our offsets exist in the new topic too, and mean other records.
            with EventProducer(bootstrap_servers=run.place.broker, linger_ms=0) as producer:
                run.place.send(run.take(3 * PER_PHASE), producer)
        finally:
            run.daemon.thaw()
        assert run.daemon.end() == 1
    assert books(run.place).events == run.interactions - 3 * PER_PHASE, "read on in the middle of another topic"
    return Outcome(
        "stopped before it read the new topic in the middle", None, 0, run.said("made anew|no topic|deleted")
    )


@fault("Kafka", "topic deleted and made again while the daemon is down", needs="apache")
def remade_stopped(stage: Stage) -> Outcome:
    run = stage.serving()
    assert run.daemon.terminate() == 0
    with run.fault():
        remake(run, run.place.topics["interactions"])
        run.daemon.launch()
        assert run.daemon.end() == 1
    return Outcome("refused to start, naming the fix", None, 0, run.said("made anew"))


def remake(run: Run, topic: str) -> None:
    with closing(admin(run)) as client:
        client.delete_topics([topic])
        client.create_topics({topic: {"num_partitions": 2, "replication_factor": 1}}, wait_for_metadata=True)


@fault("Kafka", "partitions added", needs="apache")
def partitions_added(stage: Stage) -> Outcome:
    run = stage.serving()
    with run.fault(), closing(admin(run)) as client:
        client.create_partitions({run.place.topics["interactions"]: 5})
    # A producer that knows them from the start.
    with EventProducer(bootstrap_servers=run.place.broker, linger_ms=0) as producer:
        run.send(PER_PHASE, producer)
        run.wait_learned()
    assert len(run.place.lines()[-1].end[run.place.topics["interactions"]]) == 5
    return run.recovered("found them and read them from their beginning", said="partitions were added")


@fault("Kafka", "transactions aborted, and one left open", needs="apache")
def transactions(stage: Stage) -> Outcome:
    run = stage.serving()
    topic = run.place.topics["interactions"]
    with closing(KafkaProducer(bootstrap_servers=run.place.broker, transactional_id=f"tx-{topic}")) as producer:
        producer.init_transactions()
        with run.fault():
            for _ in range(5):
                producer.begin_transaction()
                for number in range(10):
                    event = {"user_id": "nobody", "item_id": "nothing", "time": 1.7e9 + number}
                    producer.send(topic, key=b"nobody", value=json.dumps(event).encode())
                producer.flush()
                producer.abort_transaction()
        run.send(PER_PHASE)
        run.wait_learned()
        producer.begin_transaction()
        producer.send(topic, key=b"nobody", value=b"{}")
        producer.flush()
        run.send(PER_PHASE)  # of which a part lies behind what may yet be committed
        time.sleep(3.0)
        producer.abort_transaction()
    run.lift()
    outcome = run.recovered("never saw them; their offsets are counted as skipped", said="phase .* promoted")
    assert books(run.place).skipped == 50 + 5 + 1 + 1
    return outcome


@fault("Kafka", "items topic compacted", needs="apache")
def compacted(stage: Stage) -> Outcome:
    server, producer = stage.own_kafka(log_cleaner_backoff_ms="200", log_retention_check_interval_ms="1000")
    place = stage.place(kafka=(server, producer))
    run = Run(stage, place)
    first = run.take(400)
    topic = place.topics["items"]
    with closing(admin(run)) as client:
        client.alter_configs(_cleaned_soon(topic))
        items = [message for message in first if message.kind == "items"]
        for _ in range(5):  # each version of an item but the last is cleaned away
            place.send(items)
            time.sleep(0.3)
        place.send([message for message in first if message.kind != "items"])
        producer.send(topic, b"last", json.dumps({"item_id": "last", "features": {}}).encode())
        producer.flush()
        with run.fault():
            wait_for("the log cleaner", lambda: _records(place.broker, topic) < 3 * len(items))
    run.start()
    run.lift()
    return run.recovered("read what was left of it, past the holes", said="phase .* promoted")


def _cleaned_soon(topic: str) -> list[object]:
    from kafka.admin import ConfigResource, ConfigResourceType

    soon = {"segment.ms": "100", "min.cleanable.dirty.ratio": "0.01", "max.compaction.lag.ms": "100"}
    return [ConfigResource(ConfigResourceType.TOPIC, topic, configs=soon)]


def _records(broker: str, topic: str) -> int:
    from kafka import KafkaConsumer

    with closing(
        KafkaConsumer(
            topic, bootstrap_servers=broker, auto_offset_reset="earliest", group_id=None, consumer_timeout_ms=1000
        )
    ) as consumer:
        return sum(1 for _ in consumer)
