"""A flood of invented ids: what is within the limits is taken, in the order that counts, and the rest is told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from models.learner import Learner
from models.memory import Memory
from models.serving import Snapshot
from models.spec import ModelSpec, TrainSpec
from service.arrivals import Arrival, ClosedPhase
from service.collecting import Collected, apply_content, collect, remember
from service.config_tables import EventsConfig
from service.dedupe import Deduplicator
from service.id_limits import KEPT_BYTES, IdLimits, letter_of, to_keep
from service.live import Serving
from streams.events import Interaction, Item, Record, User

SPEC = ModelSpec(dim=4, history=3)


def click(offset: int, user: str, item: str, *, event_id: str | None = None) -> Arrival:
    event = Interaction(user_id=user, item_id=item, action="view", value=1.0, time=float(offset), event_id=event_id)
    return Arrival("interactions", 0, offset, float(offset), event)


def item(offset: int, name: str, *, deleted: bool = False) -> Arrival:
    event = Item(item_id=name, time=None, features={}, text=None, attributes={}, deleted=deleted)
    return Arrival("items", 0, offset, float(offset), event)


def user(offset: int, name: str) -> Arrival:
    return Arrival("users", 0, offset, float(offset), User(user_id=name, time=None, features={}, deleted=False))


def learn(
    memory: Memory,
    clicks: Sequence[Arrival],
    *,
    items: Sequence[Arrival] = (),
    users: Sequence[Arrival] = (),
    **limits: int,
) -> Collected:
    """One phase; checks that every interaction is an event, a duplicate, or over a limit."""
    phase = ClosedPhase(
        start={}, end={}, interactions=list(clicks), items=list(items), users=list(users),
        opened_at=0, closed_at=0, closed_by="count",
    )  # fmt: skip
    events = EventsConfig.model_validate(limits)
    dedupe = Deduplicator(capacity=100)
    collected = collect(phase, dedupe=dedupe, late_before=None, limits=IdLimits(events), memory=memory)
    apply_content(memory, collected.content, cluster_id=None)
    remember(memory, collected)
    assert len(collected.batch) + collected.duplicates + collected.over_limit == len(clicks)
    return collected


@pytest.fixture
def memory() -> Memory:
    return Memory(SPEC, {"default": 1.0})


def flood(count: int, start: int = 0) -> list[Arrival]:
    return [click(n, f"u{n}", f"i{n}") for n in range(start, start + count)]


def test_a_phase_brings_so_many_new_ids_and_no_more(memory: Memory) -> None:
    collected = learn(memory, flood(1000), max_new_ids=30)
    assert (memory.n_users, memory.n_items) == (30, 30)
    assert collected.batch.users == [f"u{n}" for n in range(30)]
    assert [arrival.offset for arrival in collected.over] == list(range(30, 1000))
    # and the next phase as many again
    learn(memory, flood(1000, 1000), max_new_ids=30)
    assert (memory.n_users, memory.n_items) == (60, 60)


def test_who_is_known_goes_on_through_a_flood(memory: Memory) -> None:
    learn(memory, flood(5))
    collected = learn(memory, [*flood(1000, 10), *(click(2000 + n, "u1", f"i{n}") for n in range(5))], max_new_ids=10)
    assert collected.batch.users[-5:] == ["u1"] * 5
    assert collected.over_limit == 990


def test_of_both_kinds_each_has_its_limit(memory: Memory) -> None:
    collected = learn(memory, [click(n, "one", f"i{n}") for n in range(50)], max_new_ids=20)
    assert (memory.n_users, memory.n_items, collected.over_limit) == (1, 20, 30)


def test_what_is_announced_is_limited_in_total_alone(memory: Memory) -> None:
    items, users = [item(n, f"i{n}") for n in range(50)], [user(n, f"u{n}") for n in range(40)]
    collected = learn(memory, flood(100, 100), items=items, users=users, max_new_ids=5)
    assert (memory.n_users, memory.n_items, collected.over_limit) == (45, 55, 95)


def test_the_totals_hold_for_all_that_ever_came(memory: Memory) -> None:
    for start in range(0, 500, 100):
        learn(memory, flood(100, start), max_users=150, max_items=120)
    assert (memory.n_users, memory.n_items) == (120, 120)
    collected = learn(
        memory, [], items=[item(1, "late"), item(2, "i1"), item(3, "i2", deleted=True)], max_users=150, max_items=120
    )
    assert [arrival.event.item_id for arrival in collected.over if isinstance(arrival.event, Item)] == ["late"]
    assert [arrival.offset for arrival in collected.content] == [2, 3], "known ones change and go as ever"


def test_what_is_left_out_may_come_again(memory: Memory) -> None:
    phase = [click(0, "a", "i", event_id="one"), click(1, "b", "i", event_id="two")]
    assert learn(memory, phase, max_new_ids=1).over_limit == 1
    assert learn(memory, phase[1:], max_new_ids=1).over_limit == 0
    assert memory.n_users == 2


def test_far_from_the_limits_nothing_is_counted(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.id_limits._Counted", None)
    assert learn(memory, flood(100)).over_limit == 0


def test_the_fast_path_takes_up_so_many_and_those_it_has_go_on(memory: Memory) -> None:
    learn(memory, flood(5))
    learner = Learner(SPEC, TrainSpec(threads=1), memory, 1)
    learner.pass_over(memory.n_events)
    serving = Serving(Snapshot.build(SPEC, learner.state_dict(), memory, version=1), most_new=10)
    touched = serving.observe(flood(1000, 100))
    assert (len(touched.users), len(touched.items), serving.passed_over) == (10, 10, 990)
    touched = serving.observe([click(2000, "u1", "i1"), click(2001, "u100", "i109"), click(2002, "u999", "i1")])
    assert (list(touched.users), serving.passed_over) == (["u1", "u100"], 991)


def test_a_dead_letter_has_the_bytes_where_they_were_kept() -> None:
    record = Record("interactions", 3, 7, 1000, b"k", b"v" * (KEPT_BYTES + 5), (("h", b"x"),))
    kept = to_keep(record)
    assert (kept.value, kept.key, kept.headers) == (b"v" * KEPT_BYTES, b"k", record.headers)
    event: Any = click(7, "u", "i").event
    written, detail = letter_of(Arrival("interactions", 3, 7, 1.0, event, kept))
    assert written is kept
    assert "max_new_ids" in detail
    written, detail = letter_of(Arrival("interactions", 3, 7, 1.0, event))
    assert (written.partition, written.offset, written.timestamp_ms, written.value) == (3, 7, 1000, None)
    assert "where it was read" in detail
