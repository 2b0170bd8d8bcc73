"""Publishing into a sink in memory: what is swept at the start, what the pointer says, what a refusal leaves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from prometheus_client import CollectorRegistry

from models.learner import Learner
from models.memory import EventBatch, Memory
from models.serving import Snapshot
from models.spec import ModelSpec, TrainSpec
from service.checkpoints import CheckpointStore
from service.config import PublishConfig
from service.live import Kind, Live
from service.metrics import Metrics
from service.publication import PublicationError, Publisher
from streams.memory_sink import MemorySink, MemoryStore
from streams.sink_types import Fenced, SinkRefused


class Clock:
    now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


def snapshot(version: int, **spec: Any) -> Snapshot:
    model = ModelSpec(dim=4, history=3, **spec)
    train = TrainSpec(threads=1)
    memory = Memory(model, train.actions)
    count = 12
    memory.append(
        EventBatch(
            users=[f"u{n % 3}" for n in range(count)],
            items=[f"i{n % 5}" for n in range(count)],
            actions=["view"] * count,
            values=np.full(count, 3, np.float32),
            times=np.arange(count, dtype=np.float64),
        )
    )
    return Snapshot.build(model, Learner(model, train, memory, seed=0).state_dict(), memory, version=version)


def publisher(sink: MemorySink, root: Path, *, buckets: int = 64, writer: str = "disk") -> Publisher:
    return Publisher(
        sink=sink,
        live=Live(),
        fast_path=None,
        store=CheckpointStore(root, keep_versions=3),
        config=PublishConfig(buckets=buckets, grace_s=60),
        metrics=Metrics(CollectorRegistry()),
        clock=Clock(),
        writer=writer,
    )


def put(publisher: Publisher, version: int, **spec: Any) -> None:
    publisher.publish(snapshot(version, **spec), learned={}, event_time=None, champion=False)


def test_taking_over_sweeps_what_a_crash_left_of_versions_that_nobody_is_pointed_to(tmp_path: Path) -> None:
    clock = Clock()
    store = MemoryStore(clock=clock)
    put(publisher(MemorySink(store), tmp_path), 3)
    for leftover in (2, 4):
        MemorySink(store).write(leftover, "items", ["i0"], np.ones((1, 4)))
    publisher(MemorySink(store), tmp_path).claim()
    assert MemorySink(store).versions() == {2, 3, 4}, "readers that pinned one have time to finish"
    clock.now += 61
    assert MemorySink(store).versions() == {3}


def test_a_leftover_is_no_hindrance_to_publishing_under_its_number(tmp_path: Path) -> None:
    clock = Clock()
    store = MemoryStore(clock=clock)
    sink = MemorySink(store)
    sink.write(5, "items", ["gone since"], np.ones((1, 4)))
    put(publisher(sink, tmp_path), 5)
    clock.now += 61
    assert sink.count(5, "items") == 5
    assert sink.read(5, "items", ["gone since"]) == [None]


@pytest.mark.parametrize(("objective", "score"), [("ranking", "logit"), ("click", "logit"), ("rating", "value")])
def test_the_pointer_says_what_a_score_is(tmp_path: Path, objective: str, score: str) -> None:
    sink = MemorySink()
    put(publisher(sink, tmp_path), 1, objective=objective)
    pointer = sink.pointer()
    assert pointer is not None
    assert pointer.score == score


def test_a_version_published_again_keeps_its_own_buckets(tmp_path: Path) -> None:
    store = MemoryStore()
    put(publisher(MemorySink(store, buckets=8), tmp_path, buckets=8), 1)
    after = publisher(MemorySink(store, buckets=16), tmp_path, buckets=16)
    put(after, 1)
    put(after, 2)
    assert [(flip.version, flip.buckets) for flip in store.flips] == [(1, 8), (1, 8), (2, 16)]


def test_one_that_was_fenced_off_publishes_no_more(tmp_path: Path) -> None:
    store = MemoryStore()
    old = publisher(MemorySink(store), tmp_path)
    put(old, 1)
    new = publisher(MemorySink(store), tmp_path, writer="other disk")
    new.claim()
    with pytest.raises(Fenced):
        put(old, 2)
    assert store.pointer is not None
    assert store.pointer.version == 1


class Full(MemorySink):
    def write(self, version: int, kind: Kind, ids: Sequence[str], vectors: npt.ArrayLike) -> None:
        if kind == "users":
            raise SinkRefused("Redis refused: it is out of memory")
        super().write(version, kind, ids, vectors)


def test_a_refusal_in_the_middle_leaves_the_old_version_served(tmp_path: Path) -> None:
    store = MemoryStore()
    put(publisher(MemorySink(store), tmp_path), 1)
    before = store.pointer
    full = publisher(Full(store), tmp_path)
    with pytest.raises(SinkRefused):
        put(full, 2)
    assert before is not None
    assert store.pointer == msgspec.structs.replace(before, epoch=full.epoch)


@pytest.mark.parametrize("kind", ["items", "users"])
def test_a_vector_that_is_not_finite_is_never_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    sink = MemorySink()
    put(publisher(sink, tmp_path), 1)
    spoiled = snapshot(2)
    if kind == "items":
        spoiled.vectors_NV[3, 1] = np.nan
    else:
        monkeypatch.setattr(spoiled, "user_vectors", lambda ids: np.full((len(ids), spoiled.dim), np.inf, np.float32))
    with pytest.raises(PublicationError, match=f"of {kind} of version 2 is not finite"):
        publisher(sink, tmp_path).publish(spoiled, learned={}, event_time=None, champion=False)
    pointer = sink.pointer()
    assert pointer is not None
    assert pointer.version == 1
