"""The benchmark of quality: who takes part, Headwater without each of its parts, and what is written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from benchmarks import ablations, quality
from benchmarks.baselines import Popularity
from benchmarks.contender import Contender
from benchmarks.entrants import Entry, entries
from benchmarks.outcome import Outcome
from benchmarks.prequential import Past
from benchmarks.quality_report import markdown
from benchmarks.stream import Stream
from models.calibration import Calibration
from models.learner import Learner
from models.popularity import Popularity as Counts
from models.spec import ModelSpec, TrainSpec
from service.config import Config
from tests.unit.benchmarks.samples import past_of, told

SMALL = Config(model=ModelSpec(dim=4, history=3), train=TrainSpec(batch=16, threads=1))


# -- ours, whole and in parts


def test_a_table_names_what_can_take_part() -> None:
    names = [entry.name for entry in entries(["text", "image"], SMALL)]
    assert len(names) == len(set(names))
    assert {"headwater", "headwater-rating", "river", "without-ids", "without-text", "without-image"} <= set(names)
    assert not {"content-mean", "without-content"} & {entry.name for entry in entries([], SMALL)}


def learned(contender: Contender, past: Past, events: int) -> Contender:
    """In two phases: scales are fitted from the second on."""
    for a, b in ((0, events // 2), (events // 2, events)):
        told(contender, past, b).train(a, b)
    return contender


def built(stream: Stream, part: str) -> Iterator[tuple[Contender, Past]]:
    """A contender without a part that has learned the stream, while the part is away."""
    past = past_of(stream)
    make = partial(ablations.without(part, list(stream.features)), config=SMALL)
    with ablations.taken_away(part):
        yield learned(make(past), past, len(stream)), past


def own(learner: Learner) -> list[torch.Tensor]:
    """What items have of their own."""
    tables = [table.values for table in learner.tables.values()]
    return [*tables, learner.cooccurrence.values, learner.factors.mean]


@pytest.mark.parametrize("part", [*ablations.PLAIN, "text"])
def test_a_part_is_away_in_learning_and_in_serving(stream: Stream, part: str) -> None:
    for contender, past in built(stream, part):
        learner = contender.trainer.learner
        scores = np.array([contender.row(user, [], float(stream.t[-1])) for user in range(past.nu)])
        gone = {
            "content": lambda: not learner.spec.modalities,  # noqa: B023
            "text": lambda: list(learner.spec.modalities) == ["image"],  # noqa: B023
            "ids": lambda: not any(values.any() for values in own(learner)),  # noqa: B023
            "history": lambda: bool((scores == scores[0]).all()),  # noqa: B023
            "vintage": lambda: contender.overlay.snapshot.spec.vintage_dim == 0,  # noqa: B023
            "cooccurrence": lambda: learner.cooccurrence.values.shape[1] == 0,  # noqa: B023
            "factors": lambda: learner.factors.mean.shape[1] == 0,  # noqa: B023
            "replay": lambda: contender.config.train.replay_ratio == 0,  # noqa: B023
            "popularity": lambda: not contender.overlay.snapshot.features_NK.any(),  # noqa: B023
            "calibration": lambda: bool((learner.calibration.scales == Calibration().scales).all()),  # noqa: B023
        }
        assert gone[part]()


def test_everything_is_there_in_the_whole_and_after_a_part_was_away(stream: Stream) -> None:
    for part in ablations.PATCHES:
        for _ in built(stream, part):
            pass
    past = past_of(stream)
    contender = learned(Contender(past, SMALL), past, len(stream))
    learner = contender.trainer.learner
    scores = np.array([contender.row(user, [], float(stream.t[-1])) for user in range(past.nu)])
    assert all(values.any() for values in own(learner))
    assert contender.overlay.snapshot.features_NK.any()
    assert not (learner.calibration.scales == 1).all()
    assert not (scores == scores[0]).all()
    assert Counts.features.__module__ == "models.popularity"


# -- other libraries


@pytest.mark.parametrize("name", ["river", "implicit", "lightfm"])
def test_another_library_takes_part(stream: Stream, name: str) -> None:
    pytest.importorskip(name)
    entry = next(entry for entry in entries(["text"], SMALL) if entry.name == name)
    row, outcome = quality.run(entry, stream, phases=4)
    assert outcome is not None
    assert 0 <= row["recall"] <= 1
    assert ("rmse" in row) == (name == "river")


def test_a_missing_library_is_said(stream: Stream) -> None:
    entry = Entry(name="x", kind="library", make=Popularity, catalogue="seen", package="no_such_package")
    row, outcome = quality.run(entry, stream, phases=4)
    assert outcome is None
    assert "no_such_package" in row["left_out"]


# -- the command


def run_cli(*arguments: str) -> Any:
    app = typer.Typer()
    app.command()(quality.main)
    return CliRunner().invoke(app, list(arguments))


def test_the_table_is_printed_and_written(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run_cli(
        str(folder), "--only", "popularity,content-mean", "--phases", "5", "--out", str(out), "--jobs", "1"
    )
    assert result.exit_code == 0, result.output
    written = json.loads((out / "quality.json").read_text(encoding="utf-8"))
    assert [line["name"] for line in written["lines"]] == ["popularity", "content-mean"]
    assert len(written["lines"][0]["recall_by_phase"]) == 5
    page = (out / "quality.md").read_text(encoding="utf-8")
    assert f"| popularity | seen | {written['lines'][0]['recall']:.4f} |" in page
    low, high = written["lines"][0]["intervals"]["warm_recall"]
    assert low < written["lines"][0]["warm_recall"] < high
    assert f"| popularity | {low:.4f} to {high:.4f} |" in page
    assert "popularity " in result.output
    assert (out / "quality.png").read_bytes().startswith(b"\x89PNG")


def test_intervals_are_over_users_and_as_wide_as_what_they_do_differs() -> None:
    hit, miss = 3.0, 50.0
    alike = Outcome(k=20, catalogue="announced", events=400, user=[u for u in range(100) for _ in range(4)])
    alike.rank, alike.cold = [hit, miss, hit, miss] * 100, [False, False, True, True] * 100
    alike.rank_among_cold = [hit, hit] * 100
    # everybody hits half of the time: whoever is drawn, the share is the same
    assert alike.intervals() == {"warm_recall": (0.5, 0.5), "cold_recall": (0.5, 0.5), "cold_among_cold": (1.0, 1.0)}
    apart = Outcome(k=20, catalogue="announced", events=400, user=alike.user, cold=[False] * 400)
    apart.rank = [hit] * 200 + [miss] * 200
    low, high = apart.intervals()["warm_recall"]
    error = (0.25 / 100) ** 0.5  # of 100 users, not of 400 events
    assert low == pytest.approx(0.5 - 1.96 * error, abs=0.015)
    assert high == pytest.approx(0.5 + 1.96 * error, abs=0.015)
    assert set(apart.intervals()) == {"warm_recall"}


def test_an_ablation_has_a_change_and_no_interval() -> None:
    row = {"catalogue": "announced", "intervals": {"warm_recall": (0.1, 0.2)}, "warm_recall": 0.15}
    page = markdown(
        "films", "", [row | {"name": "whole"}, row | {"name": "part", "warm_change": 0.0, "warm_change_se": 0.1}]
    )
    assert "| whole | 0.1000 to 0.2000 |" in page
    assert "| part | 0.1000" not in page


def test_lines_that_run_side_by_side_are_those_that_run_one_after_another(stream: Stream) -> None:
    names = ["popularity", "item-knn", "means"]
    tables = [
        [
            row | outcome.figures()
            for row, outcome in quality.each(names, stream, phases=3, seed=0, jobs=jobs)
            if outcome
        ]
        for jobs in (1, 2)
    ]
    times = {"wall_s", "learn_s", "score_s", "learn_events_per_s"}
    alone, beside = ([{key: row[key] for key in row if key not in times} for row in table] for table in tables)
    assert len(alone) == len(names)
    assert str(alone) == str(beside)  # NaN is not equal to itself


def test_errors_are_compared_with_everyone_who_foresees_values(folder: Path) -> None:
    stream = Stream.of_folder(folder)
    lines = [
        quality.run(entry, stream, phases=3)[0]
        for entry in entries([], SMALL)
        if entry.name in ("popularity", "means", "headwater-rating")
    ]
    rmse = {line["name"]: line["rmse"] for line in lines if "rmse" in line}
    assert "popularity" not in rmse
    assert quality.rating_ratios(lines) == {"means": rmse["headwater-rating"] / rmse["means"]}


def test_an_unknown_line_is_refused_with_the_known_ones(folder: Path) -> None:
    result = run_cli(str(folder), "--only", "popularty")
    assert result.exit_code == 2
    assert "popularity" in result.output


def group(leader: int) -> set[int]:
    """The processes of a process group that have not ended."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            state, _, its_group = path.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == leader and state != "Z":
                found.add(int(path.parent.name))
    return found


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes as Linux shows them")
def test_who_is_killed_leaves_nobody_behind() -> None:
    code = """
import multiprocessing, time
from concurrent.futures import ProcessPoolExecutor
from benchmarks.quality import _begin
with ProcessPoolExecutor(2, multiprocessing.get_context("spawn"), _begin, (None,) * 3) as pool:
    list(pool.map(time.sleep, [600, 600]))
"""
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    try:
        wait_until(lambda: len(group(process.pid)) >= 4)
        process.kill()
        process.wait()
        wait_until(lambda: not group(process.pid))
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
