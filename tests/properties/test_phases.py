"""Phase boundaries depend on the records alone: not on polls, and not on where a run was interrupted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from streams.phases import PartitionMerge, PhaseCutter
from streams.source_types import TopicPartition

Logs = Mapping[TopicPartition, Sequence[float | None]]
Placed = tuple[TopicPartition, int]

times = st.none() | st.integers(0, 40).map(float)
logs_of_partitions = st.lists(st.lists(times, max_size=12), min_size=1, max_size=4).map(
    lambda logs: {("t", partition): log for partition, log in enumerate(logs)}
)
polls = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5), st.booleans()), max_size=30)


def merged(
    logs: Logs,
    schedule: list[tuple[int, int, bool]],
    *,
    start: dict[TopicPartition, int] | None = None,
    maxima: dict[TopicPartition, float] | None = None,
) -> Iterator[Placed]:
    """The merge of `logs` from `start` on, read by polls of (partition, records, pop in between)."""
    merge: PartitionMerge[int] = PartitionMerge(logs, maxima=maxima)
    read = {tp: (start or {}).get(tp, 0) for tp in logs}
    rest = [(partition, len(log), True) for (_, partition), log in logs.items()]
    for partition, size, pops in [*schedule, *rest]:
        tp = ("t", partition)
        if tp not in logs:
            continue
        offsets = range(read[tp], min(read[tp] + size, len(logs[tp])))
        merge.push(tp, [(offset, logs[tp][offset]) for offset in offsets])
        read[tp] += len(offsets)
        while pops and (popped := merge.pop(lambda tp: read[tp] == len(logs[tp]))) is not None:
            yield popped
    assert merge.total == 0


def phases(logs: Logs, order: Iterator[Placed], cutter: PhaseCutter) -> list[list[Placed]]:
    """What each phase reads, the last one perhaps unfinished."""
    found: list[list[Placed]] = [[]]
    for tp, offset in order:
        cutter.add(tp, logs[tp][offset], now=0)
        found[-1].append((tp, offset))
        if cutter.closed(0, idle=frozenset()):
            cutter.reset()
            found.append([])
    return found


def cutter(maxima: dict[TopicPartition, float] | None = None) -> PhaseCutter:
    return PhaseCutter(max_events=4, max_wait_s=1e9, window_s=10, allowed_lateness_s=3, maxima=maxima)


@settings(deadline=None)
@given(logs=logs_of_partitions, schedule=polls)
def test_any_polls_give_the_same_phases(logs: Logs, schedule: list[tuple[int, int, bool]]) -> None:
    assert phases(logs, merged(logs, schedule), cutter()) == phases(logs, merged(logs, []), cutter())


@settings(deadline=None)
@given(logs=logs_of_partitions, schedule=polls)
def test_nothing_is_lost_and_partitions_keep_their_order(logs: Logs, schedule: list[tuple[int, int, bool]]) -> None:
    order = list(merged(logs, schedule))
    for tp, log in logs.items():
        assert [offset for place, offset in order if place == tp] == list(range(len(log)))


@settings(deadline=None)
@given(logs=logs_of_partitions)
def test_partitions_in_time_order_merge_into_time_order(logs: Logs) -> None:
    in_order = {tp: sorted(time for time in log if time is not None) for tp, log in logs.items()}
    found = [(in_order[tp][offset], tp, offset) for tp, offset in merged({**in_order}, [])]
    assert found == sorted(found)


@settings(deadline=None)
@given(logs=logs_of_partitions, schedule=polls, after=st.integers(0, 12))
def test_a_run_resumed_at_a_phase_reads_the_same_phases(
    logs: Logs, schedule: list[tuple[int, int, bool]], after: int
) -> None:
    whole = phases(logs, merged(logs, []), cutter())
    done = whole[: min(after, len(whole) - 1)]
    first = cutter()
    start: dict[TopicPartition, int] = {}
    for phase in done:
        for tp, offset in phase:
            first.add(tp, logs[tp][offset], now=0)
            start[tp] = offset + 1
    resumed = merged(logs, schedule, start=start, maxima=first.maxima)
    assert phases(logs, resumed, cutter(first.maxima)) == whole[len(done) :]


@settings(deadline=None)
@given(logs=logs_of_partitions)
def test_a_phase_never_exceeds_its_count_nor_closes_without_an_event(logs: Logs) -> None:
    found = phases(logs, merged(logs, []), cutter())
    for phase in found:
        assert sum(logs[tp][offset] is not None for tp, offset in phase) <= 4
    for phase in found[:-1]:
        assert any(logs[tp][offset] is not None for tp, offset in phase)
