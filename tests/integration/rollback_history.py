"""A past worth rolling back: five phases, and after the one that is gone back to a new item, deletions and clicks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from service.checkpoints import CheckpointStore
from service.daemon import run
from service.sealed import seal, unseal
from service.state_dir import StateIdentity
from streams.embedded import ServerProcess
from streams.kafka_producer import EventProducer
from streams.redis_keys import Pointer
from streams.simulator_messages import Message
from tests.daemon_process import Place, small_world
from tests.servers import new_broker, new_redis

PHASES, PER_PHASE = 5, 200
TARGET = 3
"""The version rolled back to; deletions, a new item and more clicks come after it."""
DIM = 8
GONE_ITEM, GONE_USER, NEW_ITEM = "i7", "u9", "brand new"
TOLERANCE = 1e-5

Vectors = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Served:
    """All that readers find in Redis at one moment."""

    pointer: Pointer
    items: Vectors
    users: Vectors


@dataclass(frozen=True)
class History:
    """Five phases, each promoted, and what was served after the one that is rolled back to and after the last."""

    place: Place
    """As it was left, with its servers gone."""
    sent: list[Message]
    at_target: Served
    at_last: Served
    more: list[Message]
    """Two phases' worth of messages that were not sent yet."""
    returned: str
    """A user with a click after the target, and clicks before it."""
    quiet: str
    """A user without one."""


def look(place: Place) -> Served:
    with place.sink() as sink:
        pointer = sink.pointer()
        assert pointer is not None
        found: dict[Any, Vectors] = {}
        kinds: tuple[Any, ...] = ("items", "users")
        for kind in kinds:
            ids = sorted(sink.ids(pointer.version, kind))
            raws = sink.read(pointer.version, kind, ids)
            found[kind] = {id_: np.frombuffer(raw or b"", "<f4") for id_, raw in zip(ids, raws, strict=True)}
    return Served(pointer, found["items"], found["users"])


@contextmanager
def servers(directory: Path) -> Iterator[tuple[str, ServerProcess, EventProducer]]:
    """A broker that calls itself by the same name each time, and a Redis: the broker's address, the Redis, and a
    producer."""
    with (
        new_broker("embedded", directory / "kafka", cluster_id="rollback-tests") as broker,
        new_redis("embedded", directory / "redis") as redis,
        EventProducer(bootstrap_servers=broker.address, linger_ms=0) as producer,
    ):
        yield broker.address, redis, producer


def message(kind: Any, key: str, body: dict[str, Any]) -> Message:
    return Message(kind, key.encode(), json.dumps(body).encode(), 0.0, 0)


CHANGES = [
    message("items", NEW_ITEM, {"item_id": NEW_ITEM, "features": {"text": [0.5] * 24}}),
    message("items", GONE_ITEM, {"item_id": GONE_ITEM, "deleted": True}),
    message("users", GONE_USER, {"user_id": GONE_USER, "deleted": True}),
]


def mentions_none_gone(message: Message) -> bool:
    body = json.loads(message.value)
    return bool(body.get("item_id") != GONE_ITEM and body.get("user_id") != GONE_USER)


def five_phases(directory: Path) -> History:
    """Makes one in `directory`."""
    stream = small_world(events=(PHASES + 2) * PER_PHASE)

    def between(first: int, last: int) -> list[Message]:
        return [m for m in stream if first * PER_PHASE <= m.number < last * PER_PHASE]

    with servers(directory) as (broker, redis, producer):
        place = Place(directory / "place", "rollback", broker, redis.address, producer=producer)
        place.configure(phase={"max_events": PER_PHASE})
        # One partition: which events are in a phase must not hang on a hash.
        place.create_topics(producer, partitions=1)
        until_target = between(0, TARGET)
        place.send(until_target)
        assert run(place.config, once=True) == 0
        at_target = look(place)
        since = [*CHANGES, *filter(mentions_none_gone, between(TARGET, PHASES))]
        place.send(since)
        assert run(place.config, once=True) == 0
        at_last = look(place)
        lines = place.lines()
        assert [line.decision for line in lines] == ["promoted"] * len(lines)
        assert lines[TARGET - 1].version == TARGET
    before, after = ({m.key.decode() for m in part if m.kind == "interactions"} for part in (until_target, since))
    met_gone = {m.key.decode() for m in until_target if not mentions_none_gone(m)}
    return History(
        place=place,
        sent=[*until_target, *since],
        at_target=at_target,
        at_last=at_last,
        more=list(filter(mentions_none_gone, between(PHASES, PHASES + 2))),
        returned=min(before & after),
        # What was deleted is gone from histories too, so only who never met it is as before.
        quiet=min(before - after - met_gone - {GONE_USER}),
    )


@contextmanager
def copied(history: History, directory: Path) -> Iterator[Place]:
    """The same history on a state directory and servers of its own, where nothing is published yet."""
    with servers(directory) as (broker, redis, producer):
        place = Place(directory / "place", "rollback", broker, redis.address, redis=redis, producer=producer)
        place.configure(phase={"max_events": PER_PHASE})
        place.create_topics(producer, partitions=1)
        place.send(history.sent)
        shutil.copytree(history.place.state_dir, place.state_dir)
        # The records are the same, offset for offset, but this broker gave its topics other ids.
        path = place.state_dir / "identity.json"
        identity = unseal(path.read_bytes(), StateIdentity, path)
        path.write_bytes(seal(msgspec.structs.replace(identity, topic_ids={})))
        yield place


def weights(place: Place, version: int) -> dict[str, torch.Tensor]:
    state = CheckpointStore(place.state_dir, keep_versions=99).load(version).state["trainer"]["learner"]
    return {
        **{f"scorer.{name}": tensor for name, tensor in state["scorer"].items()},
        "residual": state["residual"]["values"],
        "bias": state["bias"]["values"],
    }


def same_weights(place: Place, version: int, other: int) -> bool:
    mine, theirs = weights(place, version), weights(place, other)
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
