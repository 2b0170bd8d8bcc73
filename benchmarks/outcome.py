"""What a walk through a stream has measured of one entrant."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from models.ranking import ndcg_at_k, recall_at_k, rmse

Catalogue = Literal["seen", "announced"]
RESAMPLES = 2_000
"""Bootstrap samples of an interval."""


@dataclass(kw_only=True)
class Outcome:
    """Ranks, from 0, of the ranked events, and what else is told of a run.

    Cold events are those of items that nobody had touched. All of them are ranked, but perhaps only a share of the
    others: means over all events weigh the two by how many there were.
    """

    k: int
    catalogue: Catalogue
    events: int
    warm_events: int = 0
    """Events of touched items that could have been ranked."""
    event: list[int] = field(default_factory=list)
    """Number of each ranked event …"""
    user: list[int] = field(default_factory=list)
    """… and whose it is."""
    rank: list[float] = field(default_factory=list)
    """Infinite for a miss."""
    cold: list[bool] = field(default_factory=list)
    rank_among_cold: list[float] = field(default_factory=list)
    """Of the cold events, the rank among the announced items that nobody had touched."""
    phase: list[int] = field(default_factory=list)
    """Phase of each ranked event, from 1 after the warm-up."""
    predicted: list[float] = field(default_factory=list)
    value: list[float] = field(default_factory=list)
    learn_s: float = 0.0
    score_s: float = 0.0

    def figures(self) -> dict[str, float]:
        """Means over the events; what was not measured is left out."""
        found: dict[str, float] = {}
        if self.rank:
            rank, cold = np.array(self.rank), np.array(self.cold)
            warm, new = rank[~cold], rank[cold]
            share = len(new) / (len(new) + self.warm_events)
            parts = [(1 - share, warm), (share, new)] if len(new) and len(warm) else [(1.0, rank)]
            recalls = [recall_at_k(part, self.k) for _, part in parts]
            found = {
                "recall": sum(weight * recall for (weight, _), recall in zip(parts, recalls, strict=True)),
                "recall_se": float(np.sqrt(sum(
                    weight**2 * recall * (1 - recall) / len(part)
                    for (weight, part), recall in zip(parts, recalls, strict=True)
                ))),
                "ndcg": sum(weight * ndcg_at_k(part, self.k) for weight, part in parts),
                "ranked": len(rank),
                "cold_events": len(new),
            }  # fmt: skip
            if len(warm):
                found["warm_recall"] = recall_at_k(warm, self.k)
            if len(new):
                found["cold_recall"] = recall_at_k(new, self.k)
            if self.rank_among_cold:
                found["cold_among_cold"] = recall_at_k(np.array(self.rank_among_cold), self.k)
        if self.value:
            found |= {"rmse": rmse(self.predicted, self.value), "rated": len(self.value)}
        return found | {
            "learn_events_per_s": self.events / max(self.learn_s, 1e-9),
            "learn_s": self.learn_s,
            "score_s": self.score_s,
        }

    def intervals(self) -> dict[str, tuple[float, float]]:
        """The 95 % intervals of recall on touched items, on new ones, and of new ones among new ones.

        Percentiles of the bootstrap (Efron & Tibshirani, "An introduction to the bootstrap", 1993) over users, for what
        one user does is not independent; what was not measured is left out.
        """
        rank, user, cold = np.array(self.rank), np.array(self.user, np.int64), np.array(self.cold, bool)
        parts = {"warm_recall": (rank[~cold], user[~cold]), "cold_recall": (rank[cold], user[cold])}
        if self.rank_among_cold:
            parts["cold_among_cold"] = (np.array(self.rank_among_cold), user[cold])
        return {name: _interval(ranks < self.k, users) for name, (ranks, users) in parts.items() if len(ranks)}

    def recall_by_phase(self) -> list[float]:
        """Recall of each phase, in order; NaN where nothing was ranked. Warm events stand for those not ranked too."""
        hit, cold, phase = np.array(self.rank) < self.k, np.array(self.cold, bool), np.array(self.phase, np.int64)
        weight = np.where(cold, 1.0, self.warm_events / max(1, int((~cold).sum())))
        hits, events = (np.bincount(phase, weights=part)[1:] for part in (weight * hit, weight))
        return [float(one / all_) if all_ else math.nan for one, all_ in zip(hits, events, strict=True)]

    def beside(self, whole: Outcome) -> dict[str, float]:
        """Recall and NDCG as those of `whole`, who was ranked on all events, and the mean change on the same ones.

        The difference estimator (Cochran, "Sampling techniques", 1977, section 7.7). `warm_change` and `cold_change`
        are the changes of recall, each with its standard error; `recall_se` is that of the whole change.
        """
        found, theirs = whole.figures(), whole._places()
        cold_share = found["cold_events"] / (found["cold_events"] + whole.warm_events)
        changed: dict[str, float] = {"recall": found["recall"], "ndcg": found["ndcg"]}
        variance = 0.0
        for name, cold, weight in (("warm", False, 1 - cold_share), ("cold", True, cold_share)):
            events = [at for at, is_cold in enumerate(self.cold) if is_cold == cold and self.event[at] in theirs]
            if len(events) < 2:
                continue
            ours_B = np.array([self.rank[at] for at in events])
            theirs_B = np.array([theirs[self.event[at]] for at in events])
            hit_B = (ours_B < self.k).astype(float) - (theirs_B < self.k)
            changed[f"{name}_change"] = float(hit_B.mean())
            changed[f"{name}_change_se"] = float(hit_B.std(ddof=1) / np.sqrt(len(hit_B)))
            changed[f"{name}_recall"] = found[f"{name}_recall"] + changed[f"{name}_change"]
            changed["recall"] += weight * changed[f"{name}_change"]
            changed["ndcg"] += weight * (ndcg_at_k(ours_B, self.k) - ndcg_at_k(theirs_B, self.k))
            variance += (weight * changed[f"{name}_change_se"]) ** 2
        return changed | {"recall_se": float(np.sqrt(variance))}

    def _places(self) -> dict[int, float]:
        return dict(zip(self.event, self.rank, strict=True))


def _interval(hit: ArrayLike, user: ArrayLike) -> tuple[float, float]:
    """Of the share of hits among the events of these users, all of a user's drawn together."""
    _, number = np.unique(user, return_inverse=True)
    sums_2U = np.stack([np.bincount(number, weights=hit), np.bincount(number)])
    users = sums_2U.shape[1]
    draws_RU = np.random.default_rng(0).multinomial(users, np.full(users, 1 / users), RESAMPLES)
    hits, events = sums_2U @ draws_RU.T
    low, high = np.percentile(hits / events, (2.5, 97.5))
    return float(low), float(high)
