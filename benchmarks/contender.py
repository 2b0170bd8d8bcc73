"""Headwater as a contender of a prequential judge: the daemon's learner, gate and fast path, without Kafka and Redis.

`make(past)` gives an object with `event`, `train`, `row` and, for the `rating` objective, `rate`: the protocol of
test-then-train evaluation (Gama, Sebastião & Rodrigues, "On evaluating stream learning algorithms", 2013).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.learner import Learner
from models.memory import EventBatch, Memory
from models.overlay import Overlay
from models.prequential import rank_events
from models.serving import Snapshot
from models.spec import ModelSpec, TrainSpec

HELD_OUT = 0.2
"""Share of a phase, its newest, that judges the candidate and is learned with the next phase."""


@dataclass(frozen=True)
class ContenderConfig:
    """What the daemon would read from its configuration file."""

    model: ModelSpec = field(default_factory=ModelSpec)
    train: TrainSpec = field(default_factory=TrainSpec)
    seed: int = 0
    gate: bool = True
    action: str = "rating"


class Contender:
    """Memory, learner and overlay driven by a judge's `past` (see `judge_probe`)."""

    def __init__(self, past: Any, config: ContenderConfig) -> None:
        self.past = past
        modalities = {name: rows.shape[1] for name, rows in past.features.items()}
        self.spec = ModelSpec(**{**vars(config.model), "modalities": dict(config.model.modalities) or modalities})
        self.config = config
        self.memory = Memory(self.spec, config.train.actions)
        self.learner = Learner(self.spec, config.train, self.memory, config.seed)
        self.phase = 0
        self.learned = 0
        self.refused = 0
        self.pending_items: list[int] = []
        self.announced = np.zeros(past.ni, bool)
        self.row_of = np.full(past.ni, -1)
        self.overlay = Overlay(Snapshot.build(self.spec, self.learner.state_dict(), self.memory, version=0))
        if config.model.objective == "rating":
            self.rate = self._rate

    # -- the protocol

    def event(self, j: int) -> None:
        """Event j is past."""
        self._announce()
        self.overlay.observe(self._batch(j, j + 1))

    def row(self, u: int, history: Any, t: float) -> NDArray[np.float64]:  # noqa: ARG002
        """Scores over all items."""
        self._announce()
        scores = self.overlay.scores(str(u))
        out = np.full(self.past.ni, -1e9)
        missing = np.flatnonzero(self.row_of < 0)
        rows = [self.overlay.item_index(str(i)) for i in missing]
        self.row_of[missing] = [-1 if row is None else row for row in rows]
        known = self.row_of >= 0
        out[known] = scores[self.row_of[known]]
        return out

    def _rate(self, u: int, i: int, history: Any, t: float) -> float:  # noqa: ARG002
        user = self.overlay.user_vectors([str(u)])
        if self.overlay.item_index(str(i)) is None:
            return float(user[0, -1])
        return float(self.overlay.snapshot.scores(user, self.overlay.item_vectors([str(i)]))[0, 0])

    def train(self, a: int, b: int) -> None:
        """Events a..b-1 are a phase: learn its first 80% and what was held out last time, judge, swap."""
        self._announce()
        memory, learner = self.memory, self.learner
        for i in self.pending_items:
            memory.announce(str(i), float(self.past.announced[i]), self._features(i))
        self.pending_items.clear()
        self.phase += 1
        memory.append(self._batch(a, b))
        stop = b - int((b - a) * HELD_OUT)
        while stop < b and self.past.t[stop] == self.past.t[stop - 1]:
            stop += 1
        before = learner.state_dict() if self.config.gate else None
        now = float(self.past.t[b - 1])
        learner.learn(np.arange(self.learned, stop), now=now, replay_ratio=self.config.train.replay_ratio)
        self.learned = stop
        candidate = learner.state_dict()
        if before is not None and self.phase > 1 and not self._accept(before, candidate, stop, b):
            learner.load_state_dict(before)
            candidate = before
            self.refused += 1
        self.overlay = Overlay(Snapshot.build(self.spec, candidate, memory, version=self.phase))
        self.row_of[:] = -1

    # -- pieces

    def _accept(self, champion: dict[str, Any], candidate: dict[str, Any], a: int, b: int) -> bool:  # noqa: ARG002
        return True

    def _batch(self, a: int, b: int) -> EventBatch:
        past = self.past
        return EventBatch(
            [str(u) for u in past.u[a:b].tolist()], [str(i) for i in past.i[a:b].tolist()],
            [self.config.action] * (b - a), past.v[a:b], past.t[a:b],
        )  # fmt: skip

    def _announce(self) -> None:
        new = np.flatnonzero(np.isfinite(self.past.announced) & ~self.announced)
        self.announced[new] = True
        for i in new.tolist():
            self.overlay.announce(str(i), float(self.past.announced[i]), self._features(i))
            self.pending_items.append(i)

    def _features(self, i: int) -> dict[str, NDArray[np.float32]]:
        return {name: rows[i] for name, rows in self.past.features.items() if rows[i].any()}


def make(past: Any, config: ContenderConfig | None = None) -> Contender:
    """The contender over a judge's `past`."""
    return Contender(past, config or ContenderConfig())


__all__ = ["Contender", "ContenderConfig", "make", "rank_events"]
