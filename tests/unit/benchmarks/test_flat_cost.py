"""What the cost of late phases is compared with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks import flat_cost
from benchmarks.flat_cost import cpu_seconds, early_and_late, figures
from benchmarks.stream import Stream
from service.config import Config
from streams.simulator import World


def test_the_ratio_is_of_the_later_median_to_the_earlier_one() -> None:
    early, late = [1.0] * 19 + [50.0], [1.1] * 19 + [60.0]
    assert figures(early, late) == {"early_s": 1.0, "late_s": 1.1, "ratio": 1.1}


def test_the_eleventh_to_thirtieth_phases_are_compared_with_the_last_twenty(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[float] = []

    def numbered(stream: Stream, events: int, config: Config) -> Iterator[float]:
        for phase in range(len(stream) // events):
            order.append(float(phase))
            yield float(phase)

    monkeypatch.setattr(flat_cost, "cpu_seconds", numbered)
    stream = Stream.of_world(World(events=125, users=20, items=30, no_repeat=5))
    early, late = early_and_late(stream, 2, Config())
    assert early == [float(phase) for phase in range(10, 30)]
    assert late == [float(phase) for phase in range(42, 62)]
    assert order[-4:] == [28.0, 60.0, 29.0, 61.0]  # by turns
    with pytest.raises(ValueError, match="41 phases are too few; 50 are needed"):
        early_and_late(stream, 3, Config())


def test_every_whole_phase_is_learned_and_timed() -> None:
    stream = Stream.of_world(World(events=130, users=20, items=30, no_repeat=5))
    seconds = list(cpu_seconds(stream, 40, Config()))
    assert len(seconds) == 3
    assert min(seconds) > 0
