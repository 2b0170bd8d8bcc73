"""Ranks of events before they are known: each with the user's history up to it, then observed.

Shape suffixes: B events, N items.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models import ranking
from models.memory import EventBatch
from models.overlay import Overlay

CHUNK = 128
"""Events ranked at once: what a poll brings. Histories are exact within it, popularity is as of its start."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Ranked:
    """One row for each event that was ranked, in order; repeats (the user had the item before) are not."""

    index: NDArray[np.int64]
    """Which events of the batch they are."""
    rank: Floats
    """Of the model, from 0; see `models.ranking.ranks`. NaN where its scores are."""
    popularity: Floats
    """Rank by the count of all time (half-life 100,000 events)."""
    decayed: Floats
    """Rank by the count of late (half-life 3,000 events)."""
    cold: NDArray[np.bool_]
    """Whether nobody had touched the item before."""
    user: list[str]


def rank_events(overlay: Overlay, batch: EventBatch, *, positive: NDArray[np.bool_] | None = None) -> Ranked:
    """Rank interactions in order of time among all items announced by then, without the user's own; observe them.

    `positive` says which are ranked (default: all); the others are observed only.
    """
    seen: dict[str, set[int]] = {}
    parts: list[tuple[list[int], Floats, Floats, Floats, NDArray[np.bool_]]] = []
    for start in range(0, len(batch), CHUNK):
        part = batch[start : start + CHUNK]
        counts = overlay.counts()
        first, newest, late = counts.first.copy(), counts.counts[:, -1].copy(), counts.counts[:, 4].copy()
        idle = np.where(counts.last >= 0, counts.position - counts.last, 0)
        newest, late = newest * 2.0 ** (-idle / 100_000), late * 2.0 ** (-idle / 3_000)
        for user in part.users:
            if user not in seen:
                seen[user] = set(overlay.seen(user).tolist())
        users_BV = overlay.vectors_before(part)
        rows = [overlay.item_index(item) for item in part.items]
        kept, hidden = [], []
        basket: dict[str, set[int]] = {}
        for at, (user, row) in enumerate(zip(part.users, rows, strict=True)):
            if row is None:
                continue
            if row not in seen[user] and (positive is None or positive[start + at]):
                kept.append(at)
                hidden.append(np.fromiter(seen[user], np.int64, len(seen[user])))
            seen[user].add(row)
        basket.clear()
        if not kept:
            continue
        target = np.array([rows[at] for at in kept], np.int64)
        scores = overlay.scores_of(users_BV[kept])
        size = scores.shape[1]
        candidates = overlay.announced()[None, :] <= part.times[kept][:, None]
        candidates[:, overlay.gone_rows] = False
        for line, own in enumerate(hidden):
            candidates[line, own] = False
        base = np.zeros((2, size))
        base[0, : len(newest)], base[1, : len(late)] = newest[:size], late[:size]
        ranks = [
            ranking.ranks(np.broadcast_to(table, scores.shape).copy(), target, candidates)
            for table in (base[0], base[1])
        ]
        known = np.full(size, -1)
        known[: len(first)] = first[:size]
        parts.append(
            ([start + at for at in kept], ranking.ranks(scores, target, candidates), *ranks, known[target] < 0)
        )
    index = [at for part in parts for at in part[0]]

    def column(place: int) -> NDArray[np.float64]:
        return np.concatenate([part[place] for part in parts]) if parts else np.empty(0)

    return Ranked(
        index=np.array(index, np.int64), rank=column(1), popularity=column(2), decayed=column(3),
        cold=column(4).astype(bool), user=[batch.users[at] for at in index],
    )  # fmt: skip
