"""A shadow beside a running daemon: its figures, its promotion over HTTP, and, for another model, with none running."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from service.daemon import run
from streams.kafka_producer import EventProducer
from tests.daemon_process import DaemonProcess, Place, small_world
from tests.servers import new_broker, new_redis

pytestmark = [pytest.mark.servers, pytest.mark.slow]


def pointed(place: Place) -> int:
    with place.sink() as sink:
        pointer = sink.pointer()
    assert pointer is not None
    return pointer.version


def test_a_shadow_is_compared_and_promoted(tmp_path: Path, namespace: str) -> None:
    stream = small_world(events=1_500)
    with (
        new_broker("embedded", tmp_path / "kafka") as broker,
        new_redis("embedded", tmp_path / "redis") as redis,
        EventProducer(bootstrap_servers=broker.address) as producer,
    ):
        place = Place(tmp_path / "place", namespace, broker.address, redis.address, producer=producer)
        place.configure(shadow={"train": {"learning_rate": 0.01}})
        place.create_topics(producer, partitions=1)
        place.send([message for message in stream if message.number < 1_000])
        with DaemonProcess(place) as daemon:
            daemon.wait_ready()
            daemon.wait_learned(1_000)
            assert "shadow_champion_change" in place.lines()[-1].metrics
            assert daemon.metric("headwater_quality", who="shadow") > 0
            daemon.metric("headwater_shadow_change", against="candidate", figure="change")
            assert daemon.post("/admin/promote-shadow", {}, token=None)[0] == 401
            code, said = daemon.post("/admin/promote-shadow", {})
            assert (code, said["published"]) == (200, True)
            assert pointed(place) == said["version"] == daemon.status()["champion"]
            place.send([message for message in stream if message.number >= 1_000])
            daemon.wait_learned(1_500)
            assert daemon.terminate() == 0, daemon.tail()

        # another model: learned beside the first, then moved into its place with none running
        place.configure(shadow={"train": {}, "model": {"fusion": "sum"}})
        place.send(small_world(events=500, seed=4))
        assert run(place.config, once=True) == 0
        refused = place.verb("promote-shadow")
        assert (refused.returncode, "move the keys of [shadow.model]" in refused.stderr) == (1, True)
        place.configure(shadow={"model": {}}, model={"fusion": "sum"})
        said = json.loads(place.verb("promote-shadow", "--json").stdout)
        assert said["published"]
        assert pointed(place) == said["version"]
        with DaemonProcess(place) as daemon:
            daemon.wait_ready()
            assert daemon.status()["serving"] == said["version"]
            assert daemon.terminate() == 0, daemon.tail()
