"""How well the oracle and plain methods foresee a simulated stream: what a run of Headwater is compared with.

All of them answer the same question, event by event in the order of the stream: among the items announced by then
that the user has not met, at which rank is the one that the user chooses next? Nothing of the event itself, or later,
is known to a method when it ranks (prequential evaluation; Dawid 1984).

Shape suffixes: B events of a block, I items announced by then, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streams.simulator import Simulator, Stream
from streams.simulator_world import Catalogue, Floats, Ints

HALF_LIVES: tuple[int, ...] = (500, 2_000, 10_000)
"""Half-lives, in events, of the decayed popularities."""
RECENT = 20
"""How many of a user's last chosen items the content methods read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """Ranks (from 1; ties count half) of the chosen items, for N events, by the name of the method."""

    number: Ints
    """Event numbers, (N,)."""
    earlier: Ints
    """Interactions that the chosen item had had before, (N,)."""
    by: dict[str, Floats]

    def ndcg(self, name: str, k: int = 20) -> float:
        """Mean of 1 / log2(1 + rank) where the rank is at most k, else 0 (Järvelin and Kekäläinen 2002)."""
        rank = self.by[name]
        return float(np.mean(np.where(rank <= k, 1 / np.log2(1 + rank), 0.0))) if len(rank) else float("nan")

    def recall(self, name: str, k: int = 20) -> float:
        """Share of events whose item is among the first k."""
        return float(np.mean(self.by[name] <= k)) if len(self.number) else float("nan")

    def best_decayed(self, k: int = 20) -> str:
        """Name of the decayed popularity with the highest NDCG@k."""
        return max((f"popularity_{h}" for h in HALF_LIVES), key=lambda name: self.ndcg(name, k))

    def only(self, keep: NDArray[np.bool_]) -> Ranks:
        """The events where `keep`, (N,), is true."""
        by = {name: rank[keep] for name, rank in self.by.items()}
        return Ranks(number=self.number[keep], earlier=self.earlier[keep], by=by)


def measure(
    simulator: Simulator, stream: Stream, *, first: int = 0, every: int = 1, linear: bool = True, size: int = 128
) -> Ranks:
    """Ranks of every chosen item from event number `first` on, of one block of `size` events in `every`.

    The methods: `oracle`; `popularity` and `popularity_H` (counts, whole and decayed with a half-life of H events);
    `content` (mean features of the user's last items); and with `linear` also `content_latent` (the same where features
    are mapped to the true latents by least squares) and `content_best` (those, and the user's true taste: no linear
    model of the features can know more of the user). Raises `ValueError` where no event is left to measure.
    """
    history = _History(simulator, linear=linear)
    parts: list[Ranks] = []
    for block, at in enumerate(range(0, len(stream), size)):
        rows = slice(at, min(at + size, len(stream)))
        if at >= first and block % every == 0:
            parts.append(history.ranks(stream, rows))
        history.learn(stream, rows)
    if not parts:
        raise ValueError("No event is left to measure; lower `first`, or simulate more events.")
    return Ranks(
        number=np.concatenate([p.number for p in parts]),
        earlier=np.concatenate([p.earlier for p in parts]),
        by={name: np.concatenate([p.by[name] for p in parts]) for name in parts[0].by},
    )


class _History:
    """What the methods have seen of the stream so far."""

    def __init__(self, simulator: Simulator, *, linear: bool) -> None:
        users, items = len(simulator.tastes), len(simulator.catalogue)
        self._simulator = simulator
        self._met = np.zeros((users, items), dtype=np.bool_)
        self._count = np.zeros(items)
        self._decayed = {half_life: np.zeros(items) for half_life in HALF_LIVES}
        self._recent = np.full((users, RECENT), -1, dtype=np.int64)
        self._turn = np.zeros(users, dtype=np.int64)
        self._features, self._mapped = _views(simulator.catalogue)
        self._linear = linear

    def ranks(self, stream: Stream, rows: slice) -> Ranks:
        """Ranks of the block's chosen items; users who occur twice in it are ranked as of its start."""
        number, user, item = stream.number[rows], stream.user[rows], stream.item[rows]
        announced = self._simulator.world.items_at(int(number[0]))
        chosen = stream.chosen[rows] & (item < announced) & ~self._met[user, item]
        met_BI = self._met[user][:, :announced][chosen]
        scores: dict[str, Floats] = {
            "oracle": self._simulator.oracle.utilities(int(number[0]), user).astype(np.float64)
        }
        scores |= self._popularity(number, item, announced)
        scores["content"] = self._profile(self._features, user) @ self._features[:announced].T
        if self._linear:
            mapped_ID = self._mapped[:announced]
            scores["content_latent"] = self._profile(self._mapped, user) @ mapped_ID.T
            scores["content_best"] = self._simulator.tastes.at(int(number[0]), user) @ mapped_ID.T
        by = {name: _ranks(score_BI[chosen], item[chosen], met_BI) for name, score_BI in scores.items()}
        return Ranks(number=number[chosen], earlier=self._count[item[chosen]].astype(np.int64), by=by)

    def learn(self, stream: Stream, rows: slice) -> None:
        """Takes the block's events into the history; a skip is met, but no sign of popularity or taste."""
        self._met[stream.user[rows], stream.item[rows]] = True
        chosen = stream.chosen[rows]
        number, user, item = (column[rows][chosen] for column in (stream.number, stream.user, stream.item))
        np.add.at(self._count, item, 1.0)
        for half_life, score in self._decayed.items():
            score *= 2.0 ** (-len(chosen) / half_life)
            end = int(stream.number[rows][-1]) + 1
            np.add.at(score, item, 2.0 ** ((number - end) / half_life))
        for u, i in zip(user.tolist(), item.tolist(), strict=True):
            self._recent[u, self._turn[u] % RECENT] = i
            self._turn[u] += 1

    def _popularity(self, number: Ints, item: Ints, announced: int) -> dict[str, Floats]:
        """Scores (B, I) that also count the block's own earlier events."""
        rows = np.arange(len(number))
        scores = {"popularity": self._count[:announced] + _earlier(rows, item, np.ones(len(rows)), announced)}
        for half_life, score in self._decayed.items():
            grown = 2.0 ** (rows / half_life)  # scores that grow instead of decaying compare alike
            scores[f"popularity_{half_life}"] = score[:announced] + _earlier(rows, item, grown, announced)
        return scores

    def _profile(self, view_IF: Floats, user: Ints) -> Floats:
        """Mean of the user's last items, (B, F); 0 for a user without any."""
        recent = self._recent[user]
        known = (recent >= 0)[:, :, None]
        return np.asarray((view_IF[recent] * known).sum(axis=1) / np.maximum(known.sum(axis=1), 1))


def _earlier(rows: Ints, item: Ints, weight: Floats, announced: int) -> Floats:
    """(B, I): what rows before each one add to each item."""
    added = np.zeros((len(rows) + 1, announced))
    inside = item < announced
    added[rows[inside] + 1, item[inside]] = weight[inside]
    return np.asarray(np.cumsum(added, axis=0)[:-1])


def _ranks(score_BI: Floats, item: Ints, met_BI: NDArray[np.bool_]) -> Floats:
    """Rank of each row's item among those not met; ties count half."""
    own = np.take_along_axis(score_BI, item[:, None], axis=1)
    above = np.count_nonzero((score_BI > own) & ~met_BI, axis=1)
    level = np.count_nonzero((score_BI == own) & ~met_BI, axis=1)
    return np.asarray(1 + above + (level - 1) / 2)


def _views(catalogue: Catalogue) -> tuple[Floats, Floats]:
    """All features side by side, standardised and of unit length, and their least-squares map to the latents."""
    columns: Sequence[NDArray[np.float64]] = [
        np.where(catalogue.absent[name][:, None], 0.0, (value - value.mean(axis=0)) / value.std(axis=0))
        for name, value in catalogue.features.items()
    ]
    features = np.concatenate(columns, axis=1)
    gram = features.T @ features + np.eye(features.shape[1])
    mapped = features @ np.linalg.solve(gram, features.T @ catalogue.latent)
    return features / np.linalg.norm(features, axis=1, keepdims=True), mapped
