"""What a phase holds and which offsets it passes: cut by the stream's limits, or given by an intent."""

from __future__ import annotations

from typing import Any

from service.arrivals import Arrival, ClosedPhase, Offsets
from service.config import PhaseConfig
from service.phase_builder import Entry, PhaseBuilder
from streams.events import Interaction, Item, User
from streams.source_types import TopicPartition

A, B = ("clicks", 0), ("clicks", 1)
ITEMS, USERS = ("items", 0), ("users", 0)
NOBODY_IDLE: set[TopicPartition] = set()


def builder(resume_to: Offsets | None = None, **limits: Any) -> PhaseBuilder:
    config = PhaseConfig(**({"max_events": 1000, "max_wait_s": 60} | limits))
    return PhaseBuilder(config=config, positions=dict.fromkeys((A, B, ITEMS, USERS), 0), maxima={}, resume_to=resume_to)


def click(tp: TopicPartition, offset: int, time: float = 1.0) -> Entry:
    event = Interaction(user_id="u", item_id="i", action="view", value=1.0, time=time, event_id=None)
    return Entry(offset, Arrival(*tp, offset, time, event))


def item(offset: int) -> Arrival:
    event = Item(item_id=f"i{offset}", time=1.0, features={}, text=None, attributes={}, deleted=False)
    return Arrival(*ITEMS, offset, 1.0, event)


def user(offset: int) -> Arrival:
    return Arrival(*USERS, offset, 1.0, User(user_id=f"u{offset}", time=1.0, features={}, deleted=False))


def close(phase: PhaseBuilder, now: float = 5.0) -> ClosedPhase:
    return phase.close(now=now, at=now, idle=NOBODY_IDLE, closed_by="count")


def clicked(phase: ClosedPhase) -> list[tuple[int, int]]:
    return [(arrival.partition, arrival.offset) for arrival in phase.interactions]


def test_a_phase_ends_after_its_last_records_and_the_next_begins_there() -> None:
    phase = builder()
    phase.take(A, click(A, 0), 1.0)
    phase.take(B, click(B, 0), 1.0)
    phase.take_content(item(0), 1.0)
    first = close(phase)
    assert first.start == {"clicks": {0: 0, 1: 0}, "items": {0: 0}, "users": {0: 0}}
    assert first.end == {"clicks": {0: 1, 1: 1}, "items": {0: 1}, "users": {0: 0}}
    phase.take(B, click(B, 1), 2.0)
    second = close(phase)
    assert second.start == first.end
    assert clicked(second) == [(1, 1)]
    assert second.items == second.users == []


def test_every_offset_is_booked_as_something() -> None:
    phase = builder()
    phase.take(A, click(A, 0), 1.0)
    phase.take(A, Entry(1, None), 1.0)
    phase.lose(A, 2, 10)
    phase.take(A, click(A, 14), 1.0)
    closed = close(phase)
    assert (len(closed.interactions), closed.rejected, closed.lost, closed.skipped("clicks")) == (2, 1, 8, 4)


def test_lost_records_count_in_the_phase_that_passes_them() -> None:
    phase = builder()
    phase.take(A, click(A, 0), 1.0)
    phase.lose(A, 1, 5)
    assert close(phase).lost == 0
    phase.lose(A, 5, 7)
    phase.take(A, click(A, 7), 2.0)
    second = close(phase)
    assert (second.lost, second.skipped("clicks")) == (6, 0)
    phase.take(A, click(A, 8), 3.0)
    assert close(phase).lost == 0


def test_a_resumed_phase_passes_only_its_share_of_lost_records() -> None:
    phase = builder(resume_to={"clicks": {0: 4, 1: 0}, "items": {0: 0}, "users": {0: 0}})
    phase.lose(A, 0, 6)
    resumed = close(phase)
    assert (resumed.end["clicks"][0], resumed.lost, resumed.skipped("clicks")) == (4, 4, 0)
    phase.take(A, click(A, 6), 2.0)
    rest = close(phase)
    assert (rest.start["clicks"][0], rest.lost, rest.skipped("clicks")) == (4, 2, 0)


def test_an_item_or_user_alone_makes_a_phase_that_closes_after_the_wait() -> None:
    for content in (item(0), user(0)):
        phase = builder(max_wait_s=10)
        assert phase.empty
        assert phase.closing(1e9, NOBODY_IDLE) is None
        phase.take_content(content, 100.0)
        assert phase.closing(109.0, NOBODY_IDLE) is None
        assert phase.closing(110.0, NOBODY_IDLE) == "wait"


def test_rejected_content_is_passed_without_opening_a_phase() -> None:
    phase = builder()
    phase.pass_content(ITEMS, 0)
    assert phase.empty
    phase.take(A, click(A, 0), 1.0)
    assert close(phase).end["items"] == {0: 1}


def test_maxima_do_not_depend_on_the_order_of_arrival() -> None:
    order = ((A, B), (B, A))
    found = []
    for partitions in order:
        phase = builder()
        for tp in partitions:
            phase.take(tp, click(tp, 0, time=3.0 + tp[1]), 1.0)
        found.append(list(close(phase).maxima.items()))
    assert found[0] == found[1] == [(A, 3.0), (B, 4.0)]


RESUME: Offsets = {"clicks": {0: 2, 1: 1}, "items": {0: 1}, "users": {0: 0}}


def test_a_resumed_phase_ends_where_its_intent_says_whatever_the_limits() -> None:
    phase = builder(RESUME, max_events=1, max_wait_s=0.5)
    for tp, offset in ((A, 0), (A, 1), (B, 0)):
        assert phase.within_resumed(tp, offset)
        phase.take(tp, click(tp, offset), 1.0)
        assert phase.closing(1e9, NOBODY_IDLE) is None
    assert not phase.within_resumed(A, 2)
    assert not phase.within_resumed(B, 1)
    assert not phase.resumed_whole({A: 2, B: 1, ITEMS: 0, USERS: 0})
    phase.take_content(item(0), 1.0)
    assert phase.resumed_whole({A: 2, B: 1, ITEMS: 1, USERS: 0})
    closed = close(phase)
    assert closed.end == RESUME
    assert not phase.resuming


def test_content_past_a_resumed_phase_belongs_to_the_next() -> None:
    phase = builder(RESUME)
    for offset in range(3):
        phase.take_content(item(offset), 1.0)
    phase.pass_content(ITEMS, 3)
    resumed = close(phase)
    assert [arrival.offset for arrival in resumed.items] == [0]
    assert resumed.end["items"] == {0: 1}
    assert not phase.empty
    rest = close(phase)
    assert [arrival.offset for arrival in rest.items] == [1, 2]
    assert rest.start["items"] == {0: 1}
    assert rest.end["items"] == {0: 4}


def test_a_partition_added_after_the_intent_belongs_to_the_phase_after() -> None:
    phase = builder(RESUME)
    new = ("clicks", 2)
    phase.add_partition(new, 5)
    resumed = close(phase)
    assert resumed.end == RESUME
    assert 2 not in resumed.start["clicks"]
    phase.take(new, click(new, 5), 1.0)
    after = close(phase)
    assert (after.start["clicks"], after.end["clicks"]) == ({0: 2, 1: 1, 2: 5}, {0: 2, 1: 1, 2: 6})


def test_a_topic_that_is_no_longer_read_does_not_hold_a_resumed_phase_up() -> None:
    phase = builder({**RESUME, "forgotten": {0: 7}})
    assert phase.resumed_whole({A: 2, B: 1, ITEMS: 1, USERS: 0})
