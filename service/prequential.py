"""Test-then-train evaluation: a snapshot ranks a phase's events as they come, each with what was known just before it.

The walk is what serving does: an overlay observes events and recommends from it. Events of one timestamp are one
basket: none is known while the others are ranked. Repeats (the user had the item before) are not ranked; candidates are
all items announced by then.

Shape suffixes: B events, N items, V length of published vectors.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from models.heldout import DECAYED
from models.memory import EventBatch
from models.overlay import Overlay
from models.popularity import HALF_LIVES
from models.ranking import auc, log_loss, map_at_k, mrr, ndcg_at_k, ranks, recall_at_k, rmse
from models.serving import Snapshot
from service.arrivals import Arrival
from streams.events import Item, User

CHUNK = 128
"""Events ranked at once, as a poll brings them: histories are exact within a chunk, item popularity is as of its
start."""

Floats = NDArray[np.float64]


@dataclass
class Measured:
    """Ranks, from 0, of the events that were ranked, and scores of those that were predicted."""

    rank: list[float] = field(default_factory=list)
    popularity: list[float] = field(default_factory=list)
    decayed_popularity: list[float] = field(default_factory=list)
    cold: list[bool] = field(default_factory=list)
    """Whether nobody had touched the item."""
    score: list[float] = field(default_factory=list)
    value: list[float] = field(default_factory=list)
    positive: list[bool] = field(default_factory=list)

    def metrics(self, *, k: int, objective: str) -> dict[str, float]:
        """Means over the events; empty for none."""
        found = self._ranking(k) if self.rank else {}
        if self.score and objective == "rating":
            score, value = np.array(self.score), np.array(self.value)
            valued = np.isfinite(value)
            found |= {"predicted": float(valued.sum()), "rmse": rmse(score[valued], value[valued])}
        elif self.score:
            score, positive = np.array(self.score), np.array(self.positive)
            found |= {"predicted": float(len(score)), "log_loss": log_loss(score, positive)}
            if positive.any() and not positive.all():
                found["auc"] = auc(score, positive)
        return {name: value for name, value in found.items() if np.isfinite(value)}

    def _ranking(self, k: int) -> dict[str, float]:
        rank, cold = np.array(self.rank), np.array(self.cold)
        found = {
            "ranked": float(len(rank)),
            f"recall_at_{k}": recall_at_k(rank, k),
            f"ndcg_at_{k}": ndcg_at_k(rank, k),
            f"map_at_{k}": map_at_k(rank, k),
            "mrr": mrr(rank),
            "cold_events": float(cold.sum()),
        }
        if cold.any():
            found[f"cold_recall_at_{k}"] = recall_at_k(rank[cold], k)
        for name, popular in (("popularity", self.popularity), ("decayed_popularity", self.decayed_popularity)):
            found[f"{name}_recall_at_{k}"] = recall_at_k(np.array(popular), k)
            found[f"{name}_ndcg_at_{k}"] = ndcg_at_k(np.array(popular), k)
        return found


def measure(
    snapshot: Snapshot,
    batch: EventBatch,
    *,
    content: Sequence[Arrival] = (),
    k: int,
    most: int,
    seed: tuple[int, ...] = (0,),
    chunk: int = CHUNK,
) -> dict[str, float]:
    """Figures of `snapshot` on a phase's events in order of time, all of them or a seeded uniform sample of `most`.

    `content` are the phase's item and user events; each counts from its own time on. With `chunk` 1 popularity too is
    as of each basket's start.
    """
    if snapshot.n_items == 0 or not len(batch):
        return {}
    overlay = Overlay(snapshot)
    announcements = deque(sorted(content, key=lambda arrival: arrival.time))
    chosen = np.ones(len(batch), bool)
    if len(batch) > most:
        chosen[:] = False
        chosen[np.random.default_rng(seed).choice(len(batch), most, replace=False)] = True
    weights = [snapshot.weights.get(action, snapshot.weights.get("default", 1.0)) for action in batch.actions]
    positive = np.array(weights) > 0
    measured = Measured()
    seen: dict[str, set[int]] = {}
    for start, stop in _chunks(batch.times, chunk):
        part, span = batch[start:stop], slice(start, stop)
        while announcements and announcements[0].time <= part.times[-1]:
            _tell(overlay, announcements.popleft())
        if not chosen[span].any():
            overlay.observe(part)
            seen.clear()
        elif snapshot.spec.objective == "ranking":
            _rank(overlay, part, chosen[span] & positive[span], seen, measured)
        else:
            _predict(overlay, part, chosen[span], positive[span], measured)
    return {**measured.metrics(k=k, objective=snapshot.spec.objective), "sampled": float(chosen.sum())}


def _chunks(times: Floats, size: int) -> Iterator[tuple[int, int]]:
    """Spans of at least `size` events that part no basket."""
    start = 0
    while start < len(times):
        stop = min(start + size, len(times))
        stop = int(np.searchsorted(times, times[stop - 1], side="right"))
        yield start, stop
        start = stop


def _rank(
    overlay: Overlay, part: EventBatch, chosen: NDArray[np.bool_], seen: dict[str, set[int]], measured: Measured
) -> None:
    """Ranks the chosen events and lets the overlay observe all; `seen` are the item rows that each user had by then."""
    rows = [overlay.item_index(item) for item in part.items]
    for user in part.users:
        if user not in seen:
            seen[user] = set(overlay.seen(user).tolist())
    popularity = overlay.counts()
    cold = [row is None or popularity.first[row] < 0 for row in rows]
    columns = (len(HALF_LIVES) - 1, DECAYED)
    counts = [popularity.counts_now(column) for column in columns]
    announced, items_NV = overlay.announced(), overlay.published_vectors()
    users_BV = overlay.vectors_before(part)  # from here on the overlay knows these events
    n = len(items_NV)
    kept, hidden, known = [], [], []
    touched: set[int | None] = set()
    basket: set[int | None] = set()
    for at, (user, row) in enumerate(zip(part.users, rows, strict=True)):
        if at and part.times[at] > part.times[at - 1]:
            touched |= basket
            basket.clear()
        if chosen[at] and (row is None or row not in seen[user]):
            kept.append(at)
            hidden.append([other for other in seen[user] if other < n])
            known.append(not cold[at] or row in touched)
        if row is not None:
            seen[user].add(row)
            basket.add(row)
    if not kept:
        return
    candidates_BN = announced[None, :n] <= part.times[kept][:, None]
    for line, own in enumerate(hidden):
        candidates_BN[line, own] = False
    # An item that nobody has told us of is a miss, whatever the scores.
    misses = candidates_BN.sum(1).astype(float)
    there = np.array([rows[at] is not None and rows[at] < n for at in kept])  # type: ignore[operator]
    target_B = np.array([rows[at] for at in np.array(kept)[there]], np.int64)
    candidates_BN = candidates_BN[there]
    candidates_BN[np.arange(len(target_B)), target_B] = True
    scores_BN = overlay.snapshot.scores(users_BV[np.array(kept)[there]], items_NV)
    for places, table_BN in (
        (measured.rank, scores_BN),
        (measured.popularity, np.tile(counts[0][:n], (len(target_B), 1))),
        (measured.decayed_popularity, np.tile(counts[1][:n], (len(target_B), 1))),
    ):
        rank_B = misses.copy()
        rank_B[there] = ranks(table_BN, target_B, candidates_BN)
        places.extend(rank_B.tolist())
    measured.cold.extend(not one for one in known)


def _predict(
    overlay: Overlay, part: EventBatch, chosen: NDArray[np.bool_], positive: NDArray[np.bool_], measured: Measured
) -> None:
    rows = [overlay.item_index(item) for item in part.items]
    items_NV = overlay.published_vectors()
    users_BV = overlay.vectors_before(part)
    rating = overlay.snapshot.spec.objective == "rating"
    for at, row in enumerate(rows):
        if not chosen[at] or (row is None and not rating):
            continue
        if row is None or row >= len(items_NV):
            # Of an item that nobody told us of, only the user's own mean is known: the last of a vector for ratings.
            score = float(users_BV[at, -1])
        else:
            score = float(overlay.snapshot.scores(users_BV[at : at + 1], items_NV[row : row + 1])[0, 0])
        measured.score.append(score)
        measured.value.append(float(part.values[at]))
        measured.positive.append(bool(positive[at]))


def _tell(overlay: Overlay, arrival: Arrival) -> None:
    """Lets an overlay know of an item or user event; a deletion takes effect with the phase, after it is measured."""
    event = arrival.event
    if isinstance(event, Item) and not event.deleted:
        overlay.announce(event.item_id, arrival.time, event.features, event.attributes)
    elif isinstance(event, User) and not event.deleted:
        overlay.enrol(event.user_id, arrival.time, event.features)
