"""When the served version's live score is below the floor, and which earlier version takes its place."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest
from numpy.typing import NDArray

from service.config import PromotionConfig
from service.errors import CorruptCheckpoint
from service.floor import Floor, Rivals

EVENTS, USERS = 120, 60
Scores = NDArray[np.float64]


class Stream:
    """Held-out events of phases to come, and versions of a quality relative to decayed popularity."""

    def __init__(self, floor: Floor, seed: int = 0) -> None:
        self.floor, self.rng = floor, np.random.default_rng(seed)
        self.asked = 0

    def phase(self, served: float, **earlier: float) -> dict[str, float]:
        """One phase: how good what is served is, and earlier versions, by `v` and their number."""
        decayed = self.rng.uniform(0.1, 0.5, EVENTS)
        live = self._scores(decayed, served)

        def rivals() -> Rivals:
            self.asked += 1
            return [(int(name[1:]), partial(self._scores, decayed, share)) for name, share in earlier.items()]

        return self.floor.look(
            live=live, decayed=decayed, served=live, users=self.rng.integers(0, USERS, EVENTS), rivals=rivals
        )

    def _scores(self, decayed: Scores, share: float) -> Scores:
        return share * decayed + self.rng.normal(0, 0.05, EVENTS)


def due(stream: Stream) -> int | None:
    """The version to go back to."""
    return stream.floor.due


@pytest.fixture
def stream() -> Stream:
    return Stream(Floor(PromotionConfig()))


def test_below_the_floor_the_best_of_the_surely_better_ones_is_due(stream: Stream) -> None:
    for _ in range(7):  # four until it is known to be below, and four of the others' since
        figures = stream.phase(0.6, v3=0.8, v4=1.1, v5=0.6)
    assert figures["floor_below"] == 1
    assert figures["floor_change"] == pytest.approx(-0.4, abs=0.05)
    assert due(stream) == 4


def test_few_events_tell_nothing(stream: Stream) -> None:
    for _ in range(3):  # 360 events; 400 are needed
        assert stream.phase(0.2, v1=1.0)["floor_below"] == 0
    assert due(stream) is None
    assert stream.asked == 0


@pytest.mark.parametrize("served", [1.2, 1.0, 0.92])
def test_above_the_floor_nobody_is_asked(stream: Stream, served: float) -> None:
    for _ in range(20):
        assert stream.phase(served, v1=2.0)["floor_below"] == 0
    assert stream.asked == 0


def test_where_no_earlier_version_does_better_it_stays(stream: Stream) -> None:
    for _ in range(30):
        assert stream.phase(0.6, v1=0.6, v2=0.5, v3=0.6)["floor_below"] in (0, 1)
        assert due(stream) is None
    assert stream.asked > 20


def test_one_that_recovered_is_left_in_peace(stream: Stream) -> None:
    for _ in range(5):
        stream.phase(0.6, v1=0.65)
    for _ in range(10):
        stream.phase(1.1, v1=0.6)
    assert due(stream) is None


def test_it_can_be_turned_off() -> None:
    stream = Stream(Floor(PromotionConfig(auto_rollback=False)))
    for _ in range(8):
        figures = stream.phase(0.5, v1=1.0)
    assert figures["floor_below"] == 1, "the figures are there all the same"
    assert due(stream) is None
    assert stream.asked == 0


def test_it_goes_on_where_it_was_saved(stream: Stream) -> None:
    other = Stream(Floor(PromotionConfig()))
    for _ in range(6):
        stream.phase(0.6, v1=1.0)
    assert due(stream) is None
    other.floor.load(stream.floor.state_dict())
    other.rng = np.random.default_rng(1)
    stream.rng = np.random.default_rng(1)
    assert stream.phase(0.6, v1=1.0) == other.phase(0.6, v1=1.0)
    assert due(stream) == due(other) == 1
    other.floor.load({})
    assert due(other) is None


def test_an_earlier_version_that_cannot_be_read_is_passed_over(stream: Stream) -> None:
    def broken() -> Scores:
        raise CorruptCheckpoint("It is damaged.")

    def phase() -> None:
        decayed = stream.rng.uniform(0.1, 0.5, EVENTS)
        scores: dict[int, Scores] = {2: decayed}
        stream.floor.look(
            live=0.5 * decayed,
            decayed=decayed,
            served=0.5 * decayed,
            users=stream.rng.integers(0, USERS, EVENTS),
            rivals=lambda: [(1, broken), (2, lambda: scores[2])],
        )

    for _ in range(8):
        phase()
    assert due(stream) == 2


def test_clearing_forgets_it_all(stream: Stream) -> None:
    def windows() -> Iterator[int]:
        yield from (len(value) for value in stream.floor.state_dict().values() if isinstance(value, list))

    for _ in range(7):
        stream.phase(0.6, v1=1.0)
    assert due(stream) == 1
    stream.floor.clear()
    assert due(stream) is None
    assert set(windows()) == {0}
