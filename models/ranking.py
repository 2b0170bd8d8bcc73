"""How good an order is: ranks of withheld items and the figures made of them, and those of clicks and ratings.

Ranks count from 0, and an item tied with others takes the mean of the places they share, so that a constant scorer
earns what chance does. Where a score is NaN its rank is NaN, and so is every figure made of it: a broken model is
never a good one. An average over nothing is NaN.

Shape suffixes: B events, N items.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

Floats = NDArray[np.float64]


def ranks(
    scores_BN: Tensor | NDArray[np.floating],
    target_B: Tensor | NDArray[np.integer],
    candidates_BN: Tensor | NDArray[np.bool_] | None = None,
) -> Floats:
    """Rank of each target among the candidates: how many score more, plus half of the others that score the same; (B,).

    `candidates_BN` is a boolean mask, (N,) or (B, N); without it all N are candidates. The target always is one.
    """
    scores_BN, target_B1 = _array(scores_BN), _array(target_B).astype(np.int64)[:, None]
    own_B1 = np.take_along_axis(scores_BN, target_B1, axis=1)
    above_BN, same_BN = scores_BN > own_B1, scores_BN == own_B1
    candidates = None if candidates_BN is None else _array(candidates_BN)
    if candidates is not None:
        above_BN &= candidates
        same_BN &= candidates
    np.put_along_axis(same_BN, target_B1, True, axis=1)  # itself, also where it is no candidate
    rank_B: Floats = np.count_nonzero(above_BN, axis=1) + (np.count_nonzero(same_BN, axis=1) - 1) / 2
    if np.isnan(scores_BN.sum()):  # so that they are looked through only where there may be one
        broken_BN = np.isnan(scores_BN) if candidates is None else np.isnan(scores_BN) & candidates
        rank_B[broken_BN.any(axis=1) | np.isnan(own_B1[:, 0])] = np.nan
    return rank_B


def _array(of: Tensor | NDArray[Any]) -> NDArray[Any]:
    return of.cpu().numpy() if isinstance(of, Tensor) else of


def gain(rank_B: ArrayLike) -> Floats:
    """1 / log₂(2 + rank), (B,): each event's untruncated NDCG with one relevant item (Järvelin & Kekäläinen, 2002)."""
    return np.asarray(1 / np.log2(2 + np.asarray(rank_B, np.float64)))


def recall_at_k(rank_B: ArrayLike, k: int) -> float:
    """Share of events whose item is among the first k."""
    return _mean(_up_to(rank_B, k, np.ones_like(np.asarray(rank_B, np.float64))))


def ndcg_at_k(rank_B: ArrayLike, k: int) -> float:
    """Mean of 1 / log₂(2 + rank) within the first k, else 0; the ideal list of one relevant item has gain 1."""
    return _mean(_up_to(rank_B, k, gain(rank_B)))


def mrr(rank_B: ArrayLike) -> float:
    """Mean reciprocal rank: mean of 1 / (1 + rank) (Voorhees, "The TREC-8 question answering track report", 1999)."""
    return _mean(1 / (1 + np.asarray(rank_B, np.float64)))


def map_at_k(rank_B: ArrayLike, k: int) -> float:
    """Mean average precision within the first k: an event has one relevant item, of precision 1 / (1 + rank)."""
    return _mean(_up_to(rank_B, k, 1 / (1 + np.asarray(rank_B, np.float64))))


def auc(scores_B: ArrayLike, positive_B: ArrayLike) -> float:
    """Probability that a positive scores above a negative, ties counting half (Mann & Whitney, 1947).

    NaN unless there are both kinds.
    """
    score_B = np.asarray(scores_B, np.float64)
    is_positive_B = np.asarray(positive_B, bool)
    positives = int(is_positive_B.sum())
    negatives = len(score_B) - positives
    if positives == 0 or negatives == 0 or np.isnan(score_B).any():
        return float("nan")
    _, place_B, count = np.unique(score_B, return_inverse=True, return_counts=True)
    # the mean place, from 1, of each group of equal scores
    mean_place = np.cumsum(count) - (count - 1) / 2
    rank_sum = mean_place[place_B][is_positive_B].sum()
    return float((rank_sum - positives * (positives + 1) / 2) / (positives * negatives))


def log_likelihood(logit_B: ArrayLike, positive_B: ArrayLike) -> Floats:
    """log σ(s) of a positive and log(1 − σ(s)) of the others, computed stably; (B,), at most 0."""
    logit = np.asarray(logit_B, np.float64)
    return np.asarray(-np.logaddexp(0, np.where(np.asarray(positive_B, bool), -logit, logit)))


def log_loss(logit_B: ArrayLike, positive_B: ArrayLike) -> float:
    """Mean of −log-likelihood of the labels under σ(logit)."""
    return -_mean(log_likelihood(logit_B, positive_B))


def rmse(predicted_B: ArrayLike, value_B: ArrayLike) -> float:
    """√ mean (ŷ − y)²."""
    error_B = np.asarray(predicted_B, np.float64) - np.asarray(value_B, np.float64)
    return float(np.sqrt(_mean(error_B**2)))


def _up_to(rank_B: ArrayLike, k: int, value_B: Floats) -> Floats:
    rank = np.asarray(rank_B, np.float64)
    return np.where(np.isnan(rank), np.nan, np.where(rank < k, value_B, 0.0))


def _mean(value_B: Floats) -> float:
    return float(value_B.mean()) if len(value_B) else float("nan")
