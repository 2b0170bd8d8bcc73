"""How well a snapshot predicts events it has not learned from: one figure an event, higher is better.

Each event is seen with its user's history of strictly earlier times, and with popularity as of the first of them, which
no event of the window has touched. Snapshots are compared on equal terms when they are built with the same `upto`.

Shape suffixes: B events, N items.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.event_log import LogView
from models.histories import Histories
from models.popularity import HALF_LIVES
from models.ranking import gain, log_likelihood, ranks
from models.serving import Snapshot

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

CHUNK = 256
"""Events scored at once: with ten thousand items, ten megabytes of scores."""
DECAYED = HALF_LIVES.index(3_000.0)
"""The half-life of decayed popularity as a yardstick, in events."""


@dataclass(frozen=True)
class HeldOut:
    """Positions in the log that are worth predicting under the snapshots' objective, and what each yardstick needs
    of them."""

    positions: Ints
    """Ascending; for `ranking` positives whose user had not had the item."""
    before: list[Ints]
    """Item rows that the user of each had before, -1 of forgotten ones; only for `ranking`."""

    @classmethod
    def of(cls, log: LogView, objective: str, positions: Ints) -> HeldOut:
        """Those of `positions` that can be judged under this objective."""
        there = (log.user[positions] >= 0) & (log.item[positions] >= 0)
        if objective == "rating":
            there &= np.isfinite(log.value[positions])
        elif objective == "click":
            there &= log.weight[positions] != 0
        else:
            there &= log.weight[positions] > 0
            known = positions[there]
            before = log.items_before(known)
            new = [item not in items for item, items in zip(log.item[known], before, strict=True)]
            return cls(known[new], [items for items, kept in zip(before, new, strict=True) if kept])
        return cls(positions[there], [])

    def users(self, snapshot: Snapshot) -> Ints:
        """Whose event each is, (B,)."""
        return snapshot.log.user[self.positions].astype(np.int64)

    def by_model(self, snapshot: Snapshot) -> Floats:
        """Gain of the snapshot's own scores, (B,)."""
        return self._by_vectors(snapshot, False)[0]

    def whole_and_learned(self, snapshot: Snapshot) -> tuple[Floats, Floats | None]:
        """The same; for rankings also the gain of what its weights have learned alone, without what calibration makes
        of it and without likeness, vintage, co-occurrence and factors, which are computed: None where it has none of
        these."""
        if snapshot.spec.objective != "ranking" or not snapshot.spec.alike_dim:
            return self.by_model(snapshot), None
        whole, learned = self._by_vectors(snapshot, False, True)
        return whole, learned

    def _by_vectors(self, snapshot: Snapshot, *learned_alone: bool) -> list[Floats]:
        """Gain of the scores of its vectors, or of those of what its weights have learned alone, (B,) each."""
        parts: list[list[Floats]] = [[np.empty(0)] for _ in learned_alone]
        log = snapshot.log
        for at in _chunks(self.positions):
            histories = Histories.from_log(
                log, log.before[at], snapshot.spec.events_read, until_B=log.time[at], now_B=at
            )
            users = log.user[at].astype(np.int64)
            for alone, part in zip(learned_alone, parts, strict=True):
                users_BV = snapshot.user_matrix(histories, users, learned_alone=alone)
                items_NV = snapshot.learned_vectors if alone else snapshot.vectors_NV
                scores_BN = snapshot.scores(users_BV, items_NV)
                part.append(self._of_scores(snapshot, at, scores_BN))
        return [np.concatenate(part) for part in parts]

    def by_popularity(self, snapshot: Snapshot, half_life: int) -> Floats:
        """Gain of ranking by the counts with `HALF_LIVES[half_life]`; for ratings and clicks, of the mean alone."""
        if snapshot.spec.objective != "ranking":
            return self._of_mean(snapshot)
        counts = snapshot.popularity.counts_now(half_life)
        parts = [self._of_scores(snapshot, at, np.tile(counts, (len(at), 1))) for at in _chunks(self.positions)]
        return np.concatenate(parts) if parts else np.empty(0)

    def _of_scores(self, snapshot: Snapshot, at_B: Ints, scores_BN: NDArray[np.float32]) -> Floats:
        log = snapshot.log
        item_B = log.item[at_B].astype(np.int64)
        objective = snapshot.spec.objective
        if objective == "ranking":
            candidates_BN = snapshot.announced[None, :] <= log.time[at_B][:, None]
            start = int(np.searchsorted(self.positions, at_B[0]))
            for row in range(len(at_B)):
                had = self.before[start + row]
                candidates_BN[row, had[had >= 0]] = False
            candidates_BN[np.arange(len(at_B)), item_B] = True
            return gain(ranks(scores_BN, item_B, candidates_BN))
        score_B = scores_BN[np.arange(len(at_B)), item_B].astype(np.float64)
        if objective == "rating":
            return -((score_B - log.value[at_B]) ** 2)
        return log_likelihood(score_B, log.weight[at_B] > 0)

    def _of_mean(self, snapshot: Snapshot) -> Floats:
        log = snapshot.log
        if snapshot.spec.objective == "rating":
            return -((log.value[self.positions].astype(np.float64) - snapshot.values.mean) ** 2)
        seen = log.weight[: self.positions[0]] if len(self.positions) else log.weight[:0]
        rate = float(np.clip((seen > 0).mean() if len(seen) else 0.5, 1e-3, 1 - 1e-3))
        logit = np.full(len(self.positions), np.log(rate / (1 - rate)))
        return log_likelihood(logit, log.weight[self.positions] > 0)


def _chunks(positions: Ints) -> Iterator[Ints]:
    for start in range(0, len(positions), CHUNK):
        yield positions[start : start + CHUNK]
