"""What the soak calls flat."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.soak import FIGURES, Look, judge


def looks(rss: Callable[[int], float]) -> list[Look]:
    """A thousand phases in four lives; everything but memory stays as it is."""
    same = {name: 3 for name in FIGURES if name != "rss"}
    return [
        Look(phase=phase, life=1 + phase // 250, seconds=float(phase), rss=rss(phase), **same)
        for phase in range(1, 1_001)
    ]


def test_what_swings_with_every_restart_and_comes_back_is_flat() -> None:
    verdicts = judge(looks(lambda phase: 300.0 + phase % 250 / 10), settle=200)
    assert all(verdict["flat"] for verdict in verdicts.values())


def test_what_creeps_over_restarts_is_not() -> None:
    verdicts = judge(looks(lambda phase: 300.0 + phase / 10), settle=200)
    assert [name for name, verdict in verdicts.items() if not verdict["flat"]] == ["rss"]
    assert round(verdicts["rss"]["per_1000"]) == 100


def test_growth_while_it_settles_does_not_count() -> None:
    assert judge(looks(lambda phase: min(phase, 200.0)), settle=200)["rss"]["flat"]
