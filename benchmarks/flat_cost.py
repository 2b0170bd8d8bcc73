"""Does an event cost as much to learn after many phases as after few? The catalogue is fixed, the past grows.

    python -m benchmarks.flat_cost [--phases 160] [--events 500] [--seed 0]

A simulated world in which nothing drifts, fades or arrives is learned with the default configuration, as
`benchmarks.contender` learns it: told of each event, then trained on the phase, judged and swapped. Prints the median
of CPU seconds a phase over phases 141–160, that over 11–30, and their ratio. A second learner, which starts anew, takes
the early phases by turns with the first one's late ones, so that a machine whose speed changes changes both; what grows
with the process, such as its heap, is on both sides too, and is not seen.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Annotated

import typer

from benchmarks.contender import make
from benchmarks.laws import world
from benchmarks.prequential import Past
from benchmarks.stream import Stream
from service.config import Config

BEGINNING, COMPARED = 10, 20
"""First phases that are not compared, and how many are, early and late."""


def cpu_seconds(stream: Stream, events: int, config: Config) -> Iterator[float]:
    """CPU seconds of this process that each phase of so many events took, a last shorter one left out."""
    past = Past(stream)
    learner = make(past, config)
    for start in range(0, len(stream) - events + 1, events):
        began = time.process_time()
        for event in range(start, start + events):
            past.announce(float(stream.t[event]))
            past.reveal(event)
            learner.event(event)
        learner.train(start, start + events)
        yield time.process_time() - began


def early_and_late(stream: Stream, events: int, config: Config) -> tuple[list[float], list[float]]:
    """Those of the early phases that are compared, and of as many last ones, taken by turns. Raises `ValueError` where
    the stream has fewer than both."""
    phases = len(stream) // events
    if phases < BEGINNING + 2 * COMPARED:
        raise ValueError(f"{phases} phases are too few; {BEGINNING + 2 * COMPARED} are needed.")
    early, late = (cpu_seconds(stream, events, config) for _ in range(2))
    for learner, before in ((late, phases - COMPARED), (early, BEGINNING)):
        for _ in islice(learner, before):
            pass
    pairs = list(islice(zip(early, late, strict=False), COMPARED))
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def figures(early: Sequence[float], late: Sequence[float]) -> dict[str, float]:
    """Medians, and the ratio of the later one to the earlier one."""
    early_s, late_s = statistics.median(early), statistics.median(late)
    return {"early_s": round(early_s, 4), "late_s": round(late_s, 4), "ratio": round(late_s / early_s, 3)}


def main(
    *,
    phases: Annotated[int, typer.Option(min=BEGINNING + 2 * COMPARED)] = 160,
    events: Annotated[int, typer.Option(min=1, help="Events in a phase.")] = 500,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Learn, print."""
    stream = Stream.of_world(world("steady", seed, events=phases * events))
    print(json.dumps(figures(*early_and_late(stream, events, Config(seed=seed)))))


if __name__ == "__main__":
    typer.run(main)
