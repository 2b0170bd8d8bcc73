"""A small share of `python -m tests.fuzz --records`, and that it would find what it looks for."""

from __future__ import annotations

import random
from unittest import mock

import pytest

from service.phase_builder import PhaseBuilder
from streams.events import DecodeError, Record
from tests.fuzz.records import BATCH, RecordFuzz, fuzz_records
from tests.unit.test_events import NOW_MS, decoder

COUNT = 10


@pytest.mark.slow
def test_mutated_records_are_accepted_or_dead_letters() -> None:
    assert fuzz_records(COUNT, seed=random.SystemRandom().randrange(2**32)) == {"taken in": COUNT}


def test_it_finds_a_record_that_is_lost() -> None:
    take = PhaseBuilder.take_content
    with (
        mock.patch.object(
            PhaseBuilder,
            "take_content",
            lambda self, arrival, now: None if arrival.offset % 100 == 7 else take(self, arrival, now),
        ),
        pytest.raises(AssertionError, match="accepted or refused"),
    ):
        fuzz_records(1, seed=1)


def test_it_finds_what_memory_cannot_hold() -> None:
    with mock.patch("streams.events._plain", lambda attributes, _name: attributes), pytest.raises(Exception):  # noqa: B017, PT011
        fuzz_records(20, seed=1)


def test_most_records_are_neither_all_good_nor_all_bad() -> None:
    fuzz = RecordFuzz(1)
    fuzz.prepare()
    with mock.patch("tests.fuzz.records._of_letters", lambda letters: f"{len(letters.sent)}"):
        refused = int(fuzz.attempt(0).why)
    assert 0.2 * BATCH < refused < 0.8 * BATCH


def test_a_whole_number_beyond_64_bits_in_attributes_is_refused() -> None:
    value = b'{"item_id": "i", "attributes": {"n": {"m": 18446744073709551616}}}'
    with pytest.raises(DecodeError, match="cannot be remembered") as refused:
        decoder().item(Record("items", 0, 0, NOW_MS, None, value))
    assert refused.value.reason == "wrong_type"
