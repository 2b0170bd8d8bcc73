"""What others send may be meant to harm: huge records, ids that look like paths or patterns, vectors of NaN, invented
ids by the hundred thousand. And who asks to be forgotten is."""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
import redis
from kafka import KafkaAdminClient

from service.connections import user_ids
from service.daemon import run
from streams.dead_letters import DeadLetter
from streams.event_values import TOO_MANY_IDS
from streams.kafka_producer import EventProducer
from streams.kafka_source import KafkaSource
from streams.simulator_messages import Message
from streams.user_ids import keyed, plain
from tests.daemon_process import DaemonProcess, Place, small_world
from tests.servers import Broker, kafka_kinds, new_redis

pytestmark = [pytest.mark.servers, pytest.mark.slow]

HUGE_BYTES = 100_000_000
START = 1_735_700_000.0


@pytest.fixture
def redis_address(tmp_path: Path) -> Iterator[str]:
    with new_redis("embedded", tmp_path / "redis") as server:
        yield server.address


def click(user: str, item: str, time: float) -> Message:
    body = {"user_id": user, "item_id": item, "action": "click", "time": time}
    return Message("interactions", user.encode(), json.dumps(body).encode(), time, 0)


def letters(place: Place) -> list[DeadLetter]:
    source = KafkaSource(bootstrap_servers=place.broker, topics=[place.topics["dead"]])
    source.assign(source.beginning())
    end, found = source.end(), []
    while any(source.position(tp) < offset for tp, offset in end.items()):
        found += [DeadLetter.read(record) for record in source.poll(1.0)]
    source.close()
    return found


def balanced(place: Place) -> int:
    """Checks that the phases account for every offset; returns the events."""
    lines, topic = place.lines(), place.topics["interactions"]
    for before, after in itertools.pairwise(lines):
        assert after.start[topic] == before.end[topic]
    counted = sum(line.events + line.duplicates + line.rejected + line.skipped + line.lost for line in lines)
    assert counted == sum(lines[-1].end[topic].values()) - sum(lines[0].start[topic].values())
    return sum(line.events for line in lines)


ODD_IDS = [
    "../../../../etc/passwd", "..", "/etc/passwd", "C:\\windows\\system32", "{b0}", "*", "a:b:c", "%2e%2e%2f",
    "\r\nFLUSHALL\r\n",
    "' OR 1=1 --", "<script>alert(1)</script>", "${jndi:ldap://x}", "\u202egnp.exe", "x" * 512, "NaN", "-1", "null",
]  # fmt: skip


@pytest.mark.skipif("apache" not in kafka_kinds(), reason="needs Apache Kafka: set HEADWATER_TEST_KAFKA")
def test_a_huge_record_ids_like_paths_and_nan_vectors_do_no_harm(
    brokers: Callable[[str], Broker], redis_address: str, namespace: str, tmp_path: Path,
    start: Callable[..., DaemonProcess],
) -> None:  # fmt: skip
    broker = brokers("apache")
    place = Place(tmp_path / "place", namespace, broker.address, redis_address)
    place.producer = broker.producer
    with KafkaAdminClient(bootstrap_servers=place.broker) as admin:
        large = {"num_partitions": 1, "replication_factor": 1, "configs": {"max.message.bytes": str(HUGE_BYTES + 4096)}}
        admin.create_topics({place.topics["interactions"]: large}, wait_for_metadata=True)
    place.create_topics(broker.producer, partitions=1)
    place.send(small_world(events=300))
    nan = base64.b64encode(np.full(24, np.nan, "<f4").tobytes()).decode()
    with EventProducer(
        bootstrap_servers=place.broker, max_request_bytes=HUGE_BYTES + 4096, compression=None, timeout_s=120
    ) as producer:
        producer.send(place.topics["interactions"], b"huge", b'{"user_id": "' + b"u" * (HUGE_BYTES - 100) + b'"}')
        for n, odd in enumerate(ODD_IDS):
            producer.send(place.topics["interactions"], b"k", click(odd, odd, START + n).value)
        for vector in (nan, [1.0] * 23 + [1e39]):
            body = {"item_id": "poisoned", "features": {"text": vector}}
            producer.send(place.topics["items"], b"poisoned", json.dumps(body).encode())
        producer.flush()
    daemon = start(place)
    daemon.wait_learned(300 + len(ODD_IDS))
    daemon.wait_ready()

    found = letters(place)
    assert sorted(letter.reason for letter in found) == ["not_finite", "not_finite", "too_large"]
    (huge,) = [letter for letter in found if letter.reason == "too_large"]
    assert huge.truncated_from is not None
    assert huge.truncated_from > HUGE_BYTES - 200
    assert balanced(place) == 300 + len(ODD_IDS)
    # Ids are names of nothing but themselves.
    for odd in ODD_IDS:
        assert daemon.get(f"/recommend/{quote(odd, safe='')}?k=3&include_seen=1")[0] == 200, odd
        assert daemon.get(f"/similar/{quote(odd, safe='')}?k=3")[0] == 200, odd
    assert daemon.get("/similar/poisoned")[0] == 404
    with place.sink() as sink:
        version = place.lines()[-1].version or 0
        for raw in sink.read(version, "items", ODD_IDS):
            assert raw is not None
            assert np.isfinite(np.frombuffer(raw, "<f4")).all()
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert not any(odd in path for path in written for odd in [*ODD_IDS[:2], "passwd", "system32"])
    assert daemon.get("/../../etc/passwd")[0] == 404
    assert daemon.terminate() == 0


FLOOD = 100_000
KEPT = 1_000


def test_a_flood_of_invented_ids_fills_no_memory_and_is_told_to_the_last_record(
    brokers: Callable[[str], Broker], redis_address: str, namespace: str, tmp_path: Path,
    start: Callable[..., DaemonProcess],
) -> None:  # fmt: skip
    broker = brokers(kafka_kinds()[-1])
    place = Place(tmp_path / "place", namespace, broker.address, redis_address)
    place.producer = broker.producer
    place.create_topics(broker.producer, partitions=1)
    place.configure(
        phase={"max_events": FLOOD, "max_wait_s": 600.0},
        events={"max_new_ids": KEPT, "dedupe_events": 0},
        kafka={"partition_idle_s": 600.0},
    )
    world = small_world(events=FLOOD // 100)
    announced = sum(message.kind == "items" for message in world)
    enrolled = sum(message.kind == "users" for message in world)
    place.send(message for message in world if message.kind != "interactions")
    place.send(click(f"user-{n}", f"item-{n}", START + n / 1000) for n in range(FLOOD))
    daemon = start(place)
    daemon.wait_until("the flood to be passed", lambda: len(place.lines()) == 1)
    daemon.wait_ready()

    (line,) = place.lines()
    assert (line.events, line.rejected, line.over_limit) == (KEPT, FLOOD - KEPT, FLOOD - KEPT)
    assert balanced(place) == KEPT
    assert daemon.metric("headwater_rejected_total", reason=TOO_MANY_IDS) == FLOOD - KEPT
    assert daemon.metric("headwater_known_users") == KEPT + enrolled
    assert daemon.metric("headwater_catalogue_items") == KEPT + announced
    with place.sink() as sink:
        assert sink.count(line.version or 0, "users") == KEPT + enrolled
    assert daemon.terminate() == 0
    found = letters(place)
    assert {letter.reason for letter in found} == {TOO_MANY_IDS}
    assert sorted({letter.record.offset for letter in found}) == list(range(KEPT, FLOOD))
    assert all(letter.record.value == click(f"user-{o}", f"item-{o}", START + o / 1000).value
               for letter in found[:: FLOOD // 50] for o in [letter.record.offset])  # fmt: skip


FORGET = "delete-me-please-7f3a"


@pytest.mark.parametrize("hashed", [False, True], ids=["plain ids", "hashed ids"])
def test_after_a_deletion_no_byte_of_the_user_is_left(
    hashed: bool, brokers: Callable[[str], Broker], redis_address: str, namespace: str, tmp_path: Path
) -> None:
    broker = brokers("embedded")
    place = Place(tmp_path / "place", namespace, broker.address, redis_address)
    place.producer = broker.producer
    place.create_topics(broker.producer, partitions=1)
    key = tmp_path / "key"
    key.write_text("a key for the user ids of this test")
    if hashed:
        place.configure(events={"user_id_key_file": str(key)})
    config = place.configure(publish={"keep_versions": 1, "grace_s": 0.5}, phase={"max_events": 300})
    stored = user_ids(config)(FORGET)
    assert stored == (keyed(key.read_text().encode())(FORGET) if hashed else plain(FORGET))

    world = small_world(events=1500)
    profile = {"user_id": FORGET, "features": {"profile": [0.5] * 12}}
    place.send([Message("users", FORGET.encode(), json.dumps(profile).encode(), 0.0, 0)])
    place.send([message for message in world if message.number < 300])
    place.send([click(FORGET, f"i{n}", START + n) for n in range(5)])
    assert run(place.config, once=True) == 0
    assert holders(place, redis_address, stored), "or nothing below could fail"
    assert hashed == (not holders(place, redis_address, FORGET)), "raw where it is not hashed, else nowhere"

    place.send([Message("users", FORGET.encode(), json.dumps({"user_id": FORGET, "deleted": True}).encode(), 0.0, 0)])
    place.send([message for message in world if message.number >= 300])
    assert run(place.config, once=True) == 0
    assert len(place.lines()) > 4
    assert not (place.state_dir / "tombstones.jsonl").read_bytes()
    client: Any = redis.Redis.from_url(redis_address)
    for name in client.keys(f"{namespace}:*:v*"):  # superseded versions are in their grace period yet
        if client.pttl(name) > 0:
            client.delete(name)
    client.close()
    assert holders(place, redis_address, stored) == []
    assert holders(place, redis_address, FORGET) == []


def holders(place: Place, address: str, identifier: str) -> list[str]:
    """Every file of the state directory and every key of Redis in which these bytes stand."""
    raw = identifier.encode()
    found = [str(path) for path in place.state_dir.rglob("*") if path.is_file() and raw in path.read_bytes()]
    client: Any = redis.Redis.from_url(address)
    for key in client.scan_iter(count=1000):
        kind = client.type(key)
        content = client.get(key) if kind == b"string" else b"\n".join(itertools.chain(*client.hgetall(key).items()))
        if raw in key + content:
            found.append(key.decode())
    client.close()
    return found
