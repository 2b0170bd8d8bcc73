"""Headwater with one part taken away, learned and served without it: what is that part worth?

A part that the configuration or the stream can take away is taken away there. Where none can, the class that computes
it is patched for as long as the run lasts; nothing of it remains afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from benchmarks.contender import Contender, Past
from models.calibration import Calibration
from models.cooccurrence import Cooccurrence
from models.factors import Factors
from models.item_tables import RowTable
from models.memory import EventBatch
from models.popularity import FEATURES, NEWNESS, Popularity
from service.config import Config

Make = Callable[..., Contender]
"""Called with the past and `config`."""


class WithoutModalities(Contender):
    """Never told of some modalities."""

    def __init__(self, past: Past, config: Config, hidden: Sequence[str]) -> None:
        self._hidden = set(hidden)
        super().__init__(past, config)

    def modalities(self) -> dict[str, int]:
        """Those that are left."""
        return {name: size for name, size in super().modalities().items() if name not in self._hidden}

    def _features(self, i: int) -> dict[str, NDArray[np.float32]]:
        return {name: row for name, row in super()._features(i).items() if name not in self._hidden}


class WithoutReplay(Contender):
    """Learns each event once."""

    def __init__(self, past: Past, config: Config) -> None:
        super().__init__(past, config.model_copy(update={"train": replace(config.train, replay_ratio=0.0)}))


class WithoutBlock(Contender):
    """Publishes vectors without the numbers that tell of `name`: a key of `[model]`, 0 of them."""

    def __init__(self, past: Past, config: Config, name: str) -> None:
        none: dict[str, Any] = {name: 0}
        super().__init__(past, config.model_copy(update={"model": replace(config.model, **none)}))


class WithoutHistory(Contender):
    """Each event comes from a user of its own: there is no one to be personal about, in learning or in serving."""

    def row(self, u: int, history: Any, t: float) -> NDArray[np.float64]:  # noqa: ARG002
        """Scores for somebody unknown."""
        return super().row(-1, history, t)

    def _batch(self, a: int, b: int) -> EventBatch:
        return replace(super()._batch(a, b), users=[f"event-{j}" for j in range(a, b)])


@contextmanager
def _no_ids() -> Iterator[None]:
    """An item has nothing of its own: residual, context, bias, co-occurrence and factors are zeros for ever."""

    def stay(self: RowTable | Cooccurrence | Factors, *_: Any, **__: Any) -> None:
        """Learn nothing."""

    with (
        patch.object(RowTable, "step", stay),
        patch.object(Cooccurrence, "take", stay),
        patch.object(Factors, "take", stay),
    ):
        yield


@contextmanager
def _no_popularity() -> Iterator[None]:
    """Counts, ages and whether an item was ever seen are told to nobody."""

    def features(_: Popularity, item_B: NDArray[np.int64], *__: Any, **___: Any) -> NDArray[np.float32]:
        return np.zeros((len(item_B), FEATURES), np.float32)

    def newness(_: Popularity, item_B: NDArray[np.int64]) -> NDArray[np.float32]:
        return np.zeros((len(item_B), NEWNESS.stop), np.float32)

    with (
        patch.object(Popularity, "features", features),
        patch.object(Popularity, "never_seen", features),
        patch.object(Popularity, "newness", newness),
    ):
        yield


@contextmanager
def _no_calibration() -> Iterator[None]:
    """Every scale stays what it is at first."""

    def fitted(self: Calibration, *_: Any, **__: Any) -> Calibration:
        """Believe nothing new."""
        return self

    with patch.object(Calibration, "fitted", fitted):
        yield


PATCHES = {"ids": _no_ids, "popularity": _no_popularity, "calibration": _no_calibration}
CONFIGURED: dict[str, Make] = {
    "history": WithoutHistory,
    "replay": WithoutReplay,
    **{name: partial(WithoutBlock, name=name) for name in ("vintage", "cooccurrence", "factors")},
}
PLAIN = ("content", "ids", "history", "replay", "vintage", "cooccurrence", "factors", "popularity", "calibration")
"""What can be taken away whatever the stream; each of its modalities too, by name."""


def without(part: str, modalities: Sequence[str]) -> Make:
    """Builds the contender without `part`: one of `PLAIN`, or a modality. Patched ones need `taken_away` around."""
    if part in CONFIGURED:
        return CONFIGURED[part]
    if part in PATCHES:
        return Contender
    return partial(WithoutModalities, hidden=modalities if part == "content" else [part])


@contextmanager
def taken_away(part: str) -> Iterator[None]:
    """For as long as a run lasts that is `without` this part."""
    with ExitStack() as stack:
        if part in PATCHES:
            stack.enter_context(PATCHES[part]())
        yield
