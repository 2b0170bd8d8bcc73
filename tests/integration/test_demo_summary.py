"""What `headwater demo` shows while it runs, and its summary."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec
import numpy as np
import pytest
from rich.console import Console

from service.demo_probes import Freshness, Served
from service.demo_summary import Report, print_report, read_lookups, report, write_report
from service.demo_view import NDCG, RECALL, Picture, View, panel
from service.phase_log import PhaseLine
from streams.simulator import Simulator, Stream, World, item_id

WORLD = World(seed=9, users=120, items=150, events=3_000, no_repeat=60, rate=500.0)


def line(
    phase: int, *, size: int = 500, decision: Any = "promoted", metrics: Mapping[str, float] = MappingProxyType({})
) -> PhaseLine:
    span = {"interactions": {0: (phase - 1) * size}}, {"interactions": {0: phase * size}}
    return PhaseLine(
        phase=phase,
        version=phase,
        decision=decision,
        reason="",
        start=span[0],
        end=span[1],
        events=size,
        duplicates=0,
        rejected=0,
        skipped=0,
        lost=0,
        late=0,
        items=5,
        users=3,
        watermark=None,
        opened_at=10.0 * phase,
        closed_at=10.0 * phase + 1,
        published_at=10.0 * phase + 5,
        metrics=metrics,
        stages={"learn": 3.0, "publish": 1.0},
    )


class Knowing:
    """Answers as a perfect daemon would."""

    def __init__(self, simulator: Simulator, stream: Stream) -> None:
        self.simulator, self.stream = simulator, stream

    def recommend(self, user_id: str, k: int, include_seen: bool) -> list[dict[str, Any]]:
        user = int(user_id[1:])
        utility = self.simulator.oracle.utilities(int(self.stream.number[-1]), np.array([user]))[0].copy()
        utility[self.stream.item[self.stream.user == user]] = -np.inf
        return [{"item_id": item_id(int(i)), "score": float(utility[i])} for i in np.argsort(-utility)[:k]]

    def similar(self, item_id: str, k: int) -> list[dict[str, Any]]:
        return [{"item_id": f"i{i}", "score": 1.0} for i in range(1, k + 1)]


@pytest.fixture(scope="module")
def summary() -> tuple[Simulator, Report]:
    simulator = Simulator(WORLD)
    stream = simulator.run()
    lines = [
        line(1),
        *(line(n, metrics={RECALL: 0.2, NDCG: 0.1 * n, "ranked": 10.0 * n}) for n in (2, 3, 4)),
        line(5, decision="refused"),
    ]
    found = Freshness(
        served=[Served(kind="item", id="i1", sent_at=22.0, seconds=0.05, across_flip=False)], missed=[], set_aside=2
    )
    result = report(simulator=simulator, stream=stream, lines=lines, first=1, freshness=found, seconds=60.0)
    result.lookups = read_lookups(Knowing(simulator, stream), simulator, stream)
    return simulator, result


def test_the_summary_compares_on_the_same_events(summary: tuple[Simulator, Report]) -> None:
    _, result = summary
    assert (result.phases, result.promoted, result.events) == (4, 3, 2_000)
    assert result.events_per_second == pytest.approx(2_000 / 35)
    assert result.measured == (500, 2_000)
    by_name = {row.name: row for row in result.quality}
    assert by_name["Headwater"].ndcg == pytest.approx((0.2 * 20 + 0.3 * 30 + 0.4 * 40) / 90)
    assert math.isnan(by_name["Headwater"].cold_recall)
    best = by_name["best possible"]
    others = [row.ndcg for row in result.quality if row.name not in ("Headwater", best.name)]
    assert len(others) == 3
    assert best.ndcg > max(others)
    (item, *_) = result.freshness
    assert (item.count, item.p50, item.learning) == (1, 0.05, 1)


def test_lookups_are_readable_and_say_how_true_they_are(summary: tuple[Simulator, Report]) -> None:
    simulator, result = summary
    user, item, newest = result.lookups
    assert user.rows[2].endswith(f"number 1 of {user.rows[2].rsplit(' ', 1)[1]}")
    assert user.rows[6].startswith("5. ")
    assert simulator.catalogue.titles[1] in item.rows[0]
    assert simulator.catalogue.titles[WORLD.items_at(WORLD.events - 1) - 1] in newest.title


def test_the_summary_can_be_read_by_people_and_programs(summary: tuple[Simulator, Report], tmp_path: Path) -> None:
    _, result = summary
    console = Console(file=io.StringIO(), width=120)
    print_report(console, result)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "2,000 events learned in 4 phases, 3 versions promoted" in text
    assert "50 ms" in text
    assert "Headwater" in text
    write_report(tmp_path / "report.json", result)
    decoded = msgspec.json.decode((tmp_path / "report.json").read_bytes())
    assert decoded["freshness"][0]["p50"] == 0.05
    assert decoded["freshness"][1]["p50"] is None


def test_without_a_terminal_each_phase_and_stage_is_a_line_once() -> None:
    console = Console(file=io.StringIO(), width=60, force_terminal=False)
    with View(console) as view:
        for count in (0, 1, 1, 3):
            view.show(picture([line(n, metrics={RECALL: 0.25}) for n in range(1, count + 1)]))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.count("learning\n") == 1
    assert [text.count(f"phase {n}: version {n} promoted, 500 events") for n in (1, 2, 3)] == [1, 1, 1]
    assert "recall@20 0.250, NDCG@20 –" in text


def test_on_a_terminal_there_is_one_panel() -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    with View(console) as view:
        view.show(picture([line(n) for n in range(1, 20)]))
    console.print(panel(picture([line(1)])))
    assert "versions promoted" in console.file.getvalue()  # type: ignore[attr-defined]


def picture(lines: Sequence[PhaseLine]) -> Picture:
    return Picture(
        stage="learning", total=5_000, sent=1_000, lines=lines, first=0, freshness=Freshness(), elapsed_s=12.0
    )
