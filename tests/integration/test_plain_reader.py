"""A reader in plain redis-py, NumPy and zlib, with none of our code, gets the model's own scores from what was
published."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
import torch
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry

from models.serving import Snapshot
from service import daemon
from service.engine import Engine
from service.metrics import Metrics
from service.state_dir import StateDirectory
from tests.daemon_process import Place, small_world
from tests.servers import Broker

READER = Path(__file__).parents[2] / "docs" / "readers" / "reader.py"
TOLERANCE = 1e-5

pytestmark = [pytest.mark.servers, pytest.mark.slow]


@dataclass(frozen=True)
class Published:
    """What a daemon put into Redis, and the model it put there."""

    place: Place
    snapshot: Snapshot

    @property
    def users(self) -> list[str]:
        return self.snapshot.user_ids()

    def own_scores(self, users: list[str], items: list[str]) -> NDArray[np.float32]:
        """Scores (users, items) by the scorer's own torch code on a pair at a time."""
        snapshot = self.snapshot
        matrix = snapshot.vectors("items")[[snapshot.item_ids.index(item) for item in items]]
        pairs = [
            snapshot.scorer.pairs(torch.from_numpy(user).expand(len(items), -1), torch.from_numpy(matrix))
            for user in snapshot.user_vectors(users)
        ]
        return np.asarray(torch.stack(pairs).numpy())


@pytest.fixture(scope="module", params=["dot", "mlp"])
def published(
    request: pytest.FixtureRequest,
    brokers: Callable[[str], Broker],
    redis_url: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Published]:
    """A daemon has learned a thousand events in two phases with this head, and has published."""
    kafka = brokers("embedded")
    name = f"reader-{request.param}-{zlib.crc32(redis_url.encode())}"
    place = Place(tmp_path_factory.mktemp(name), name, kafka.address, redis_url)
    config = place.configure(model={"head": request.param})
    place.create_topics(kafka.producer)
    place.send(small_world(events=1_000), kafka.producer)
    assert daemon.run(config, once=True) == 0
    with StateDirectory.open(config.state_dir, config.namespace) as state:
        engine = Engine(config=config, state=state, metrics=Metrics(CollectorRegistry()), clock=lambda: 0.0)
        champion = engine.store.champion()
        assert champion is not None
        yield Published(place, engine.champion_snapshot(champion))


def run_reader(published: Published, user: str, items: list[str]) -> dict[str, float]:
    command = [sys.executable, "-I", str(READER), published.place.redis_url, published.place.namespace, user, *items]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return dict(json.loads(done.stdout))


def test_it_uses_none_of_our_code() -> None:
    imported = {
        name.name if isinstance(node, ast.Import) else str(node.module)
        for node in ast.walk(ast.parse(READER.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in node.names
    }
    assert imported == {"base64", "json", "sys", "zlib", "numpy", "redis"}


def test_its_scores_are_the_models_own(published: Published) -> None:
    items = published.snapshot.item_ids
    for user in published.users[:3]:
        scores = run_reader(published, user, items)
        own = published.own_scores([user], items)[0]
        assert list(scores) == items
        np.testing.assert_allclose(list(scores.values()), own, rtol=0, atol=TOLERANCE)
        assert np.ptp(own) > 100 * TOLERANCE, "scores that are all alike prove nothing"


def test_someone_unknown_is_scored_with_the_default_vector(published: Published) -> None:
    items = published.snapshot.item_ids[:20]
    scores = run_reader(published, "nobody has ever heard of me", items)
    own = published.own_scores(["nobody has ever heard of me"], items)[0]
    np.testing.assert_allclose(list(scores.values()), own, rtol=0, atol=TOLERANCE)


def test_every_item_and_user_of_the_version_is_there_where_the_contract_says(published: Published) -> None:
    snapshot, namespace = published.snapshot, published.place.namespace
    with redis.Redis.from_url(published.place.redis_url) as client:
        current: Any = client.get(f"{namespace}:current")
        pointer = json.loads(current)
        assert pointer["version"] == snapshot.version
        assert (pointer["dim"], pointer["head"]) == (snapshot.dim, snapshot.spec.head)
        for kind, ids, vectors in (
            ("items", snapshot.item_ids, snapshot.vectors("items")),
            ("users", snapshot.user_ids(), snapshot.vectors("users")),
        ):
            assert len(ids) == pointer[kind]
            stored: dict[bytes, bytes] = {}
            for bucket in range(pointer["buckets"]):
                fields: Any = client.hgetall(f"{namespace}:{kind}:{{b{bucket}}}:v{pointer['version']}")
                assert all(zlib.crc32(id_) % pointer["buckets"] == bucket for id_ in fields)
                stored |= fields
            assert stored.keys() == {id_.encode() for id_ in ids}
            found = np.stack([np.frombuffer(stored[id_.encode()], "<f4") for id_ in ids])
            np.testing.assert_allclose(found, vectors, rtol=0, atol=TOLERANCE)
        assert bool(client.exists(f"{namespace}:head:v{pointer['version']}")) == (snapshot.spec.head == "mlp")
