"""`headwater explain` on a running daemon, and on what it left on disk: the same parts of the same score."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from service.daemon import run
from streams.kafka_producer import EventProducer
from tests.daemon_process import DaemonProcess, Place, small_world
from tests.servers import new_broker, new_redis

pytestmark = [pytest.mark.servers, pytest.mark.slow]

CLOSE = 1e-5


def explained(place: Place, user: str, item: str) -> dict[str, Any]:
    said = place.verb("explain", user, item, "--json")
    assert said.returncode == 0, said.stderr
    found: dict[str, Any] = json.loads(said.stdout)
    return found


def test_the_daemon_and_its_checkpoint_explain_alike(tmp_path: Path, namespace: str) -> None:
    with (
        new_broker("embedded", tmp_path / "kafka") as broker,
        new_redis("embedded", tmp_path / "redis") as redis,
        EventProducer(bootstrap_servers=broker.address) as producer,
    ):
        place = Place(tmp_path / "place", namespace, broker.address, redis.address, producer=producer)
        place.create_topics(producer, partitions=1)
        place.send(small_world(events=500))
        assert run(place.config, once=True) == 0
        with DaemonProcess(place) as daemon:
            daemon.wait_ready()
            best = daemon.recommend("u1", k=1)[0]
            running = explained(place, "u1", best["item_id"])
            assert daemon.get(f"/explain/u1/{best['item_id']}") == (200, running)
            for user, item, what in (("u1", "nothing", "item"), ("nobody", best["item_id"], "user")):
                code, said = daemon.get(f"/explain/{user}/{item}")
                assert (code, f"No {what} is known as" in said["error"]) == (404, True)
            assert daemon.metric("headwater_http_requests_total", route="/explain/{pair}", code="404") == 2
            assert daemon.terminate() == 0, daemon.tail()

        # what is explained is the score that was answered, and its parts add up to it
        assert running["score"] == pytest.approx(best["score"], abs=CLOSE)
        assert running["attributes"] == best["attributes"]
        item, user = running["item"], running["user"]
        assert item["modalities"].keys() == place.tables["model"]["modalities"].keys()
        by_item = sum(item["modalities"].values()) + sum(v for v in item.values() if isinstance(v, float))
        by_user = sum(one["score"] for one in user["history"]) + sum(v for v in user.values() if isinstance(v, float))
        assert by_item == pytest.approx(running["score"], abs=CLOSE)
        assert by_user == pytest.approx(running["score"], abs=CLOSE)
        assert len(user["history"]) == place.tables["model"]["history"]
        assert all(one["attributes"]["title"] for one in user["history"])

        # with none running, the checkpoint answers the same
        on_disk = explained(place, "u1", best["item_id"])
        assert on_disk["score"] == pytest.approx(running["score"], abs=CLOSE)
        assert [one["item_id"] for one in on_disk["user"]["history"]] == [one["item_id"] for one in user["history"]]
        wrong = place.verb("explain", "nobody", best["item_id"])
        assert (wrong.returncode, wrong.stdout, len(wrong.stderr.splitlines())) == (1, "", 1)
        table = place.verb("explain", "u1", best["item_id"])
        assert best["attributes"]["title"] in table.stdout
