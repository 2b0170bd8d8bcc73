"""Does the gate refuse what it must, and let pass what it should? Counted on the daemon's own trainer and gate.

    python -m benchmarks.poison [--trials 20] [--events 5000] [--kinds shuffled,nan,tenfold] [--folder DIR]

A stream (simulated unless a folder is given) is learned in phases of `--events`. From the third phase on, a copy of the
trainer learns each phase spoiled in each way, is judged, and learns the next phase as it should: was the spoiled
candidate refused, the next one promoted, and how does that one rank beside the trainer that was never spoiled? Every
candidate that was not spoiled is a healthy one, the next ones as well. Prints a line for each trial and the counts.
"""

from __future__ import annotations

import copy
import json
import statistics
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.spoiling import SPOILS, Spoil, healthy
from benchmarks.stream import Stream
from models.memory import EventBatch
from service.config import Config
from service.promotion import Verdict
from service.trainer import Trainer
from streams.simulator import World

WARM_UP = 2
"""Phases before the first spoiled candidate: without a champion there is nothing to be worse than."""


class Phases:
    """A trainer's phases of a stream, as the daemon would run them."""

    def __init__(self, stream: Stream, config: Config, events: int) -> None:
        modalities = {name: rows.shape[1] for name, rows in stream.features.items()}
        self.stream, self.events = stream, events
        self.config = config.model_copy(update={"model": replace(config.model, modalities=modalities)})

    def __len__(self) -> int:
        return len(self.stream) // self.events

    def trainer(self) -> Trainer:
        """One before any event."""
        return Trainer.fresh(self.config)

    def run(self, trainer: Trainer, number: int, spoil: Spoil, rng: np.random.Generator) -> Verdict:
        """Learn phase `number` (from 0), judge, and crown whoever is promoted."""
        stream, a = self.stream, number * self.events
        b = a + self.events
        since = stream.t[a - 1] if a else -np.inf
        until = stream.t[b - 1]
        for item in np.flatnonzero((stream.announced > since) & (stream.announced <= until)).tolist():
            features = {name: rows[item] for name, rows in stream.features.items() if rows[item].any()}
            trainer.memory.announce(str(item), float(stream.announced[item]), features)
        users, items = ([str(one) for one in column[a:b].tolist()] for column in (stream.u, stream.i))
        fresh = trainer.memory.append(EventBatch(users, items, stream.actions[a:b], stream.v[a:b], stream.t[a:b]))
        train = self.config.train
        with spoil(trainer, rng):
            attempt = trainer.learn(fresh, replay_ratio=train.replay_ratio, threads=train.threads or 1)
        verdict = trainer.judge(attempt)
        assert verdict is not None, "a phase of events is always judged"
        if verdict.decision == "promoted":
            trainer.crown(trainer.snapshot(version=number + 1))
        return verdict


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A spoiled candidate and the sound one after it."""

    kind: str
    phase: int
    decision: str
    slug: str
    reason: str
    change: float | None
    """Relative, of the held-out score, from champion to spoiled candidate; None where it is not finite."""
    next_decision: str
    next_slug: str
    next_beside: float
    """The next candidate's held-out score over that of a trainer that was never spoiled."""


def trials(phases: Phases, kinds: dict[str, Spoil], count: int, *, seed: int = 0) -> tuple[list[Trial], list[Verdict]]:
    """Runs `count` trials of each kind; also the verdicts on all healthy candidates that had a champion to beat.

    Raises `ValueError` where the stream has too few phases.
    """
    if len(phases) < WARM_UP + count + 1:
        raise ValueError(f"{count} trials need {WARM_UP + count + 1} phases; the stream has {len(phases)}.")
    rng = np.random.default_rng(seed)
    trainer = phases.trainer()
    for number in range(WARM_UP):
        phases.run(trainer, number, healthy, rng)
    found: list[Trial] = []
    sound: list[Verdict] = []
    waiting: list[tuple[str, Trainer, Verdict]] = []
    """Spoiled in the last phase, and about to learn this one."""
    for number in range(WARM_UP, WARM_UP + count + 1):
        before = trainer if number == WARM_UP + count else copy.deepcopy(trainer)
        sound.append(phases.run(trainer, number, healthy, rng))
        reference = sound[-1].metrics["gate_candidate"]
        for kind, other, verdict in waiting:
            after = phases.run(other, number, healthy, rng)
            if verdict.decision == "refused":
                sound.append(after)
            found.append(_trial(kind, number, verdict, after, reference))
            print(_line(found[-1]), flush=True)
        waiting = []
        for kind, spoil in kinds.items() if number < WARM_UP + count else ():
            other = copy.deepcopy(before)
            waiting.append((kind, other, phases.run(other, number, spoil, rng)))
    return found, sound


def _trial(kind: str, phase: int, verdict: Verdict, after: Verdict, reference: float) -> Trial:
    return Trial(
        kind=kind,
        phase=phase,
        decision=verdict.decision,
        slug=verdict.slug,
        reason=verdict.reason,
        change=verdict.metrics.get("gate_change"),
        next_decision=after.decision,
        next_slug=after.slug,
        next_beside=after.metrics.get("gate_candidate", float("nan")) / reference,
    )


def counts(found: list[Trial], sound: list[Verdict]) -> dict[str, Any]:
    """By kind: `refused` of how many, why, promoted after a refusal, and the mean and least `next_beside`."""
    summary: dict[str, Any] = {}
    for kind in dict.fromkeys(trial.kind for trial in found):
        own = [trial for trial in found if trial.kind == kind]
        refused = [trial for trial in own if trial.decision == "refused"]
        beside = [trial.next_beside for trial in refused]
        summary[kind] = {
            "candidates": len(own),
            "refused": len(refused),
            "why": dict(Counter(trial.slug for trial in own)),
            "promoted_after_refusal": sum(trial.next_decision == "promoted" for trial in refused),
            "beside_unspoiled_mean": statistics.fmean(beside) if beside else None,
            "beside_unspoiled_least": min(beside, default=None),
        }
    summary["healthy"] = {
        "candidates": len(sound),
        "refused": sum(verdict.decision == "refused" for verdict in sound),
        "why": dict(Counter(verdict.slug for verdict in sound)),
    }
    return summary


def _line(trial: Trial) -> str:
    change = "not finite" if trial.change is None else f"{trial.change:+.1%}"
    return (
        f"phase {trial.phase:3} {trial.kind:13} {trial.decision:9} ({trial.slug}, {change}); "
        f"next {trial.next_decision} at {trial.next_beside:.3f} of the unspoiled"
    )


def main(
    *,
    trials_: Annotated[int, typer.Option("--trials", min=1, help="Spoiled candidates of each kind.")] = 20,
    events: Annotated[int, typer.Option(min=50, help="Events in a phase.")] = 5000,
    kinds: Annotated[str, typer.Option(help=f"Of {', '.join(SPOILS)}, with commas.")] = "shuffled,nan,tenfold",
    folder: Annotated[Path | None, typer.Option(help="Events to learn; a simulated world without it.")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write trials and counts here too.")] = None,
) -> None:
    """Spoil, judge, count."""
    chosen = {}
    for kind in kinds.split(","):
        if kind not in SPOILS:
            raise typer.BadParameter(f"There is no {kind!r}; there are {', '.join(SPOILS)}.")
        chosen[kind] = SPOILS[kind]
    needed = (WARM_UP + trials_ + 1) * events
    stream = Stream.of_world(World(seed=seed + 1, events=needed)) if folder is None else Stream.of_folder(folder)
    try:
        found, sound = trials(Phases(stream, Config(seed=seed), events), chosen, trials_, seed=seed)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    summary = counts(found, sound)
    for kind, figures in summary.items():
        print(f"{kind}: " + ", ".join(f"{name} {value}" for name, value in figures.items()))
    if json_out is not None:
        record = {"events": events, "counts": summary, "trials": [asdict(trial) for trial in found]}
        json_out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
