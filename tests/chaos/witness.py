"""A witness of what a daemon really learns from: every example that reaches a gradient, written down beside the
process, whatever the daemon's own books say.

A line of the file is one finished call of `Learner.learn`: one attempt at one phase. An attempt that a kill cut short
leaves no line, and nothing of it can have been committed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.examples import Examples
from models.learner import Learner, LearnReport
from models.past import PAST
from service.collecting import Collected
from service.engine import Engine
from service.intent import Intent
from service.trainer import Attempt


class Trained(msgspec.Struct, frozen=True, array_like=True):
    """One example as it was scored."""

    position: int
    """In the log of events."""
    new: bool
    history: list[int]
    """Item rows of the user's last events as the tower read them, newest first."""
    past: list[int]
    """The same of all of the past that is known."""


class Seen(msgspec.Struct, frozen=True):
    """One finished attempt at a phase."""

    phase: int
    new: list[int]
    """Log positions that the learner was given as new."""
    trained: list[Trained]
    length: int
    """Most places of a history."""


def watch(path: Path) -> None:
    """From now on, in this process, every finished attempt of the learner itself (not of a shadow) is noted."""
    now: dict[str, Any] = {"learner": None, "phase": 0, "trained": []}
    engine_learn, learn, backward = Engine.learn, Learner.learn, Learner._backward

    def engine_learning(self: Engine, collected: Collected, intent: Intent) -> Attempt:
        now.update(learner=self.trainer.learner, phase=intent.phase)
        return engine_learn(self, collected, intent)

    def learning(self: Learner, positions: NDArray[np.int64], **options: Any) -> LearnReport:
        if self is not now["learner"]:
            return learn(self, positions, **options)
        now["trained"] = []
        report = learn(self, positions, **options)
        _note(path, Seen(now["phase"], np.asarray(positions).tolist(), now["trained"], self.spec.history))
        return report

    def stepping(self: Learner, objective: Any, weight: float, examples: Examples, *rest: Any) -> float:
        if self is now["learner"]:
            histories = examples.histories
            rows = zip(
                examples.position_B.tolist(),
                map(_known, histories.item_BL),
                map(_known, histories.past_BP),
                strict=True,
            )
            now["trained"] += [Trained(at, n < examples.fresh, *both) for n, (at, *both) in enumerate(rows)]
        return backward(self, objective, weight, examples, *rest)

    Engine.learn = engine_learning  # type: ignore[method-assign]
    Learner.learn = learning  # type: ignore[method-assign]
    Learner._backward = stepping  # type: ignore[method-assign, assignment]


def _known(row: NDArray[np.int64]) -> list[int]:
    return row[: np.flatnonzero(row >= 0)[-1] + 1].tolist() if (row >= 0).any() else []


def _note(path: Path, seen: Seen) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    line = b"\n" + msgspec.json.encode(seen) + b"\n"  # should the line before have been cut in half
    if os.write(fd, line) != len(line):
        raise OSError(f"{path} took only a part of a line")
    os.close(fd)


def testimony(path: Path) -> list[Seen]:
    """Every attempt so far, oldest first; a line that a kill cut in half is left out."""
    if not path.exists():
        return []
    lines = path.read_bytes().splitlines()
    return [msgspec.json.decode(line, type=Seen) for line in lines if line.endswith(b"}")]


def wrong_histories(
    attempts: Sequence[Seen], user: NDArray[np.int32], item: NDArray[np.int32], time: NDArray[np.float64]
) -> list[str]:
    """Examples whose history is not that of strictly earlier times, told from the log's columns alone."""
    of_user: dict[int, list[int]] = {}
    for at, one in enumerate(user.tolist()):
        of_user.setdefault(one, []).append(at)
    found = []
    for attempt in attempts:
        wrong = {True: 0, False: 0}
        for example in attempt.trained:
            at = example.position
            before = [int(item[p]) for p in of_user[int(user[at])] if p < at and time[p] < time[at]][: -PAST - 1 : -1]
            if example.past != before or example.history != before[: attempt.length]:
                wrong[example.new] += 1
        for new, count in wrong.items():
            if count:
                what = "new" if new else "replayed"
                found.append(f"phase {attempt.phase}: {count} {what} examples had another history than at their time")
    return found
