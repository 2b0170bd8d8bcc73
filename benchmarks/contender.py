"""Headwater as a contender of a prequential judge: the daemon's learner, gate and fast path, without Kafka and Redis.

`make(past)` gives an object with `event`, `train`, `row` and, for the `rating` objective, `rate`: the protocol of
test-then-train evaluation (Gama, Sebastião & Rodrigues, "On evaluating stream learning algorithms", 2013).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from models.memory import EventBatch
from models.overlay import Overlay
from service.collecting import announcement_order
from service.config import Config
from service.trainer import Trainer, torch_threads, training_threads

ACTION = "rating"
"""What every event of a stream is called whose judge does not say."""
NEVER = -1e9
"""Score of an item that was not announced yet: below every other, and finite."""


class Past(Protocol):
    """What a judge tells: events `0..n-1`, and items announced so far. It grows between calls."""

    ni: int
    """How many items there will ever be."""
    u: NDArray[np.int64]
    i: NDArray[np.int64]
    v: NDArray[np.float32]
    t: NDArray[np.float64]
    announced: NDArray[np.float64]
    """Infinite until an item is announced, (ni,)."""
    features: dict[str, NDArray[np.float32]]
    """Modality → (ni, D), zeros where an item has none or is not announced."""


class Contender:
    """The daemon's trainer and overlay, driven by a judge."""

    def __init__(self, past: Past, config: Config) -> None:
        self.past = past
        modalities = config.model.modalities or self.modalities()
        config = config.model_copy(update={"model": replace(config.model, modalities=modalities)})
        self.config = config
        self._threads = training_threads(config.train)
        # One user's vector is so little work that several threads would mostly wait for one another.
        torch.set_num_threads(1)
        self.trainer = Trainer.fresh(config)
        self.overlay = Overlay(self.trainer.snapshot(version=0))
        self.phase = 0
        self.refused: list[str] = []
        """The gate's reasons."""
        self._announced = np.zeros(past.ni, bool)
        self._to_memory: list[int] = []
        self._row = np.full(past.ni, -1)
        self._mentioned = np.zeros(past.ni, bool)
        """Announced, or met in an event."""
        if config.model.objective == "rating":
            self.rate = self._rate  # the judge measures RMSE of whoever has this method

    def modalities(self) -> dict[str, int]:
        """What the stream tells of items, each with the length of its vectors; for a configuration that names none."""
        return {name: rows.shape[1] for name, rows in self.past.features.items()}

    def event(self, j: int) -> None:
        """Event j is past."""
        self._announce()
        self._mentioned[self.past.i[j]] = True
        self.overlay.observe(self._batch(j, j + 1))

    def row(self, u: int, history: Any, t: float) -> NDArray[np.float64]:  # noqa: ARG002
        """Scores over all items, (ni,)."""
        self._announce()
        scores = self.overlay.scores(str(u))
        for i in np.flatnonzero((self._row < 0) & self._mentioned):
            row = self.overlay.item_index(str(i))
            self._row[i] = -1 if row is None else row
        out = np.full(self.past.ni, NEVER)
        known = self._row >= 0
        out[known] = scores[self._row[known]]
        return out

    def _rate(self, u: int, i: int, history: Any, t: float) -> float:  # noqa: ARG002
        self._announce()
        user_BV = self.overlay.user_vectors([str(u)])
        if self.overlay.item_index(str(i)) is None:
            return float(user_BV[0, -1])  # the user's base alone
        return float(self.overlay.snapshot.scores(user_BV, self.overlay.item_vectors([str(i)]))[0, 0])

    def train(self, a: int, b: int) -> None:
        """Events a..b-1 are a phase: learn, judge, and serve the better one over all that has happened."""
        self._announce()
        trainer = self.trainer
        announcements = [(str(i), float(self.past.announced[i]), self._features(i)) for i in self._to_memory]
        self._to_memory.clear()
        for announcement in sorted(announcements, key=lambda one: announcement_order(*one)):
            trainer.memory.announce(*announcement)
        self.phase += 1
        fresh = trainer.memory.append(self._batch(a, b))
        attempt = trainer.learn(fresh, replay_ratio=self.config.train.replay_ratio, threads=self._threads)
        verdict = trainer.judge(attempt)
        with torch_threads(self._threads):
            snapshot = trainer.snapshot(version=self.phase)
        if verdict is not None and verdict.decision == "refused":
            self.refused.append(verdict.reason)
        else:
            trainer.crown(snapshot)
        self._row[:] = -1  # memory numbers items otherwise than an overlay does
        self.overlay = Overlay(snapshot, self.overlay)

    def _batch(self, a: int, b: int) -> EventBatch:
        past = self.past
        users, items = ([str(one) for one in ids[a:b].tolist()] for ids in (past.u, past.i))
        actions: list[str] | None = getattr(past, "actions", None)  # some judges know of one kind of event only
        return EventBatch(users, items, actions[a:b] if actions else [ACTION] * (b - a), past.v[a:b], past.t[a:b])

    def _announce(self) -> None:
        new = np.flatnonzero(np.isfinite(self.past.announced) & ~self._announced)
        self._announced[new] = self._mentioned[new] = True
        for i in new.tolist():
            self.overlay.announce(str(i), float(self.past.announced[i]), self._features(i))
        self._to_memory += new.tolist()

    def _features(self, i: int) -> dict[str, NDArray[np.float32]]:
        return {name: rows[i] for name, rows in self.past.features.items() if rows[i].any()}


def make(past: Past, config: Config | None = None) -> Contender:
    """The contender over a judge's `past`, with the defaults of the configuration file unless told otherwise."""
    return Contender(past, config or Config())
