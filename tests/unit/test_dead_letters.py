"""A dead letter keeps all of the record, or says what it cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.dead_letters import DeadLetter
from streams.events import Record

RECORDS = st.builds(
    Record,
    topic=st.text(st.sampled_from("abc.-_9"), min_size=1, max_size=20),
    partition=st.integers(0, 1000),
    offset=st.integers(0, 2**62),
    timestamp_ms=st.integers(-1, 2**50),
    key=st.none() | st.binary(max_size=50),
    value=st.none() | st.binary(max_size=3000),
    headers=st.lists(st.tuples(st.text(max_size=10), st.binary(max_size=20)), max_size=4).map(tuple),
)


def written(letter: DeadLetter) -> Record:
    return Record("dead", 0, 7, 1, letter.key, letter.record.value, tuple(letter.headers))


@given(record=RECORDS, reason=st.sampled_from(["not_json", "too_large"]), detail=st.text(max_size=60))
def test_a_letter_read_back_is_the_letter_written(record: Record, reason: str, detail: str) -> None:
    letter = DeadLetter(record=record, reason=reason, detail=detail)
    assert DeadLetter.read(written(letter)) == letter


@given(record=RECORDS, limit=st.integers(0, 5000))
def test_a_fitted_letter_is_a_beginning_and_says_how_long_the_whole_was(record: Record, limit: int) -> None:
    letter = DeadLetter(record=record, reason="too_large", detail="it is")
    fitted = letter.fitted(limit)
    if fitted.truncated_from is None:
        assert fitted == letter
        return
    assert record.value is not None
    assert fitted.record.value is not None
    assert record.value.startswith(fitted.record.value)
    assert fitted.truncated_from == len(record.value)
    size = len(fitted.key) + len(fitted.record.value) + sum(len(name) + len(text) for name, text in fitted.headers)
    assert size <= limit or fitted.record.value == b""
    assert fitted.fitted(limit // 2).truncated_from == len(record.value)


def test_the_key_names_where_the_record_was() -> None:
    letter = DeadLetter(record=Record("events", 3, 42, 0, b"k", b"v"), reason="not_json", detail="it is not")
    assert letter.key == b"events:3:42"


def test_a_long_detail_is_cut_between_characters() -> None:
    letter = DeadLetter(record=Record("events", 3, 42, 0, b"k", b"v"), reason="not_json", detail="€" * 1000)
    assert DeadLetter.read(written(letter)).detail == "€" * 333


def test_another_record_is_no_letter() -> None:
    with pytest.raises(ValueError, match=r"dead\[0\] offset 5 is no dead letter"):
        DeadLetter.read(Record("dead", 0, 5, 0, b"k", b"v"))
