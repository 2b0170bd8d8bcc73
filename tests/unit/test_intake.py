"""Intake over topics in memory: phases that do not depend on how the polls fell, resumption, back-pressure, losses."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.arrivals import ClosedPhase
from service.errors import DataTruncated, ForeignState
from tests.unit.scripted_intake import NAMES, PARTITIONS, Reading, World


def content(phase: ClosedPhase) -> tuple[Any, ...]:
    """All of a phase that learning may depend on, but the clock."""
    clicks = [(arrival.partition, arrival.offset) for arrival in phase.ordered()]
    named = sorted((a.topic, a.partition, a.offset) for a in [*phase.items, *phase.users])
    return (
        phase.start,
        phase.end,
        clicks,
        named,
        phase.rejected,
        phase.lost,
        phase.watermark,
        list(phase.maxima.items()),
    )


streams = st.lists(
    st.tuples(st.integers(0, PARTITIONS - 1), st.sampled_from("cccccccig"), st.integers(0, 30)), min_size=1, max_size=60
)


def filled(stream: Iterable[tuple[int, str, int]]) -> World:
    world = World()
    for number, (partition, kind, time) in enumerate(stream):
        if kind == "c":
            world.click(partition, time=float(time))
        elif kind == "i":
            world.item(f"i{number}")
        else:
            world.garbage("interactions", partition)
    return world


@settings(deadline=None)
@given(stream=streams, poll=st.integers(1, 9), max_events=st.integers(1, 20), window_s=st.sampled_from([0, 7]))
def test_phases_do_not_depend_on_how_the_polls_fell(
    stream: list[tuple[int, str, int]], poll: int, max_events: int, window_s: int
) -> None:
    world = filled(stream)
    whole = Reading(world, once=True, max_events=max_events, window_s=window_s).run()
    halting = Reading(
        world, once=True, poll=poll, kafka={"buffer_records": 5}, max_events=max_events, window_s=window_s
    ).run(*[lambda: None] * 7)
    assert [content(phase) for phase in halting.phases] == [content(phase) for phase in whole.phases]
    assert whole.phases[-1].end["interactions"] == {p: world.end()[("interactions", p)] for p in range(PARTITIONS)}


@settings(deadline=None)
@given(stream=streams, poll=st.integers(1, 9), max_events=st.integers(1, 20), data=st.data())
def test_a_resumed_phase_is_the_same_and_so_are_those_after_it(
    stream: list[tuple[int, str, int]], poll: int, max_events: int, data: st.DataObject
) -> None:
    world = filled(stream)
    whole = Reading(world, max_events=max_events, once=True).run().phases
    number = data.draw(st.integers(0, len(whole) - 1))
    before = whole[number - 1] if number else None
    again = Reading(world, after=before, resume=whole[number], max_events=max_events, poll=poll, once=True).run()
    assert again.phases[0].closed_by == "resumed"
    assert content(again.phases[0])[:-2] == content(whole[number])[:-2]  # the intent has the watermark
    assert again.phases[0].maxima == whole[number].maxima
    assert [content(phase) for phase in again.phases[1:]] == [content(phase) for phase in whole[number + 1 :]]


def test_items_that_came_after_a_crash_are_left_to_the_phase_after_the_resumed_one() -> None:
    world = World()
    world.item("old")
    for number in range(4):
        world.click(number % PARTITIONS, time=number)
    whole = Reading(world, max_events=4, once=True).run().phases
    world.item("new")
    world.click(0, time=9.0)
    again = Reading(world, resume=whole[0], max_events=4, once=True, poll=1).run().phases
    assert [[a.event.item_id for a in phase.items] for phase in again] == [["old"], ["new"]]  # type: ignore[union-attr]
    assert [len(phase.interactions) for phase in again] == [4, 1]


def test_items_are_read_to_their_end_before_any_phase_closes() -> None:
    world = World()
    for number in range(40):
        world.item(f"i{number}")
        world.click(number % PARTITIONS, time=number)
    reading = Reading(world, max_events=5, poll=4, once=True).run()
    assert [len(phase.items) for phase in reading.phases] == [40, *[0] * 7]


def test_a_full_buffer_pauses_reading_until_learning_has_room() -> None:
    world = World()
    for number in range(300):
        world.click(number % PARTITIONS, time=number)
    reading = Reading(world, max_events=10, poll=6, kafka={"buffer_records": 30})
    held: list[tuple[float, int]] = []

    def look() -> None:
        ahead = sum(reading.source.position(("interactions", p)) for p in range(PARTITIONS))
        held.append((reading.metrics.paused._value.get(), ahead))

    reading.run(*[look] * 100)
    assert held[-1] == held[50], "nothing more is read"
    paused, ahead = held[-1]
    assert paused == 1
    # The phase in the queue, the one being built, the buffer, and at most a poll for each partition.
    assert ahead <= 10 + 10 + 30 + 3 * 6
    assert reading.metrics.paused._value.get() == 0
    assert sum(len(phase.interactions) for phase in reading.phases) == 300
    assert [len(phase.interactions) for phase in reading.phases] == [10] * 30


def test_it_is_known_how_much_waits_in_kafka_behind_a_phase() -> None:
    world = World()
    for number in range(300):
        world.click(number % PARTITIONS, time=number)
    reading = Reading(world, max_events=10)
    assert reading.intake.waiting({}) is None, "nobody has looked yet"
    reading.run()
    assert reading.intake.waiting({}) == 300
    waiting = [reading.intake.waiting(phase.end) for phase in reading.phases]
    assert waiting == list(range(290, -1, -10))


def test_partitions_that_are_added_are_read_from_their_beginning() -> None:
    world = World()
    world.click(0, time=1.0)
    reading = Reading(world, max_wait_s=60)

    def add() -> None:
        world.topics.add_partitions("interactions", 2)
        world.click(PARTITIONS, time=2.0)

    def lost_on_the_way() -> None:
        reading.source.refuse_next_assignment = True
        world.now += 6

    reading.run(lambda: None, add, lost_on_the_way, *[lambda: None] * 3, reading.pass_s(61), polls=3)
    assert [(a.partition, a.offset) for phase in reading.phases for a in phase.interactions] == [
        (0, 0),
        (PARTITIONS, 0),
    ]
    assert reading.phases[-1].end["interactions"] == {0: 1, 1: 0, 2: 0, PARTITIONS: 1, PARTITIONS + 1: 0}


def truncated_world() -> World:
    world = World()
    for number in range(10):
        world.click(0, time=number)
    world.topics.truncate("interactions", partition=0, before=4)
    return world


def first_phase(world: World, end: int) -> ClosedPhase:
    """A phase that ended at this offset of partition 0, as a checkpoint or an intent remembers it."""
    ends = {"interactions": {0: end, 1: 0, 2: 0}, "items": {0: 0}, "users": {0: 0}}
    starts = {topic: dict.fromkeys(partitions, 0) for topic, partitions in ends.items()}
    return ClosedPhase(start=starts, end=ends, opened_at=0, closed_at=0, closed_by="count")


def test_a_topic_made_anew_and_longer_than_what_was_read_is_not_read_on_in_its_middle() -> None:
    world = World()
    for number in range(4):
        world.click(0, time=number)
    reading = Reading(world, max_events=4)

    def remake() -> None:
        world.topics.delete("interactions")
        world.topics.create("interactions", partitions=PARTITIONS)
        for number in range(12):
            world.click(0, time=100 + number)

    with pytest.raises(ForeignState):
        reading.run(lambda: None, reading.learn, remake, polls=6)
    assert [phase.end["interactions"][0] for phase in reading.phases] == [4]


def test_records_that_kafka_has_deleted_stop_the_daemon_unless_they_may_be_counted() -> None:
    world = truncated_world()
    with pytest.raises(DataTruncated, match="on_data_loss"):
        Reading(world, after=first_phase(world, 1)).run()
    counting = Reading(world, after=first_phase(world, 1), kafka={"on_data_loss": "count"}, once=True).run()
    (phase,) = counting.phases
    assert (phase.lost, len(phase.interactions), phase.skipped("interactions")) == (3, 6, 0)
    assert counting.metrics.lost._value.get() == 3


def test_records_deleted_between_a_crash_and_its_restart_count_in_the_phases_they_belong_to() -> None:
    world = truncated_world()
    intent = first_phase(world, 2)
    phases = Reading(
        world, resume=intent, kafka={"on_data_loss": "count"}, once=True, after=first_phase(world, 0)
    ).run()
    booked = [(phase.lost, len(phase.interactions), phase.skipped("interactions")) for phase in phases.phases]
    assert booked == [(2, 0, 0), (2, 6, 0)]


def test_once_ends_with_what_was_there_at_the_start() -> None:
    world = World()
    for number in range(5):
        world.click(0, time=number)
    world.item("i0")
    reading = Reading(world, max_events=3, once=True)

    def more() -> None:
        world.click(0, time=9.0)
        world.item("i1")

    reading.run(more)
    assert reading.intake.finished.is_set()
    assert [len(phase.interactions) for phase in reading.phases] == [3, 2]
    assert sum(len(phase.items) for phase in reading.phases) == 1
    assert reading.phases[-1].closed_by == "once"
    assert reading.phases[-1].end == {"interactions": {0: 5, 1: 0, 2: 0}, "items": {0: 1}, "users": {0: 0}}


def test_once_with_nothing_there_writes_no_phase() -> None:
    reading = Reading(World(), once=True).run()
    assert reading.intake.finished.is_set()
    assert reading.phases == []


def test_an_idle_stream_writes_no_phases_and_a_lone_click_waits_its_time() -> None:
    world = World()
    reading = Reading(world, max_wait_s=60)
    reading.run(reading.pass_s(1000), reading.pass_s(1000), lambda: world.click(1), *[reading.pass_s(20)] * 2, polls=2)
    assert reading.phases == []
    reading = Reading(world, max_wait_s=60)
    reading.run(lambda: None, reading.pass_s(61), polls=2)
    assert [phase.closed_by for phase in reading.phases] == ["wait"]


@pytest.mark.parametrize("turned", [-3600.0, 86_400.0])
def test_a_clock_that_is_set_neither_delays_nor_closes_a_phase(turned: float) -> None:
    world = World()
    reading = Reading(world, max_wait_s=60)

    def turn() -> None:
        world.turned = turned

    reading.run(lambda: world.click(1), turn, reading.pass_s(40), lambda: None, polls=2)
    assert reading.phases == []
    reading = Reading(world, max_wait_s=60)
    world.turned = 0.0
    reading.run(lambda: None, turn, reading.pass_s(61), lambda: None, polls=2)
    assert [phase.closed_by for phase in reading.phases] == ["wait"]
    phase = reading.phases[0]
    assert (phase.closed_at, phase.opened_at) == (world.now + turned, world.now + turned - 61)


def test_a_backlog_is_cut_by_count_alone_however_long_it_takes() -> None:
    world = World()
    for number in range(20):
        world.click(number % PARTITIONS, time=number)
    reading = Reading(world, max_events=10, max_wait_s=1, poll=3)
    slow = [step for _ in range(30) for step in (reading.pass_s(5), reading.learn)]
    reading.run(*slow, polls=2)
    assert [(phase.closed_by, len(phase.interactions)) for phase in reading.phases] == [("count", 10)] * 2


def test_what_cannot_be_used_goes_to_the_dead_letters_and_is_counted() -> None:
    world = World()
    world.click(0)
    for topic in NAMES:
        world.garbage(topic)
    reading = Reading(world, once=True).run()
    (phase,) = reading.phases
    assert (len(phase.interactions), phase.rejected, phase.end["items"], phase.end["users"]) == (1, 1, {0: 1}, {0: 1})
    assert sorted(reading.letters.sent) == [
        ("interactions", 1, "not_json"),
        ("items", 0, "not_json"),
        ("users", 0, "not_json"),
    ]
    assert reading.metrics.rejected.labels(reason="not_json")._value.get() == 3


def test_skipped_offsets_are_passed_and_booked() -> None:
    world = World()
    world.click(0)
    world.topics.skip("interactions", partition=0, count=3)
    world.click(0)
    (phase,) = Reading(world, once=True).run().phases
    assert (len(phase.interactions), phase.skipped("interactions"), phase.end["interactions"][0]) == (2, 3, 5)


def test_offsets_are_committed_to_the_group_when_learning_says_so() -> None:
    world = World()
    reading = Reading(world)
    reading.run(lambda: reading.intake.commit({"interactions": {0: 3}, "items": {0: 1}}), polls=2)
    assert reading.source.committed == {("interactions", 0): 3, ("items", 0): 1}


def test_a_version_that_is_offered_is_not_waited_for_once_reading_has_ended() -> None:
    reading = Reading(World()).run()
    assert not reading.fast_path.wait_caught_up(60.0)
