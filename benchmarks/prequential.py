"""Test-then-train over a stream, the same for every entrant, who sees nothing but the past.

Gama, Sebastião & Rodrigues, "On evaluating stream learning algorithms", 2013. The first share of the stream is learned
without being counted, as one phase; the rest is cut into equal phases, learned one after another. Events of one
timestamp are one basket: none is known while the others are ranked. Repeats (the user had the item before) are not
ranked, nor are actions of negative weight.

Shape suffixes: N events, I items.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.outcome import Catalogue, Outcome
from benchmarks.stream import Stream

Floats = NDArray[np.float64]


class Past:
    """What an entrant may know: rows that are not past yet are -1 or NaN, items to be announced are infinitely late."""

    def __init__(self, stream: Stream) -> None:
        n = len(stream)
        self.nu, self.ni = stream.users, stream.items
        self.n = 0
        """How many events are past."""
        self.u, self.i = np.full(n, -1), np.full(n, -1)
        self.v, self.t = np.full(n, np.nan, np.float32), np.full(n, np.nan)
        self.actions = [""] * n
        self.positive = np.zeros(n, bool)
        self.announced = np.full(self.ni, np.inf)
        self.features = {name: np.zeros_like(rows) for name, rows in stream.features.items()}
        self.items_announced = 0
        self._stream = stream
        self._order = np.argsort(stream.announced, kind="stable")

    def announce(self, now: float) -> None:
        """Tell of every item that is announced by `now`."""
        stream = self._stream
        while self.items_announced < self.ni:
            item = self._order[self.items_announced]
            if stream.announced[item] > now or not stream.announced[item] < np.inf:
                break
            self.announced[item] = stream.announced[item]
            for name, rows in stream.features.items():
                self.features[name][item] = rows[item]
            self.items_announced += 1

    def reveal(self, j: int) -> None:
        """Event j is past."""
        stream = self._stream
        self.u[j], self.i[j], self.v[j], self.t[j] = stream.u[j], stream.i[j], stream.v[j], stream.t[j]
        self.actions[j], self.positive[j] = stream.actions[j], stream.positive[j]
        self.n = j + 1


class Entrant(Protocol):
    """Who takes part. One that has `rate(u, i, history, t) -> float` too is asked for every value."""

    def event(self, j: int) -> None:
        """Event j is past: each event once, in order."""

    def train(self, a: int, b: int) -> None:
        """The phase of events a..b-1 is over."""

    def row(self, u: int, history: list[int], t: float) -> NDArray[Any]:
        """Scores of all items, (I,), finite; `history` are the user's past events, oldest first."""


def evaluate(
    stream: Stream,
    make: Callable[[Past], Entrant],
    *,
    warm: float = 0.2,
    phases: int = 160,
    k: int = 20,
    catalogue: Catalogue = "announced",
    ranked_share: float = 1.0,
) -> Outcome:
    """Walk through the stream with what `make` builds over its past.

    Candidates are the items that somebody touched before, and by `announced` also those that are announced by then;
    under `seen` a first interaction is a miss for everybody. Of the events of items that somebody
    touched, the share `ranked_share` is ranked, the same ones for everybody; of the others all, unless it is 0: then
    only values are asked for. Raises `ValueError` where scores are not finite or of another shape.
    """
    return _Walk(stream, make, k, catalogue, ranked_share).through(stream.cuts(warm, phases))


class _Walk:
    def __init__(
        self, stream: Stream, make: Callable[[Past], Entrant], k: int, catalogue: Catalogue, ranked_share: float
    ) -> None:
        self.stream = stream
        self.past = Past(stream)
        self.entrant = make(self.past)
        self.outcome = Outcome(k=k, catalogue=catalogue, events=len(stream))
        self.ranking = ranked_share > 0
        self.drawn = np.random.default_rng(0).random(len(stream)) < ranked_share
        self.rate = getattr(self.entrant, "rate", None)
        self.histories: list[list[int]] = [[] for _ in range(stream.users)]
        self.seen: list[set[int]] = [set() for _ in range(stream.users)]
        self.touched = np.zeros(stream.items, bool)

    def through(self, cuts: list[int]) -> Outcome:
        for number, (a, b) in enumerate(pairwise(cuts)):
            for j in range(a, b):
                # 1. A basket opens: all before it is past now, and none of it.
                if j == 0 or self.stream.t[j] != self.stream.t[j - 1]:
                    self._tell(j)
                    self.past.announce(float(self.stream.t[j]))
                # 2. Test.
                if number:
                    self._predict(j)
                    if self.ranking and self.stream.positive[j]:
                        self._rank(j, number)
                self.seen[self.stream.u[j]].add(int(self.stream.i[j]))
            # 3. Then train.
            self._tell(b)
            started = time.perf_counter()
            self.entrant.train(a, b)
            self.outcome.learn_s += time.perf_counter() - started
        return self.outcome

    def _tell(self, stop: int) -> None:
        for j in range(self.past.n, stop):
            self.past.reveal(j)
            self.histories[self.stream.u[j]].append(j)
            self.touched[self.stream.i[j]] |= self.stream.positive[j]
            started = time.perf_counter()
            self.entrant.event(j)
            self.outcome.learn_s += time.perf_counter() - started

    def _predict(self, j: int) -> None:
        stream, user = self.stream, int(self.stream.u[j])
        if self.rate is not None and np.isfinite(stream.v[j]):
            value = self.rate(user, int(stream.i[j]), self.histories[user], float(stream.t[j]))
            self.outcome.predicted.append(float(value))
            self.outcome.value.append(float(stream.v[j]))

    def _rank(self, j: int, number: int) -> None:
        stream, outcome = self.stream, self.outcome
        user, item, now = int(stream.u[j]), int(stream.i[j]), float(stream.t[j])
        if item in self.seen[user]:
            return
        cold = not self.touched[item]
        outcome.warm_events += not cold
        if not cold and not self.drawn[j]:
            return
        started = time.perf_counter()
        score_I = np.asarray(self.entrant.row(user, self.histories[user], now), np.float64)
        outcome.score_s += time.perf_counter() - started
        if score_I.shape != (stream.items,) or not np.isfinite(score_I).all():
            raise ValueError(f"Scores of shape {score_I.shape}, or some that are not finite.")
        outcome.event.append(j)
        outcome.user.append(user)
        outcome.cold.append(cold)
        outcome.phase.append(number)
        if cold and outcome.catalogue == "seen":
            outcome.rank.append(np.inf)
            return
        candidate_I = self.touched.copy() if outcome.catalogue == "seen" else self.touched | (stream.announced <= now)
        candidate_I[list(self.seen[user])] = False
        candidate_I[item] = True
        outcome.rank.append(_place(score_I, item, candidate_I))
        if cold:
            outcome.rank_among_cold.append(_place(score_I, item, candidate_I & ~self.touched))


def _place(score_I: Floats, item: int, candidate_I: NDArray[np.bool_]) -> float:
    """Rank, from 0, of an item among the candidates, of which it is one; ties share the mean of their places."""
    above = np.count_nonzero((score_I > score_I[item]) & candidate_I)
    same = np.count_nonzero((score_I == score_I[item]) & candidate_I)
    return above + (same - 1) / 2
