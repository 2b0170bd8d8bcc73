"""What the cost of late phases is compared with."""

from __future__ import annotations

import pytest

from benchmarks.flat_cost import cpu_seconds, figures
from benchmarks.stream import Stream
from service.config import Config
from streams.simulator import World


def test_the_ratio_is_of_the_last_twenty_to_the_eleventh_to_thirtieth() -> None:
    seconds = [9.0] * 10 + [1.0] * 19 + [50.0] + [7.0] * 5 + [1.1] * 19 + [60.0]
    assert figures(seconds) == {"early_s": 1.0, "late_s": 1.1, "ratio": 1.1}
    with pytest.raises(ValueError, match="49 phases are too few; 50 are needed"):
        figures([1.0] * 49)


def test_every_whole_phase_is_learned_and_timed() -> None:
    stream = Stream.of_world(World(events=130, users=20, items=30, no_repeat=5))
    seconds = cpu_seconds(stream, 40, Config())
    assert len(seconds) == 3
    assert min(seconds) > 0
