"""Does an event cost as much to learn after many phases as after few? The catalogue is fixed, the past grows.

    python -m benchmarks.flat_cost [--phases 160] [--events 500] [--seed 0]

A simulated world in which nothing drifts, fades or arrives is learned with the default configuration, as
`benchmarks.contender` learns it: told of each event, then trained on the phase, judged and swapped. Prints the median
of CPU seconds a phase over phases 141–160, that over 11–30, and their ratio.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from typing import Annotated

import typer

from benchmarks.contender import make
from benchmarks.laws import world
from benchmarks.prequential import Past
from benchmarks.stream import Stream
from service.config import Config

EARLY, LATE = slice(10, 30), 20
"""Phases that are compared, from 0: these, and so many last ones."""


def cpu_seconds(stream: Stream, events: int, config: Config) -> list[float]:
    """CPU seconds of this process that each phase of so many events took, a last shorter one left out."""
    past = Past(stream)
    learner = make(past, config)
    seconds = []
    for start in range(0, len(stream) - events + 1, events):
        began = time.process_time()
        for event in range(start, start + events):
            past.announce(float(stream.t[event]))
            past.reveal(event)
            learner.event(event)
        learner.train(start, start + events)
        seconds.append(time.process_time() - began)
    return seconds


def figures(seconds: Sequence[float]) -> dict[str, float]:
    """Medians, and the ratio of the later one to the earlier one. Raises `ValueError` for fewer than 50 phases."""
    if len(seconds) < EARLY.stop + LATE:
        raise ValueError(f"{len(seconds)} phases are too few; {EARLY.stop + LATE} are needed.")
    early, late = statistics.median(seconds[EARLY]), statistics.median(seconds[-LATE:])
    return {"early_s": round(early, 4), "late_s": round(late, 4), "ratio": round(late / early, 3)}


def main(
    *,
    phases: Annotated[int, typer.Option(min=EARLY.stop + LATE)] = 160,
    events: Annotated[int, typer.Option(min=1, help="Events in a phase.")] = 500,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Learn, print."""
    stream = Stream.of_world(world("steady", seed, events=phases * events))
    print(json.dumps(figures(cpu_seconds(stream, events, Config(seed=seed)))))


if __name__ == "__main__":
    typer.run(main)
