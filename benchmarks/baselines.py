"""The plain methods that any recommender is measured against, none of which needs more than numpy.

Each is an entrant of `benchmarks.prequential`. Popularity is fresh at each event; item kNN is refitted on *all* of the
past every few phases, or kept fresh too.

Shape suffixes: I items, L events of a history, D length of all modalities side by side.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.prequential import Past

Floats = NDArray[Any]

RECENT = 20
"""How many of a user's last events are read."""
REFIT = 4
"""A method that learns from all of the past does so in the first phase, and in every so-manieth."""
SHRINK = 20.0
MOST_ITEMS = 20_000
"""Items beyond which a square matrix of them is refused."""


class TooManyItemsError(Exception):
    """A method needs a matrix of items by items, which would not fit."""


class Popularity:
    """How often each item was met."""

    def __init__(self, past: Past) -> None:
        self.past = past
        self.counts = np.zeros(past.ni)

    def event(self, j: int) -> None:
        """Count it."""
        self.counts[self.past.i[j]] += self.past.positive[j]

    def train(self, a: int, b: int) -> None:
        """Nothing is left to learn."""

    def row(self, u: int, history: list[int], t: float) -> Floats:  # noqa: ARG002
        """The counts."""
        return self.counts

    def prior(self) -> Floats:
        """Popularity as a tie breaker, below 0.001."""
        return np.asarray(1e-3 * self.counts / max(self.counts.max(), 1.0))

    def recent(self, history: list[int]) -> NDArray[np.int64]:
        """Items of the last events, oldest first, (L,)."""
        return self.past.i[history[-RECENT:]]


class DecayedPopularity(Popularity):
    """Counts that halve every so many events; they grow instead of decaying, which ranks alike and costs nothing."""

    def __init__(self, past: Past, half_life: float) -> None:
        super().__init__(past)
        self._growth = 2.0 ** (1.0 / half_life)
        self._weight = 1.0

    def event(self, j: int) -> None:
        """Count it, for a little more than the one before."""
        self._weight *= self._growth
        self.counts[self.past.i[j]] += self._weight * self.past.positive[j]
        if self._weight > 1e12:
            self.counts /= self._weight
            self._weight = 1.0


class Means(Popularity):
    """Values foreseen as the running mean, and what the item and then the user are above it, both shrunken.

    r̂_ui = r̄ + b_i + b_u with b_i = Σ_u (r_ui − r̄) / (25 + n_i) and b_u = Σ_i (r_ui − r̄ − b_i) / (10 + n_u) (Koren,
    "Factor in the neighbors", 2010, section 2.1), each difference as of its own event.
    """

    def __init__(self, past: Past) -> None:
        super().__init__(past)
        self._count, self._mean = 0, 0.0
        self._item_sum, self._item_count = np.zeros(past.ni), np.full(past.ni, 25.0)
        self._user_sum, self._user_count = np.zeros(past.nu), np.full(past.nu, 10.0)

    def event(self, j: int) -> None:
        """Move the three means; an event without a value says nothing."""
        user, item, value = self.past.u[j], self.past.i[j], float(self.past.v[j])
        if not np.isfinite(value):
            return
        self._count += 1
        self._mean += (value - self._mean) / self._count
        self._item_sum[item] += value - self._mean
        self._item_count[item] += 1
        self._user_sum[user] += value - self._mean - self._item_sum[item] / self._item_count[item]
        self._user_count[user] += 1

    def rate(self, u: int, i: int, history: list[int], t: float) -> float:  # noqa: ARG002
        """The value expected."""
        return float(self._mean + self._item_sum[i] / self._item_count[i] + self._user_sum[u] / self._user_count[u])


class ContentMean(Popularity):
    """Dot product with the mean content vector of the user's last items; nothing is learned."""

    def __init__(self, past: Past) -> None:
        super().__init__(past)
        self._as_of = -1
        self._content = np.zeros((past.ni, 0), np.float32)

    def row(self, u: int, history: list[int], t: float) -> Floats:  # noqa: ARG002
        """Similarity to what the user had; popularity before the first event."""
        if not history or not self.past.features:
            return self.prior()
        if self._as_of != self.past.items_announced:
            parts = [
                rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
                for rows in self.past.features.values()
            ]
            self._content, self._as_of = np.concatenate(parts, axis=1), self.past.items_announced
        return np.asarray(self._content @ self._content[self.recent(history)].mean(0))


class ItemKnn(Popularity):
    """Σ over the user's last items of shrunken cosine similarity.

    s_ij = c_ij / (n_ij + λ / n_ij), with c_ij the users who had both, n_ij = √(c_ii c_jj) and λ = 20 (Sarwar et al.,
    "Item-based collaborative filtering recommendation algorithms", 2001; shrinkage of few common users after Bell &
    Koren, 2007). The counts are kept event by event; `refit` says when they are taken over: 0 at once.
    """

    def __init__(self, past: Past, refit: int = REFIT) -> None:
        super().__init__(past)
        if past.ni > MOST_ITEMS:
            raise TooManyItemsError(f"{past.ni} items squared are too many for it")
        self._refit = refit
        self._phases = 0
        self._common = np.zeros((past.ni, past.ni), np.float32)
        self._taken = self._common
        self._had: dict[int, dict[int, None]] = {}

    def event(self, j: int) -> None:
        """One more user with both, of this item and each that the user had."""
        super().event(j)
        item, had = int(self.past.i[j]), self._had.setdefault(int(self.past.u[j]), {})
        if item in had or not self.past.positive[j]:
            return
        had[item] = None
        others = np.fromiter(had, np.int64)
        self._common[item, others] += 1
        self._common[others[:-1], item] += 1

    def train(self, a: int, b: int) -> None:  # noqa: ARG002
        """Take the counts over, if it is time to."""
        self._phases += 1
        if self._refit and (self._phases == 1 or self._phases % self._refit == 0):
            self._taken = self._common.copy()

    def row(self, u: int, history: list[int], t: float) -> Floats:  # noqa: ARG002
        """Sum of similarities to the user's last items, and popularity among equals."""
        recent = self.recent(history)
        if not len(recent):
            return self.prior()
        users_I = np.sqrt(np.diagonal(self._taken)) + 1e-9
        norm_LI = users_I[recent, None] * users_I
        similarity_LI = self._taken[recent] / (norm_LI + SHRINK / (norm_LI + 1e-9))
        similarity_LI[np.arange(len(recent)), recent] = 0
        return np.asarray(similarity_LI.sum(0) + self.prior())
