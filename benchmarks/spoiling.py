"""Ways to spoil a candidate while it learns, so that the gate has something to refuse.

Each is a context around one call of `Trainer.learn`: within it the learner's own `learn` is spoiled; what is spoiled
beside the weights (labels, the rate) is put back at its end. The weights are the gate's business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from models.learner import LearnReport
from service.trainer import Trainer

RATE = 10.0
"""How many times the learning rate is too large."""

Spoil = Callable[[Trainer, np.random.Generator], Any]


@contextmanager
def healthy(trainer: Trainer, rng: np.random.Generator) -> Iterator[None]:  # noqa: ARG001
    """Nothing is spoiled."""
    yield


@contextmanager
def shuffled_labels(trainer: Trainer, rng: np.random.Generator) -> Iterator[None]:
    """The items of all events that can be learned or replayed are dealt anew among these events: as popular as ever,
    and no longer anyone's choice. What is held out stays as it was."""
    with _shuffled(trainer, rng, everything=True):
        yield


@contextmanager
def shuffled_new_labels(trainer: Trainer, rng: np.random.Generator) -> Iterator[None]:
    """The same of the new events alone; what is replayed beside them is sound."""
    with _shuffled(trainer, rng, everything=False):
        yield


@contextmanager
def _shuffled(trainer: Trainer, rng: np.random.Generator, *, everything: bool) -> Iterator[None]:
    learn = trainer.learner.learn

    def spoiled(positions: Any, **options: Any) -> LearnReport:
        # the learner's view shares these rows
        item = trainer.memory.log.view(shared_tail=True).item
        start, stop = (0 if everything else int(positions[0])), int(positions[-1]) + 1
        true = item[start:stop].copy()
        item[start:stop] = rng.permutation(true)
        try:
            return learn(positions, **options)
        finally:
            item[start:stop] = true

    with patch.object(trainer.learner, "learn", spoiled):
        yield


@contextmanager
def not_a_number(trainer: Trainer, rng: np.random.Generator) -> Iterator[None]:
    """One coordinate of one weight is NaN when learning begins."""
    learn = trainer.learner.learn

    def spoiled(positions: Any, **options: Any) -> LearnReport:
        weights = list(trainer.learner.scorer.parameters())
        weight = weights[int(rng.integers(len(weights)))]
        with torch.no_grad():
            weight.view(-1)[int(rng.integers(weight.numel()))] = torch.nan
        return learn(positions, **options)

    with patch.object(trainer.learner, "learn", spoiled):
        yield


@contextmanager
def tenfold_rate(trainer: Trainer, rng: np.random.Generator) -> Iterator[None]:  # noqa: ARG001
    """Every step is ten times as long, of shared weights and of rows."""
    learner, train = trainer.learner, trainer.learner.train
    learn = learner.learn

    def spoiled(positions: Any, **options: Any) -> LearnReport:
        learner.train = replace(train, learning_rate=RATE * train.learning_rate)
        try:
            return learn(positions, **options)
        finally:
            learner.train = train

    with patch.object(learner, "learn", spoiled):
        yield


SPOILS: dict[str, Spoil] = {
    "shuffled": shuffled_labels,
    "shuffled-new": shuffled_new_labels,
    "nan": not_a_number,
    "tenfold": tenfold_rate,
}
"""Name → context of (trainer, random numbers)."""
