# ruff: noqa: N815 (shape suffixes)
"""What the user tower reads: the last events of many users' histories, as arrays of one shape.

Shape suffixes: B users or examples, L places of a history, P places of all of the past that is looked at, both newest
first.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models import likeness
from models.event_log import VALUE_UNIT, LogView, Places
from models.past import KNOWN, PAST, FirstChoices, Past

Ints = NDArray[np.int64]


@dataclass
class Histories:
    """The last L events before some moment, and sums over all of them."""

    item_BL: Ints
    """Item rows; -1 where there is no event, or its item was forgotten."""
    action_BL: Ints
    value_BL: NDArray[np.float32]
    time_BL: NDArray[np.float64]
    count_B: Ints
    """How many events the whole history has."""
    valued_B: Ints
    """How many of these have a value."""
    value_sum_B: NDArray[np.float64]
    """The sum of these values."""
    past_BP: Ints
    """Item rows of the last events, -1 as in `item_BL`; the first are those of `item_BL`. As many places as the longest
    of these histories needs."""
    weight_BP: NDArray[np.float32]
    """What was done with them weighs so much; NaN where there is no event."""
    age_BP: Ints
    """How many events, of anybody, there were from then on."""

    @classmethod
    def from_log(
        cls,
        log: LogView,
        start_B: Ints,
        length: int,
        *,
        until_B: NDArray[np.float64] | None = None,
        now_B: Ints | None = None,
        known: int = KNOWN,
    ) -> Histories:
        """Histories that end with the events at positions `start_B` (-1: nobody's), seen from the positions `now_B`,
        the end of the log unless they are given; `known` events of them, and no fewer than `length`.

        Events of `until_B` or later (they arrived late, after what came before them) are left out.
        """
        if len(log) == 0:
            return cls.empty(len(start_B), length)
        position_BP = log.histories(start_B, max(known, length))
        age_BP = (np.int64(len(log)) if now_B is None else now_B[:, None]) - position_BP
        places = Places(position_BP)
        if until_B is not None:
            late_E = log.time[places.at_E] >= until_B[places.there_E // position_BP.shape[1]]
            if late_E.any():
                position_BP.reshape(-1)[places.there_E[late_E]] = -1
                places = Places(position_BP)
        newest = Places(_as_long(position_BP, length))
        some_B = start_B >= 0
        return cls(
            item_BL=newest.of(log.item, -1, np.int64),
            action_BL=newest.of(log.action, 0, np.int64),
            value_BL=newest.of(log.value, np.nan),
            time_BL=newest.of(log.time, np.nan),
            count_B=np.where(some_B, log.count[start_B], 0).astype(np.int64),
            valued_B=np.where(some_B, log.valued[start_B], 0).astype(np.int64),
            value_sum_B=np.where(some_B, log.value_sum[start_B], 0) * VALUE_UNIT,
            past_BP=places.of(log.item, -1, np.int64),
            weight_BP=places.of(log.weight, np.nan),
            age_BP=age_BP,
        )

    @classmethod
    def empty(cls, users: int, length: int) -> Histories:
        """Of users who never did anything."""
        nothing = np.zeros(users, np.int64)
        return cls(
            item_BL=np.full((users, length), -1, np.int64),
            action_BL=np.zeros((users, length), np.int64),
            value_BL=np.full((users, length), np.nan, np.float32),
            time_BL=np.full((users, length), np.nan),
            count_B=nothing,
            valued_B=nothing.copy(),
            value_sum_B=np.zeros(users),
            past_BP=np.full((users, 0), -1, np.int64),
            weight_BP=np.full((users, 0), np.nan, np.float32),
            age_BP=np.zeros((users, 0), np.int64),
        )

    def followed_by(self, older: Histories, since_B: Ints) -> Histories:
        """These histories with older ones of the same users behind them, `since_B` events ago."""
        # by time and weight and not by item: the place of a forgotten item is taken
        order_BL = _order(self.time_BL, older.time_BL, self.time_BL.shape[1])
        order_BP = _order(self.weight_BP, older.weight_BP, max(KNOWN, self.time_BL.shape[1]))
        return Histories(
            item_BL=_behind(self.item_BL, older.item_BL, order_BL),
            action_BL=_behind(self.action_BL, older.action_BL, order_BL),
            value_BL=_behind(self.value_BL, older.value_BL, order_BL),
            time_BL=_behind(self.time_BL, older.time_BL, order_BL),
            count_B=self.count_B + older.count_B,
            valued_B=self.valued_B + older.valued_B,
            value_sum_B=self.value_sum_B + older.value_sum_B,
            past_BP=_behind(self.past_BP, older.past_BP, order_BP),
            weight_BP=_behind(self.weight_BP, older.weight_BP, order_BP),
            age_BP=_behind(self.age_BP, older.age_BP + since_B[:, None], order_BP),
        )

    def rows(self, index_N: NDArray[Any] | slice) -> Histories:
        """Those of some of the users, by number or mask, which are copies, or a stretch of them."""
        return Histories(**{name: array[index_N] for name, array in vars(self).items()})

    def past(self) -> Past:
        """What the decayed means of all that was chosen are made of."""
        return Past.of(self.past_BP[:, :PAST], self.weight_BP[:, :PAST])

    def first_choices(self) -> FirstChoices:
        """What was chosen, each item where it was chosen first."""
        return FirstChoices.of(self.past_BP, (self.past_BP >= 0) & (self.weight_BP > 0))

    def liked(self, half_life: float) -> Past:
        """What was chosen last, decayed so fast."""
        return Past.of(self.past_BP[:, : likeness.EVENTS], self.weight_BP[:, : likeness.EVENTS], half_life)

    def chosen(self) -> Past:
        """What the users chose, each choice like any other, in windows of age."""
        weight_BP, age_BP = self.weight_BP[:, :PAST], self.age_BP[:, :PAST]
        return Past.of(self.past_BP[:, :PAST], np.sign(weight_BP), np.inf, age_BP)

    def tensors(self, scale: ValueScale, device: torch.device | str = "cpu") -> HistoryTensors:
        """The same as tensors, values standardised and times turned into gaps."""
        there_BL = self.item_BL >= 0
        newest_B1 = self.time_BL[:, :1]
        with np.errstate(invalid="ignore"):
            gap_BL = np.nan_to_num(newest_B1 - self.time_BL, nan=0.0).clip(0, 2.0 ** (GAPS - 2))
        value_BL = (self.value_BL - scale.mean) / scale.deviation
        values = {
            "item_BL": np.where(there_BL, self.item_BL, 0),
            "mask_BL": there_BL,
            "action_BL": self.action_BL,
            "gap_BL": np.log2(1 + gap_BL).astype(np.int64),
            "value_BL": np.nan_to_num(value_BL, nan=0.0).clip(-4, 4).astype(np.float32),
            "valued_BL": np.isfinite(self.value_BL),
            "length_B": length_bucket(self.count_B),
        }
        tensors = {name: torch.from_numpy(array).to(device) for name, array in values.items()}
        return HistoryTensors(**tensors, mean=scale.mean, deviation=scale.deviation)


def _as_long(position_BP: Ints, length: int) -> Ints:
    """So many places, those that it lacks with -1."""
    lacking = max(0, length - position_BP.shape[1])
    return np.pad(position_BP[:, :length], ((0, 0), (0, lacking)), constant_values=-1)


def _order(newer: NDArray[Any], older: NDArray[Any], most: int) -> Ints:
    """Places in the two side by side, those that are NaN last, as many as are needed and no more than `most`."""
    empty = np.isnan(np.concatenate((newer, older), axis=1))
    return np.argsort(empty, axis=1, kind="stable")[:, :most]


def _behind(newer: NDArray[Any], older: NDArray[Any], order: Ints) -> NDArray[Any]:
    return np.take_along_axis(np.concatenate((newer, older), axis=1), order, axis=1)


@dataclass
class HistoryTensors:
    """Inputs of the user tower."""

    item_BL: Tensor
    """Item rows, 0 where `mask_BL` is false."""
    mask_BL: Tensor
    action_BL: Tensor
    gap_BL: Tensor
    """⌊log₂(1 + seconds before the newest event)⌋. Not before now: a published vector does not know when it is read."""
    value_BL: Tensor
    valued_BL: Tensor
    length_B: Tensor
    """Bucket of the length of the whole history, below `LENGTHS`."""
    mean: float
    """What `value_BL` is relative to …"""
    deviation: float
    """… and in units of."""

    def newest(self, length: int) -> HistoryTensors:
        """The same with no more than so many places."""
        if self.item_BL.shape[1] <= length:
            return self
        names = ("item_BL", "mask_BL", "action_BL", "gap_BL", "value_BL", "valued_BL")
        return replace(self, **{name: getattr(self, name)[:, :length] for name in names})


GAPS = 32
"""Gap buckets: up to 2³⁰ seconds, 34 years."""
LENGTHS = 10
"""Buckets of history length: 0, 1, 2–3, 4–7, and so on to 128–255, then 256 and more."""


def length_bucket(count_B: Ints) -> Ints:
    """⌊log₂(n)⌋ + 1, 0 for none, at most `LENGTHS` - 1."""
    bucket_B = np.floor(np.log2(np.maximum(count_B, 1))).astype(np.int64) + 1
    return np.where(count_B > 0, np.minimum(bucket_B, LENGTHS - 1), 0)


FURTHEST = 10.0
"""Standard deviations from the mean that a value counts for at most."""
KNOWN_BY = 100
"""After so many values that is known."""


@dataclass
class ValueScale:
    """Running mean and spread of all values learned from."""

    count: float = 0.0
    total: float = 0.0
    squares: float = 0.0

    def __post_init__(self) -> None:
        self._unit = 1.0  # what the first values are in units of, before any was learned: no part of the state

    @property
    def mean(self) -> float:
        """Their mean, 0 before any."""
        return self.total / self.count if self.count else 0.0

    @property
    def deviation(self) -> float:
        """Their standard deviation, 1 where they never varied."""
        if not self.count:
            return self._unit
        variance = self.squares / self.count - self.mean**2
        return float(variance**0.5) if variance > 1e-12 * self.squares / self.count else 1.0

    def expect(self, value_B: NDArray[np.float32]) -> None:
        """These are to come: how large they are is what counts until the first were taken."""
        value = value_B[np.isfinite(value_B)].astype(np.float64)
        size = float((value**2).mean() ** 0.5) if len(value) else 0.0
        self._unit = size if size > 0 else 1.0

    def take(self, value_B: NDArray[np.float32]) -> None:
        """Take in values; NaN is none. One that is beyond all others is taken for no more than far from them."""
        value = self.bounded(value_B[np.isfinite(value_B)].astype(np.float64))
        self.count += len(value)
        self.total += float(value.sum())
        self.squares += float((value**2).sum())

    def bounded(self, value_B: NDArray[np.float64]) -> NDArray[np.float64]:
        """Values no further than `FURTHEST` deviations from the mean, once that is known; (B,)."""
        if self.count < KNOWN_BY:
            return value_B
        return np.clip(value_B, self.mean - FURTHEST * self.deviation, self.mean + FURTHEST * self.deviation)

    def shrunken_mean(self, histories: Histories, *, prior: float = 5.0) -> NDArray[np.float64]:
        """Each user's mean value, drawn towards the mean of all as if by `prior` values of it; (B,)."""
        return (histories.value_sum_B + prior * self.mean) / (histories.valued_B + prior)
