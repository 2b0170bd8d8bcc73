"""Faults of the kind that a daemon may have, planted on purpose: each must be caught, by the check that is for it.

They are put into the process that is to be killed and nowhere else: the daemon's own code has no switch for them. A
missing fsync leaves nothing that a killed process could show: tests/chaos/test_recorded_io.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np
from kafka import TopicPartition as ClientPartition
from kafka.structs import OffsetAndMetadata
from numpy.typing import NDArray

from models.event_log import LogView
from models.examples import Examples
from models.histories import Histories
from service.arrivals import ClosedPhase
from service.checkpoints import CheckpointStore
from service.config import Config
from service.crash_points import crash_point
from service.daemon import Daemon
from service.dedupe import Deduplicator
from service.engine import Engine
from service.intent import Intent
from service.manifest import Manifest
from service.publication import Publisher
from service.sealed import write_number
from service.trainer import Trainer
from streams.kafka_connection import connected_admin
from streams.publisher import RedisSink
from streams.redis_keys import Pointer, bucket_of
from streams.sink_types import Kind
from streams.source_types import TopicPartition


@dataclass(frozen=True)
class Fault:
    """One fault, and how it comes to light."""

    plant: Callable[[], None]
    die_at: tuple[str, ...]
    """Points to be killed at, life by life; an empty one is a life to its end."""
    caught_by: str
    """The check that has to find it, beside whatever others do."""


def _offset_committed_early() -> None:
    """As consumers often do it: the group's offsets are committed when a batch is taken, and a start goes on there."""
    intend = Engine.intend

    def intending(self: Engine, phase: ClosedPhase) -> Intent:
        intent = intend(self, phase)
        ends = {
            ClientPartition(topic, partition): OffsetAndMetadata(end, "", -1)
            for topic, partitions in intent.end.items()
            for partition, end in partitions.items()
        }
        admin = _admin(self.config)
        admin.alter_group_offsets(self.config.kafka.group_id, ends)
        admin.close()
        return intent

    def positions(self: Daemon, engine: Engine, source: Any, _interrupted: object) -> dict[TopicPartition, int]:
        self.state.bind(source.identity().cluster_id, source.identity().topic_ids)
        engine.cluster_id = self.state.identity.cluster_id or ""
        group = self.config.kafka.group_id
        admin = _admin(self.config)
        known = admin.list_group_offsets(group)[group]
        admin.close()
        committed = {(tp.topic, tp.partition): at.offset for tp, at in known.items() if at.offset > 0}
        return {**source.beginning(), **committed}

    Engine.intend = intending  # type: ignore[method-assign]
    Engine.interrupted = lambda self: None  # type: ignore[method-assign]
    Daemon._positions = positions  # type: ignore[assignment, method-assign]


def _admin(config: Config) -> Any:
    servers = config.kafka.bootstrap_servers
    return connected_admin({"bootstrap_servers": [servers] if isinstance(servers, str) else list(servers)})


def _offset_recorded_late() -> None:
    """The checkpoint has the weights of a phase and the offsets of the one before; nor are event ids remembered over a
    restart, which would hide it."""
    save = CheckpointStore.save

    def saving(self: CheckpointStore, version: int, *, facts: Any, **more: Any) -> Manifest:
        return save(self, version, facts=msgspec.structs.replace(facts, offsets=facts.line.start), **more)

    CheckpointStore.save = saving  # type: ignore[method-assign]
    Deduplicator.restore = classmethod(lambda cls, _chunks, *, capacity: cls(capacity=capacity))  # type: ignore


def _champion_late() -> None:
    """`CHAMPION` is written after the flip."""
    publish = Publisher.publish

    def publishing(self: Publisher, snapshot: Any, *, champion: bool = True, **more: Any) -> float:
        at = publish(self, snapshot, champion=False, **more)
        if champion:
            self.store.set_champion(snapshot.version)
        return at

    Publisher.publish = publishing  # type: ignore[method-assign]


def _latest_early() -> None:
    """`LATEST` is written before what it names."""
    save = CheckpointStore.save

    def saving(self: CheckpointStore, version: int, **more: Any) -> Manifest:
        write_number(self.layout.latest, version)
        return save(self, version, **more)

    CheckpointStore.save = saving  # type: ignore[method-assign]


def _flip_early() -> None:
    """The pointer moves before the last bucket of items and users is there."""
    write, flip = RedisSink.write, RedisSink.flip
    held: list[tuple[int, Kind, list[str], NDArray[np.float32]]] = []
    flipped: set[int] = set()

    def writing(self: RedisSink, version: int, kind: Kind, ids: Sequence[str], vectors: Any) -> None:
        matrix = np.asarray(vectors)
        buckets = self.buckets_of(version)
        late = np.array([bucket_of(one, buckets) == buckets - 1 for one in ids], bool) & (version not in flipped)
        if late.any():
            held.append((version, kind, [one for one, is_late in zip(ids, late, strict=True) if is_late], matrix[late]))
        write(self, version, kind, [one for one, is_late in zip(ids, late, strict=True) if not is_late], matrix[~late])

    def flipping(self: RedisSink, pointer: Pointer) -> None:
        flip(self, pointer)
        flipped.add(pointer.version)
        crash_point("flip.half")
        for one in held:
            write(self, *one)
        held.clear()

    RedisSink.write = writing  # type: ignore[method-assign]
    RedisSink.flip = flipping  # type: ignore[method-assign]
    Publisher._verify = lambda self, snapshot: None  # type: ignore[method-assign]


def _random_numbers_not_restored() -> None:
    """A start seeds the learner's generator anew instead of going on with the checkpoint's."""
    restore = Trainer.restore.__func__  # type: ignore[attr-defined]

    def restoring(cls: type[Trainer], config: Config, *args: Any) -> Trainer:
        trainer: Trainer = restore(cls, config, *args)
        trainer.learner.generator.manual_seed(config.seed)
        return trainer

    Trainer.restore = classmethod(restoring)  # type: ignore[assignment, method-assign]


def _history_of_today() -> None:
    """A replayed example has the history that its user has now: its own target, and what came later, is in it."""
    build = Examples.build.__func__  # type: ignore[attr-defined]

    def building(
        cls: type[Examples], log: LogView, popularity: Any, fresh_B: Any, replayed_B: Any, length: int, **more: Any
    ) -> Examples:
        examples: Examples = build(cls, log, popularity, fresh_B, replayed_B, length, **more)
        start_B = log.before[examples.position_B]
        start_B[len(fresh_B) :] = log.tails(examples.user_B[len(fresh_B) :])
        until_B = examples.time_B.copy()
        until_B[len(fresh_B) :] = np.inf
        today = Histories.from_log(log, start_B, length, until_B=until_B)
        # whose target is in all of the past that is known is no example: that much is left as it was
        then = examples.histories
        examples.histories = replace(today, past_BP=then.past_BP, weight_BP=then.weight_BP, age_BP=then.age_BP)
        return examples

    Examples.build = classmethod(building)  # type: ignore[assignment, method-assign, arg-type]


FAULTS: Mapping[str, Fault] = {
    "offset committed early": Fault(_offset_committed_early, ("phase.learned", ""), "lost"),
    "offset recorded late": Fault(_offset_recorded_late, ("checkpoint.latest", ""), "twice"),
    "CHAMPION written late": Fault(_champion_late, ("flip.after",), "pointer"),
    "LATEST written early": Fault(_latest_early, ("checkpoint.weights",), "champion"),
    "flipped early": Fault(_flip_early, ("flip.half",), "pointer"),
    "RNG not restored": Fault(_random_numbers_not_restored, ("phase.finished", ""), "state"),
    "history of today": Fault(_history_of_today, ("",), "history"),
}
