"""The books that every fault is closed with find a daemon that loses an event, doubles one, or forgets a vector."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from models.memory import EventBatch
from service.arrivals import ClosedPhase
from service.collecting import Collected
from streams.publisher import RedisSink
from tests.faults.forked_daemon import Before, _nothing
from tests.faults.stage import FIRST, PER_PHASE, Run, Stage
from tests.servers import Broker

pytestmark = [pytest.mark.servers, pytest.mark.slow]


@pytest.fixture
def learned(brokers: Callable[[str], Broker], namespace: str, tmp_path: Path) -> Iterator[Callable[[Before], Run]]:
    """Plays a daemon with something planted in it through its first phases, to its end in good order."""
    broker = brokers("embedded")
    with ExitStack() as stack:

        def run(planted: Before) -> Run:
            stage = Stage(tmp_path, namespace, broker.server, broker.producer, stack=stack)
            found = Run(stage, stage.place(partitions=1), before=planted)
            found.send(FIRST)
            found.start()
            found.daemon.wait_until("the phases", lambda: len(found.place.lines()) >= FIRST // PER_PHASE)
            assert found.daemon.terminate() == 0
            return found

        yield run


def test_a_daemon_with_nothing_planted_is_found_right(learned: Callable[[Before], Run]) -> None:
    run = learned(_nothing)
    assert run.check_books() == 0
    assert run.whole()


def test_an_event_that_is_passed_and_not_learned_is_found(learned: Callable[[Before], Run]) -> None:
    with pytest.raises(AssertionError, match="leaves offsets out"):
        learned(lose_one).check_books()


def test_an_event_that_is_learned_for_another_is_found(learned: Callable[[Before], Run]) -> None:
    with pytest.raises(AssertionError, match="learned twice"):
        learned(double_one).check_books()


def test_a_vector_that_is_never_written_is_found(learned: Callable[[Before], Run]) -> None:
    assert not learned(leave_one_out).whole()


def lose_one() -> None:
    """Each phase leaves out its first event, and says nothing."""
    plant(lambda batch: batch[1:])


def double_one() -> None:
    """Each phase learns its second event in the place of its first: the numbers are right."""

    def doubled(batch: EventBatch) -> EventBatch:
        order = np.r_[1, 1 : len(batch)]
        return EventBatch(
            users=[batch.users[n] for n in order],
            items=[batch.items[n] for n in order],
            actions=[batch.actions[n] for n in order],
            values=batch.values[order],
            times=batch.times[order],
        )

    plant(doubled)


def plant(change: Callable[[EventBatch], EventBatch]) -> None:
    """Changes what a phase has collected, behind everything that counts."""
    from service.engine import Engine

    collect = Engine.collect

    def planted(self: Engine, phase: ClosedPhase, *rest: object) -> Collected:
        found = collect(self, phase, *rest)  # type: ignore[arg-type]
        batch = change(found.batch)
        return dataclasses.replace(found, batch=batch, event_ids=found.event_ids[-len(batch) :])

    Engine.collect = planted  # type: ignore[assignment,method-assign]


def leave_one_out() -> None:
    """The sink takes no vector of one item, and counts it as if it had."""
    write, counts = RedisSink.write, RedisSink.bucket_counts

    def short(self: RedisSink, version: int, kind: object, ids: list[str], vectors: object) -> None:
        kept = [n for n, one in enumerate(ids) if one != "i1"]
        write(self, version, kind, [ids[n] for n in kept], np.asarray(vectors)[kept])  # type: ignore[arg-type]

    def pretended(self: RedisSink, version: int, kind: object) -> list[int]:
        found = counts(self, version, kind)  # type: ignore[arg-type]
        if kind == "items" and any(found):
            found[0] += 1
        return found

    read = RedisSink.read

    def made_up(self: RedisSink, version: int, kind: object, ids: list[str]) -> list[bytes | None]:
        found = read(self, version, kind, ids)  # type: ignore[arg-type]
        return [raw or next(filter(None, found)) for raw in found]

    RedisSink.write, RedisSink.bucket_counts = short, pretended  # type: ignore[assignment,method-assign]
    RedisSink.read = made_up  # type: ignore[assignment,method-assign]
