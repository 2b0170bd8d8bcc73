"""How good the recommendations are, beside plain methods, other libraries, and ourselves without this or that part.

    python -m benchmarks.quality FOLDER [--limit N] [--only popularity,headwater,…] [--out DIR] [--seed 0] [--jobs 2]

FOLDER holds events in Headwater's format (`docs/events.md`), in any files that `headwater replay` reads. Everybody is
tested and then trained on the same stream (`benchmarks.prequential`), as many side by side as there are cores. Prints a
line as soon as it and those before it have run; with `--out` also writes `quality.md`, `quality.json` and
`quality.png`, the recall of each over the phases. A library that is not installed is said to be missing:
`pip install 'headwater[bench,lightfm]'` brings them all.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.baselines import TooManyItemsError
from benchmarks.entrants import Entry, entries
from benchmarks.outcome import Outcome
from benchmarks.prequential import evaluate
from benchmarks.quality_report import heading, line, markdown, plot
from benchmarks.stream import Stream
from service.config import Config

WHOLE = "headwater"
"""The line that ablations are compared with."""


def main(
    folder: Annotated[Path, typer.Argument(help="A folder of event files.")],
    *,
    limit: Annotated[int | None, typer.Option(min=1, help="The first so many interactions only.")] = None,
    only: Annotated[str, typer.Option(help="Names of lines, with commas; all by default.")] = "",
    out: Annotated[Path | None, typer.Option(help="A folder for quality.md, quality.json and quality.png.")] = None,
    phases: Annotated[int, typer.Option(min=1, help="Phases after the warm-up.")] = 160,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random of ours.")] = 0,
    jobs: Annotated[int, typer.Option(min=1, help="How many run side by side.")] = os.cpu_count() or 1,
) -> None:
    """Measure and print."""
    try:
        stream = Stream.of_folder(folder, limit)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    found = by_name(stream, seed)
    names = [name for name in only.split(",") if name] or list(found)
    if unknown := [name for name in names if name not in found]:
        raise typer.BadParameter(f"There is no {unknown[0]!r}; there are {', '.join(found)}.")
    about = f"{len(stream)} events, {stream.users} users, {stream.items} items, {phases} phases"
    print(about, heading(), sep="\n", flush=True)
    rows: list[dict[str, Any]] = []
    whole: Outcome | None = None
    for name, (row, outcome) in zip(names, each(names, stream, phases=phases, seed=seed, jobs=jobs), strict=True):
        if name == WHOLE:
            whole = outcome
        if found[name].kind == "ablation" and whole and outcome:
            row |= outcome.beside(whole)
        rows.append(row)
        print(line(row), flush=True)
        if out is not None:  # after each line, for the next may take long
            out.mkdir(parents=True, exist_ok=True)
            record = {"folder": folder.name, "about": about, "seed": seed, "lines": rows}
            (out / "quality.json").write_text(json.dumps(_without_nan(record), indent=1) + "\n", encoding="utf-8")
            (out / "quality.md").write_text(markdown(folder.name, about, rows), encoding="utf-8")
    for name, ratio in rating_ratios(rows).items():
        print(f"RMSE of headwater-rating is {ratio:.4f} × that of {name}")
    if out is not None and not plot(out / "quality.png", rows):
        print("No plot: matplotlib is not installed.", file=sys.stderr)


Found = tuple[dict[str, Any], Outcome | None]


def by_name(stream: Stream, seed: int) -> dict[str, Entry]:
    """All that can take part in a stream."""
    return {entry.name: entry for entry in entries(list(stream.features), Config(seed=seed))}


def each(names: Sequence[str], stream: Stream, *, phases: int, seed: int, jobs: int) -> Iterator[Found]:
    """What `run` finds of each, in this order; up to `jobs` run at once, each in a process of its own."""
    if jobs == 1:
        found = by_name(stream, seed)
        yield from (run(found[name], stream, phases=phases) for name in names)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, _begin, (stream, phases, seed)) as pool:
        yield from pool.map(_run_named, names)


_given: tuple[Stream, int, int]
"""In a process of `each`: the stream, the phases and the seed."""


def _begin(*given: Any) -> None:
    global _given
    _given = given
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Who is killed leaves nobody behind that runs on for half an hour."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _run_named(name: str) -> Found:
    stream, phases, seed = _given
    return run(by_name(stream, seed)[name], stream, phases=phases)


def run(entry: Entry, stream: Stream, *, phases: int) -> Found:
    """One line of the table: `name`, `kind`, `catalogue`, the figures and `recall_by_phase`; or why there is none."""
    row: dict[str, Any] = {"name": entry.name, "kind": entry.kind, "catalogue": entry.catalogue}
    if entry.missing:
        return row | {"left_out": f"the package `{entry.package}` is not installed"}, None
    started = time.perf_counter()
    try:
        with entry.around():
            outcome = evaluate(
                stream, entry.make, phases=phases, catalogue=entry.catalogue, ranked_share=entry.ranked_share
            )
    except TooManyItemsError as error:
        return row | {"left_out": str(error)}, None
    wall_s = time.perf_counter() - started
    measured = {"wall_s": wall_s, "intervals": outcome.intervals(), "recall_by_phase": outcome.recall_by_phase()}
    return row | outcome.figures() | measured, outcome


def rating_ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
    """RMSE of ours over that of each other line that has one."""
    rmse = {row["name"]: row["rmse"] for row in rows if "rmse" in row}
    ours = rmse.pop("headwater-rating", None)
    return {name: ours / other for name, other in rmse.items()} if ours else {}


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: null instead."""
    if isinstance(value, dict):
        return {key: _without_nan(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    typer.run(main)
