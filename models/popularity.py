"""How popular and how new each item is: decayed counts at several half-lives, kept up to date by touching what is
touched, and how far its own beginning has decayed.

A count is stored as it was at the item's last event; later it is that value times 2^(−events since / half-life). So an
event changes one row, nothing ever overflows, and all counts can be had as of any later moment.

Shape suffixes: N items, B items touched, H half-lives, K features.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

HALF_LIVES = (30.0, 100.0, 300.0, 1_000.0, 3_000.0, 10_000.0, 30_000.0, 100_000.0)
"""In events of the whole stream."""
NEWNESS_HALF_LIVES = (300.0, 3_000.0, 30_000.0)
"""Of newness, in events of the whole stream since an item was announced."""
NEWNESS_STEPS = 8
"""In so many steps a half-life newness falls, so that few vectors change with each event."""
NEW_FOR = 5
"""After so many half-lives nothing is left of it."""
NEWNESS_EVERY = 32
"""It is as of the last event whose number is a multiple of this, so that small polls need not look at all items."""
NEWNESS = slice(0, len(NEWNESS_HALF_LIVES))
COUNTS = slice(NEWNESS.stop, NEWNESS.stop + len(HALF_LIVES))
WEIGHED = COUNTS.stop
"""The first so many features, newness and log counts, have coefficients of their own in calibration."""
FEATURES = WEIGHED + 4
"""After these come log events since the last one, log events since the first, log age, and whether never seen."""
LEARNED = slice(NEWNESS.stop, FEATURES)
"""All but newness are inputs of the scorer's networks too …"""
LEARNED_FEATURES = LEARNED.stop - LEARNED.start
"""… which are so many."""
NEVER_SEEN = FEATURES - 1
"""Which feature is 1 for an item that nobody has touched, and 0 for all others."""
COLUMNS = ("counts", "last", "first", "known")
"""What is kept of each item."""
DAY_S = 86_400.0

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass
class Popularity:
    """Counts of N items after `position` events of the stream."""

    counts: Floats
    """(N, H), as of the item's last event."""
    last: Ints
    """(N,) position of the item's last event, -1 for none."""
    first: Ints
    """(N,) position of its first, -1 for none."""
    known: Ints
    """(N,) how many events had passed when it was announced or first mentioned, whichever was first."""
    position: int = 0

    @classmethod
    def empty(cls) -> Popularity:
        """Before any event, of no item."""
        nothing = np.empty(0, np.int64)
        return cls(np.zeros((0, len(HALF_LIVES)), np.float32), nothing, nothing, nothing)

    def __len__(self) -> int:
        return len(self.last)

    def copy(self) -> Popularity:
        """One that can be advanced by itself."""
        columns = {name: getattr(self, name).copy() for name in COLUMNS}
        return replace(self, **columns)

    def grow(self, items: int) -> None:
        """Make room for `items` items in all; the new ones were never seen, and are known since now."""
        new = items - len(self)
        if new > 0:
            self.counts = np.concatenate((self.counts, np.zeros((new, len(HALF_LIVES)), np.float32)))
            self.last = np.concatenate((self.last, np.full(new, -1)))
            self.first = np.concatenate((self.first, np.full(new, -1)))
            self.known = np.concatenate((self.known, np.full(new, self.position)))

    def place(self, announced_N: Ints) -> None:
        """How many events were before each item was announced, as far as is known by now."""
        self.known = np.where(self.first < 0, announced_N, np.minimum(self.known, announced_N))

    def advance(self, item_B: NDArray[np.integer], positive_B: NDArray[np.bool_]) -> Ints:
        """Take in the stream's next events; returns the rows touched, ascending.

        An event of no item (-1) or that is not `positive` only moves the position. Raises `IndexError` for an item
        that there is no room for.
        """
        at_B = self.position + np.arange(len(item_B))
        self.position += len(item_B)
        counted = positive_B & (item_B >= 0)
        item_B, at_B = item_B[counted], at_B[counted]
        if len(item_B) == 0:
            return np.empty(0, np.int64)
        touched, opening, row_B = np.unique(item_B, return_index=True, return_inverse=True)
        newest = np.zeros(len(touched), np.int64)
        np.maximum.at(newest, row_B, at_B)
        seen = self.last[touched] >= 0
        idle = np.where(seen, newest - self.last[touched], 0)
        counts = self.counts[touched] * decay(idle)
        np.add.at(counts, row_B, decay(newest[row_B] - at_B))
        self.counts[touched] = counts
        self.first[touched] = np.where(seen, self.first[touched], at_B[opening])
        self.last[touched] = newest
        self.known[touched] = np.minimum(self.known[touched], self.first[touched])
        return np.asarray(touched, np.int64)

    def features(self, item_B: Ints, age_s: NDArray[np.float64], *, as_of_touch: bool = False) -> Floats:
        """What the scorer is told of these items, (B, K): as of now, or but for newness as of right after each one's
        last event.

        `age_s`: how long ago each was announced, at that time.
        """
        last, first = self.last[item_B], self.first[item_B]
        position = np.where(last >= 0, last + 1, self.position) if as_of_touch else self.position
        seen = last >= 0
        idle = np.where(seen, position - last, 0)
        out = np.empty((len(item_B), FEATURES), np.float32)
        out[:, COUNTS] = np.log1p(self.counts[item_B] * decay(idle))
        out[:, NEWNESS] = self.newness(item_B)
        out[:, -4] = np.where(seen, np.log1p(np.maximum(idle, 0)) / 4, 0)
        out[:, -3] = np.where(seen, np.log1p(np.maximum(position - first, 0)) / 4, 0)
        out[:, -2] = np.log1p(np.clip(age_s, 0, 1e11) / DAY_S) / 4
        out[:, -1] = ~seen
        return out

    def counts_now(self, column: int) -> Floats:
        """Each item's count with `HALF_LIVES[column]`, decayed to now, (N,)."""
        idle = np.where(self.last >= 0, self.position - self.last, 0)
        return np.asarray(self.counts[:, column] * np.exp2(idle / -HALF_LIVES[column]), np.float32)

    def newness(self, item_B: Ints) -> Floats:
        """How new these items are now, (B, 3)."""
        return newness(self.position // NEWNESS_EVERY * NEWNESS_EVERY - self.known[item_B])

    def never_seen(self, age_s: NDArray[np.float64], since_B: Ints) -> Floats:
        """The features of items that nobody has touched, (B, K), so many events after they were announced."""
        out = np.zeros((len(age_s), FEATURES), np.float32)
        out[:, NEWNESS] = newness(since_B)
        out[:, -2] = np.log1p(np.clip(age_s, 0, 1e11) / DAY_S) / 4
        out[:, -1] = 1
        return out


def nearest_half_life(events: float) -> int:
    """Which of `HALF_LIVES` is the nearest by its ratio."""
    return int(np.abs(np.log(np.array(HALF_LIVES) / min(events, 1e9))).argmin())


def decay(events: Ints) -> Floats:
    """2^(−events / half-life), (B, H)."""
    return np.asarray(np.exp2(events[:, None] / -np.array(HALF_LIVES)), np.float32)


def newness(since_B: Ints) -> Floats:
    """2^(−events since an item was announced / half-life), in steps, (B, 3); 1 for one that is still to be."""
    half_lives_BH = np.maximum(since_B, 0)[:, None] / np.array(NEWNESS_HALF_LIVES)
    newness_BH = np.exp2(-np.floor(half_lives_BH * NEWNESS_STEPS) / NEWNESS_STEPS)
    return np.where(half_lives_BH < NEW_FOR, newness_BH, 0).astype(np.float32)
