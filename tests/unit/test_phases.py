"""A phase closes on a count, an event-time window, or a wait; partitions merge by event time."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

import pytest

from streams.phases import PartitionMerge, PhaseCutter
from streams.source_types import TopicPartition

A, B = ("t", 0), ("t", 1)
NONE: Set[TopicPartition] = frozenset()


def cutter(**changes: Any) -> PhaseCutter:
    limits: dict[str, Any] = {"max_events": 1000, "max_wait_s": 3600, "window_s": 0, "allowed_lateness_s": 0}
    return PhaseCutter(**(limits | changes))


def test_a_phase_closes_at_exactly_max_events_interactions() -> None:
    phase = cutter(max_events=3)
    for event_time in (5.0, None, 4.0):
        phase.add(A, event_time, now=0)
        assert phase.closed(0, idle=NONE) is None
    phase.add(B, 6.0, now=0)
    assert phase.closed(0, idle=NONE) == "count"
    assert phase.events == 3


def test_a_phase_closes_once_its_first_record_has_waited() -> None:
    phase = cutter(max_wait_s=10)
    phase.add(A, 1.0, now=100)
    phase.add(A, 2.0, now=109)
    assert phase.closed(109.9, idle=NONE) is None
    assert phase.closed(110, idle=NONE) == "wait"


def test_a_refused_record_counts_for_the_wait_alone() -> None:
    phase = cutter(max_events=1, max_wait_s=10, window_s=1)
    phase.add(A, None, now=100)
    assert (phase.events, phase.opened_at, phase.watermark(NONE)) == (0, 100, None)
    assert phase.closed(109, idle=NONE) is None
    assert phase.closed(110, idle=NONE) == "wait"


def test_a_phase_without_records_never_closes() -> None:
    phase = cutter(max_events=1, max_wait_s=0)
    assert phase.closed(1e12, idle=NONE) is None
    phase.add(A, 1.0, now=0)
    phase.reset()
    assert phase.closed(1e12, idle=NONE) is None


def test_a_window_closes_when_the_watermark_passes_its_end_and_the_lateness() -> None:
    phase = cutter(window_s=60, allowed_lateness_s=10)
    phase.add(A, 125.0, now=0)
    for event_time in (179.0, 189.9, 130.0):
        phase.add(A, event_time, now=0)
        assert phase.closed(0, idle=NONE) is None
    phase.add(A, 190.0, now=0)
    assert phase.closed(0, idle=NONE) == "window"


def test_a_window_waits_for_the_slowest_partition_that_is_not_idle() -> None:
    phase = cutter(window_s=60)
    phase.add(A, 61.0, now=0)
    phase.add(B, 62.0, now=0)
    assert phase.closed(0, idle=NONE) is None
    phase.add(A, 130.0, now=0)
    assert phase.closed(0, idle=NONE) is None
    assert phase.closed(0, idle={B}) == "window"


def test_late_records_do_not_close_a_phase_each() -> None:
    phase = cutter(window_s=60, allowed_lateness_s=10)
    for event_time in (5.0, 131.0):
        phase.add(A, event_time, now=0)
    assert phase.closed(0, idle=NONE) == "window"
    phase.reset()
    for _ in range(5):
        phase.add(A, 20.0, now=0)
        assert phase.closed(0, idle=NONE) is None
    phase.add(A, 190.0, now=0)
    assert phase.closed(0, idle=NONE) == "window"


def test_the_watermark_is_the_least_of_the_partitions_that_are_not_idle() -> None:
    phase = cutter()
    assert phase.watermark(NONE) is None
    phase.add(A, 10.0, now=0)
    phase.add(B, 20.0, now=0)
    phase.add(B, 15.0, now=0)
    assert phase.watermark(NONE) == 10
    assert phase.watermark({A}) == 20
    assert phase.watermark({A, B}) == 20


def test_maxima_survive_the_phase_and_a_restart() -> None:
    phase = cutter()
    phase.add(A, 10.0, now=0)
    phase.reset()
    assert phase.watermark(NONE) == 10
    assert cutter(maxima=phase.maxima).watermark(NONE) == 10


@pytest.mark.parametrize("limits", [{"max_events": 0}, {"max_wait_s": -1}, {"window_s": -1}])
def test_impossible_limits_are_refused(limits: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        cutter(**limits)


def drained(merge: PartitionMerge[str], *, behind: Set[TopicPartition] = NONE) -> list[str]:
    found = []
    while (popped := merge.pop(lambda tp: tp not in behind)) is not None:
        found.append(popped[1])
    return found


def test_partitions_merge_by_event_time_then_partition() -> None:
    merge: PartitionMerge[str] = PartitionMerge([A, B])
    merge.push(B, [("b1", 1.0), ("b3", 3.0)])
    merge.push(A, [("a1", 1.0), ("a2", 2.0), ("a4", 4.0)])
    assert (merge.total, merge.buffered(A), merge.buffered(("t", 9))) == (5, 3, 0)
    assert drained(merge) == ["a1", "b1", "a2", "b3", "a4"]
    assert merge.total == 0


def test_a_partition_with_more_to_come_blocks_the_merge() -> None:
    merge: PartitionMerge[str] = PartitionMerge([A, B])
    merge.push(A, [("a5", 5.0)])
    assert drained(merge, behind={B}) == []
    merge.push(B, [("b1", 1.0)])
    assert drained(merge, behind={B}) == ["b1"]
    assert drained(merge) == ["a5"]


def test_a_refused_record_takes_the_greatest_time_of_its_partition() -> None:
    merge: PartitionMerge[str] = PartitionMerge(maxima={B: 2.5})
    merge.push(A, [("a1", 1.0), ("a3", 3.0), ("a refused", None)])
    merge.push(B, [("b refused", None), ("b2", 2.0), ("b4", 4.0)])
    assert drained(merge) == ["a1", "b refused", "b2", "a3", "a refused", "b4"]


def test_a_record_out_of_order_keeps_its_place_in_its_partition() -> None:
    merge: PartitionMerge[str] = PartitionMerge()
    merge.push(A, [("a5", 5.0), ("a1", 1.0)])
    merge.push(B, [("b4", 4.0), ("b6", 6.0)])
    assert drained(merge) == ["b4", "a5", "a1", "b6"]
