"""The daemon as a real process on real brokers and Redis servers: a stream becomes versions, and what is stopped,
killed or away comes back without a loss."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from kafka import KafkaAdminClient

from service.daemon import run
from service.phase_log import PhaseLine
from service.state_dir import lock_holder
from streams.embedded import ServerProcess, find_redis_server, free_port
from streams.kafka_producer import EventProducer
from streams.redis_keys import Pointer
from tests.daemon_process import DaemonProcess, Place, small_world
from tests.servers import Broker, kafka_kinds, new_broker, new_redis

pytestmark = [pytest.mark.servers, pytest.mark.slow]

PARTITIONS = 4


@pytest.fixture
def place(
    request: pytest.FixtureRequest, brokers: Callable[[str], Broker], namespace: str, tmp_path: Path
) -> Iterator[Place]:
    """Topics on a shared broker and a Redis of its own that may be killed: the embedded servers together, or, asked for
    by `on_every_kind`, the real ones."""
    kind = getattr(request, "param", "embedded")
    broker = brokers(kind)
    with new_redis("debian" if kind == "apache" and find_redis_server() else "embedded", tmp_path / "redis") as redis:
        place = Place(tmp_path / "place", namespace, broker.address, redis.address)
        place.redis = redis
        place.producer = broker.producer
        place.create_topics(broker.producer, partitions=PARTITIONS)
        yield place


on_every_kind = pytest.mark.parametrize("place", kafka_kinds(), indirect=True)


def accounted(lines: list[PhaseLine], topic: str) -> int:
    """Checks that the phases follow one another and account for every offset; returns the events."""
    assert [line.phase for line in lines] == list(range(1, len(lines) + 1))
    for before, after in itertools.pairwise(lines):
        assert {t: ps for t, ps in after.start.items() if t in before.end} == before.end
        assert (after.version or 0) > (before.version or 0)
    counts = sum(line.events + line.duplicates + line.rejected + line.skipped + line.lost for line in lines)
    assert counts == sum(lines[-1].end[topic].values()) - sum(lines[0].start[topic].values())
    return sum(line.events for line in lines)


def pointer_of(place: Place) -> Pointer:
    with place.sink() as sink:
        pointer = sink.pointer()
    assert pointer is not None
    return pointer


def complete(place: Place) -> Pointer:
    """Checks that the pointer promises no more than there is; returns it."""
    with place.sink() as sink:
        pointer = sink.pointer()
        assert pointer is not None
        assert sink.count(pointer.version, "items") >= pointer.items > 0
        assert sink.count(pointer.version, "users") >= pointer.users > 0
        assert len(pointer.default_vector()) == pointer.dim
    return pointer


@on_every_kind
def test_a_stream_becomes_versions_and_a_restart_goes_on(place: Place, start: Callable[..., DaemonProcess]) -> None:
    stream = small_world(events=3_000)
    topic = place.topics["interactions"]
    place.send([message for message in stream if message.number < 2_000])
    daemon = start(place)
    daemon.wait_ready()
    daemon.wait_learned(2_000)

    lines = place.lines()
    assert accounted(lines, topic) == 2_000
    assert {line.decision for line in lines} == {"promoted"}
    assert all(line.published_at is not None for line in lines)
    assert len(lines) == 4, "a backlog is cut by count alone"
    assert complete(place).version == lines[-1].version
    assert set(lines[-1].end[topic]) == set(range(PARTITIONS))

    # What it answers.
    assert daemon.get("/healthz") == (200, "ok\n")
    status = daemon.status()
    assert (status["running"], status["ready"], status["events"]) == (True, True, 2_000)
    assert status["serving"] == status["champion"] == status["latest"] == lines[-1].version
    best = daemon.recommend("u1", k=5)
    assert len(best) == 5
    assert [one["score"] for one in best] == sorted((one["score"] for one in best), reverse=True)
    assert best[0]["attributes"]["title"]
    assert daemon.get(f"/similar/{best[0]['item_id']}?k=3")[0] == 200
    assert daemon.get("/similar/nothing-like-it")[0] == 404
    assert daemon.metric("headwater_events_total") == 2_000
    assert daemon.metric("headwater_phases_total", decision="promoted") == 4
    assert daemon.metric("headwater_champion_version") == lines[-1].version
    assert daemon.metric("headwater_redis_up") == daemon.metric("headwater_kafka_up") == 1
    assert daemon.metric("headwater_promotion_held") == 0

    # Strangers are all alike, and not like anybody known.
    assert daemon.recommend("stranger") == daemon.recommend("another stranger") != daemon.recommend("u1")

    # A second daemon is kept out.
    second = place.verb("run", "--once")
    assert second.returncode == 1
    assert f"process {daemon.pid}" in second.stderr

    # It stops cleanly.
    assert daemon.terminate() == 0, daemon.tail()
    assert lock_holder(place.state_dir) is None
    assert not (place.state_dir / "http.json").exists()
    assert committed(place) == {(t, p): o for t, ps in lines[-1].end.items() for p, o in ps.items() if o}

    # And it goes on where it was, with what came meanwhile.
    place.send([message for message in stream if message.number >= 2_000])
    daemon = start(place)
    daemon.wait_learned(3_000)
    lines = place.lines()
    assert accounted(lines, topic) == 3_000
    assert complete(place).version == lines[-1].version
    assert daemon.terminate() == 0, daemon.tail()


def committed(place: Place) -> dict[tuple[str, int], int]:
    """What lag tools see of the group, without the zeros."""
    with KafkaAdminClient(bootstrap_servers=place.broker) as admin:
        offsets = admin.list_group_offsets(place.namespace)[place.namespace]
    return {(tp.topic, tp.partition): at.offset for tp, at in offsets.items() if at.offset > 0}


@pytest.mark.parametrize("place", [kind for kind in kafka_kinds() if kind != "embedded"], indirect=True)
def test_new_partitions_are_read_from_their_beginning(place: Place, start: Callable[..., DaemonProcess]) -> None:
    # The embedded broker cannot add partitions.
    stream, topic = small_world(events=1_000), place.topics["interactions"]
    place.send([message for message in stream if message.number < 500])
    daemon = start(place)
    daemon.wait_learned(500)
    with KafkaAdminClient(bootstrap_servers=place.broker) as admin:
        admin.create_partitions({topic: PARTITIONS + 2})
    # A producer that knows them from the start; the shared one may not for minutes.
    with EventProducer(bootstrap_servers=place.broker) as producer:
        place.send([message for message in stream if message.number >= 500], producer)
    daemon.wait_learned(1_000)
    lines = place.lines()
    assert sum(line.events for line in lines) == 1_000
    assert set(lines[-1].end[topic]) == set(range(PARTITIONS + 2))
    assert all(lines[-1].end[topic][new] > 0 for new in (PARTITIONS, PARTITIONS + 1))
    assert daemon.terminate() == 0, daemon.tail()


def test_once_on_empty_topics_ends_with_nothing(place: Place) -> None:
    assert run(place.config, once=True) == 0
    assert place.lines() == []
    with place.sink() as sink:
        assert sink.pointer() is None


def test_once_learns_what_is_there_and_again_publishes_it_into_an_empty_redis(place: Place) -> None:
    place.send(small_world(events=700))
    assert run(place.config, once=True) == 0
    assert accounted(place.lines(), place.topics["interactions"]) == 700
    first = complete(place)
    assert place.redis is not None
    place.redis.kill()
    place.redis.start()
    assert run(place.config, once=True) == 0
    assert len(place.lines()) == 2, "nothing was new"
    again = complete(place)
    assert (again.version, again.items, again.users) == (first.version, first.items, first.users)


def test_a_redis_that_comes_back_empty_is_filled_again(place: Place, start: Callable[..., DaemonProcess]) -> None:
    stream = small_world(events=1_500)
    place.send([message for message in stream if message.number < 500])
    daemon = start(place)
    daemon.wait_learned(500)
    daemon.wait_ready()
    assert place.redis is not None
    place.redis.kill()
    # Learning goes on without it.
    place.send([message for message in stream if 500 <= message.number < 1_000])
    daemon.wait_learned(1_000)
    daemon.wait_until("/readyz to tell", lambda: daemon.get("/readyz")[0] == 503)
    assert daemon.get("/healthz")[0] == 200
    place.redis.start()
    daemon.wait_ready()
    daemon.wait_until("the newest version", lambda: pointer_of(place).version == place.lines()[-1].version)
    complete(place)
    # And the fast path with it: a click after the outage changes the user's vector under the served version.
    place.send([message for message in stream if message.number >= 1_000])
    daemon.wait_learned(1_500)
    assert accounted(place.lines(), place.topics["interactions"]) == 1_500
    daemon.wait_until("the last version", lambda: pointer_of(place).version == place.lines()[-1].version)
    complete(place)
    assert daemon.terminate() == 0, daemon.tail()


def test_servers_that_are_away_at_start_are_waited_for_by_name(
    tmp_path: Path, namespace: str, start: Callable[..., DaemonProcess]
) -> None:
    broker, redis = absent_servers(tmp_path)
    with ExitStack() as stack:
        place = Place(tmp_path / "place", namespace, broker.address, redis.address)
        daemon = start(place)
        daemon.wait_until("/readyz to name Kafka", lambda: "Kafka has not answered" in str(daemon.get("/readyz")))
        assert daemon.get("/healthz")[0] == 200
        assert daemon.status()["ready"] is False
        stack.enter_context(broker)
        with EventProducer(bootstrap_servers=broker.address) as producer:
            place.create_topics(producer)
            place.send(small_world(events=500), producer)
        daemon.wait_until("/readyz to name Redis", lambda: "Redis is away" in str(daemon.get("/readyz")))
        daemon.wait_learned(500)
        stack.enter_context(redis)
        daemon.wait_ready()
        assert complete(place).version == place.lines()[-1].version
        assert daemon.terminate() == 0, daemon.tail()


def absent_servers(directory: Path) -> tuple[ServerProcess, ServerProcess]:
    """A broker and a Redis that are not started, on ports that are known."""
    return (
        new_broker("embedded", directory / "kafka", port=free_port()),
        new_redis("embedded", directory / "redis", port=free_port()),
    )


def test_waiting_for_a_server_ends_cleanly_when_told_to(
    tmp_path: Path, namespace: str, start: Callable[..., DaemonProcess]
) -> None:
    broker, redis = absent_servers(tmp_path)
    daemon = start(Place(tmp_path / "place", namespace, broker.address, redis.address))
    daemon.wait_until("the daemon to wait", lambda: any("is away" in line["event"] for line in daemon.said()))
    assert daemon.terminate() == 0, daemon.tail()
    assert "Traceback" not in daemon.tail()
