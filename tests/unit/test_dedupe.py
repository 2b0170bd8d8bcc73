"""Duplicates by event id, against the obvious slow way."""

from __future__ import annotations

from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from service.dedupe import Deduplicator

IDS = st.lists(st.lists(st.one_of(st.none(), st.integers(0, 30).map(str)), max_size=20), max_size=12)


@given(IDS, st.integers(1, 25))
def test_only_the_last_so_many_ids_count_and_a_restored_one_answers_alike(
    phases: list[list[str | None]], capacity: int
) -> None:
    deduplicator = Deduplicator(capacity=capacity)
    chunks: list[bytes] = []
    remembered: deque[str] = deque(maxlen=capacity)
    for phase in phases:
        expected, here = [], set()
        for event_id in phase:
            expected.append(event_id is not None and (event_id in remembered or event_id in here))
            here.add(event_id)
        assert deduplicator.duplicates(phase).tolist() == expected
        assert Deduplicator.restore(chunks, capacity=capacity).duplicates(phase).tolist() == expected
        new = [event_id for event_id, repeated in zip(phase, expected, strict=True) if not repeated]
        chunks.append(deduplicator.remember(new))
        remembered.extend(event_id for event_id in new if event_id is not None)


def test_events_without_an_id_are_never_duplicates() -> None:
    deduplicator = Deduplicator(capacity=10)
    deduplicator.remember([None, "a"])
    assert deduplicator.duplicates([None, "a", None, "b", "b"]).tolist() == [False, True, False, False, True]


def test_a_capacity_of_nothing_remembers_nothing() -> None:
    deduplicator = Deduplicator(capacity=0)
    deduplicator.remember(["a"])
    assert deduplicator.duplicates(["a", "a"]).tolist() == [False, False]
