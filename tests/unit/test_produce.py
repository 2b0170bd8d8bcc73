"""Sending files to Kafka: where each event goes, in what order, and how fast."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pytest

from service.config import Config, KafkaConfig
from service.connections import kafka_source
from service.produce import Pace, produce
from streams.events import Record
from streams.file_tables import EventFileError
from tests.servers import Broker


def lines(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(config: Config, topic: str, count: int) -> list[Record]:
    with closing(kafka_source(config, topics=[topic], group=False)) as source:
        source.assign(source.beginning())
        records: list[Record] = []
        while len(records) < count:
            records += source.poll(1.0)
        return records


def test_pace_is_even_and_does_not_drift() -> None:
    now = 100.0
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        nonlocal now
        slept.append(seconds)
        now += seconds + 0.01  # A sleep that always comes back late.

    pace = Pace(10.0, clock=lambda: now, sleep=sleep)
    for _ in range(11):
        pace.wait()
    assert now == pytest.approx(101.01)
    assert len(slept) == 10


def test_without_a_rate_nobody_waits() -> None:
    pace = Pace(None, sleep=lambda _: pytest.fail("slept"))
    pace.wait()


@pytest.mark.servers
def test_events_go_to_their_topics_in_order(tmp_path: Path, kafka: Broker) -> None:
    name = kafka.topic()  # Only for a name of its own: the others derive from it and do not exist yet.
    config = Config(
        kafka=KafkaConfig(
            bootstrap_servers=kafka.address, interactions_topic=f"{name}-clicks", items_topic=f"{name}-items"
        )
    )
    clicks = lines(
        tmp_path / "clicks.jsonl",
        [{"user_id": f"u{n}", "item_id": "i1", "action": "view", "time": 1_700_000_000 + n} for n in range(5)],
    )
    goods = lines(tmp_path / "goods.jsonl", [{"item_id": "i1"}, {"item_id": "i2"}, {"user_id": "u1"}])
    assert produce(config, [clicks, goods], None) == 0
    items = read(config, f"{name}-items", 2)
    assert [record.key for record in sorted(items, key=lambda record: record.value or b"")] == [b"i1", b"i2"]
    interactions = read(config, f"{name}-clicks", 5)
    assert {record.key for record in interactions} == {b"u0", b"u1", b"u2", b"u3", b"u4"}
    assert max(record.timestamp_ms for record in items) <= min(record.timestamp_ms for record in interactions)


@pytest.mark.servers
def test_an_unreadable_file_is_named(tmp_path: Path, kafka: Broker) -> None:
    config = Config(
        kafka=KafkaConfig(bootstrap_servers=kafka.address, interactions_topic=kafka.topic(), items_topic="")
    )
    with pytest.raises(EventFileError, match=r"absent\.jsonl"):
        produce(config, [tmp_path / "absent.jsonl"], None)
