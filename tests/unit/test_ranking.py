"""Ranking figures: by hand, and against a brute force that sorts."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models import ranking

FIGURES_AT_K = [ranking.recall_at_k, ranking.ndcg_at_k, ranking.map_at_k]


def test_ranks_by_hand() -> None:
    scores_BN = np.array([[0.1, 0.9, 0.5], [0.1, 0.9, 0.5], [7.0, 7.0, 7.0]])
    assert ranking.ranks(scores_BN, np.array([1, 0, 2])).tolist() == [0, 2, 1]
    assert ranking.ranks(torch.from_numpy(scores_BN), torch.tensor([2, 2, 2])).tolist() == [1, 1, 1]


def test_only_candidates_compete() -> None:
    scores_BN = np.array([[3.0, 2.0, 1.0, 2.0]])
    target_B = np.array([1])
    assert ranking.ranks(scores_BN, target_B).tolist() == [1.5]
    assert ranking.ranks(scores_BN, target_B, np.array([[False, True, True, True]])).tolist() == [0.5]
    assert ranking.ranks(scores_BN, target_B, np.array([[False, True, True, False]])).tolist() == [0]
    assert ranking.ranks(scores_BN, target_B, np.array([True, False, True, False])).tolist() == [1]


def test_nan_is_never_a_good_rank() -> None:
    scores_BN = torch.tensor([[math.nan, 1.0, 2.0], [0.0, math.nan, 2.0], [0.0, 1.0, math.nan], [math.inf, 1.0, 0.0]])
    rank_B = ranking.ranks(scores_BN, torch.tensor([0, 0, 1, 0]), torch.tensor([True, True, False]))
    assert np.array_equal(rank_B, [math.nan, math.nan, 0, 0], equal_nan=True)
    assert all(math.isnan(figure(rank_B, 2)) for figure in FIGURES_AT_K)
    assert math.isnan(ranking.mrr(rank_B))


def test_nothing_ranked_gives_nan() -> None:
    assert all(math.isnan(figure([], 5)) for figure in FIGURES_AT_K)
    assert math.isnan(ranking.mrr([]))
    assert math.isnan(ranking.rmse([], []))


def test_figures_by_hand() -> None:
    rank_B = [0.0, 2.0, 5.0]
    assert ranking.recall_at_k(rank_B, 3) == pytest.approx(2 / 3)
    assert ranking.ndcg_at_k(rank_B, 3) == pytest.approx((1 + 1 / 2) / 3)
    assert ranking.map_at_k(rank_B, 3) == pytest.approx((1 + 1 / 3) / 3)
    assert ranking.mrr(rank_B) == pytest.approx((1 + 1 / 3 + 1 / 6) / 3)
    assert ranking.gain(rank_B).tolist() == pytest.approx([1, 1 / 2, 1 / math.log2(7)])


def test_auc_log_loss_and_rmse_by_hand() -> None:
    assert ranking.auc([3, 2, 1], [True, False, False]) == 1
    assert ranking.auc([1, 2, 3], [True, False, False]) == 0
    assert ranking.auc([1, 1, 1], [True, False, False]) == 0.5
    assert math.isnan(ranking.auc([1, 2], [True, True]))
    assert math.isnan(ranking.auc([math.nan, 2], [True, False]))
    assert ranking.log_loss([0.0, 0.0], [True, False]) == pytest.approx(math.log(2))
    assert ranking.log_loss([1e5], [False]) == 1e5
    assert ranking.rmse([1, 2], [1, 4]) == pytest.approx(math.sqrt(2))


# few distinct scores, so that ties are common
ROWS = st.integers(1, 8).flatmap(
    lambda n: st.tuples(
        st.lists(st.lists(st.integers(0, 3), min_size=n, max_size=n), min_size=1, max_size=5),
        st.lists(st.booleans(), min_size=n, max_size=n),
        st.integers(0, n - 1),
    )
)


def places(row: list[int], kept: list[bool], target: int) -> list[int]:
    """All places the target may take when the candidates are sorted, its ties being broken in any way."""
    others = [score for n, score in enumerate(row) if kept[n] and n != target]
    ordered = sorted([*others, row[target]], reverse=True)
    return [place for place, score in enumerate(ordered) if score == row[target]]


@settings(deadline=None, max_examples=150)
@given(case=ROWS, k=st.integers(1, 9))
def test_ranks_and_figures_equal_sorting(case: tuple[list[list[int]], list[bool], int], k: int) -> None:
    rows, kept, target = case
    by_sorting = [float(np.mean(places(row, kept, target))) for row in rows]
    rank_B = ranking.ranks(torch.tensor(rows).float(), torch.full((len(rows),), target), torch.tensor(kept))
    assert rank_B.tolist() == by_sorting
    brute: dict[Callable[[NDArray[np.float64], int], float], list[float]] = {
        ranking.recall_at_k: [1.0 if r < k else 0.0 for r in by_sorting],
        ranking.ndcg_at_k: [1 / math.log2(r + 2) if r < k else 0.0 for r in by_sorting],
        ranking.map_at_k: [1 / (r + 1) if r < k else 0.0 for r in by_sorting],
    }
    for figure, values in brute.items():
        assert figure(rank_B, k) == pytest.approx(sum(values) / len(values))
    assert ranking.mrr(rank_B) == pytest.approx(sum(1 / (r + 1) for r in by_sorting) / len(rows))


@settings(deadline=None, max_examples=100)
@given(pairs=st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=20))
def test_auc_equals_counting_pairs(pairs: list[tuple[int, bool]]) -> None:
    positives = [s for s, positive in pairs if positive]
    negatives = [s for s, positive in pairs if not positive]
    auc = ranking.auc([s for s, _ in pairs], [p for _, p in pairs])
    if not positives or not negatives:
        assert math.isnan(auc)
        return
    won = sum((p > n) + (p == n) / 2 for p in positives for n in negatives)
    assert auc == pytest.approx(won / (len(positives) * len(negatives)))


@settings(deadline=None, max_examples=100)
@given(pairs=st.lists(st.tuples(st.floats(-20, 20), st.booleans()), min_size=1, max_size=10))
def test_log_loss_equals_its_definition(pairs: list[tuple[float, bool]]) -> None:
    by_hand = sum(-math.log(1 / (1 + math.exp(-s if positive else s))) for s, positive in pairs) / len(pairs)
    assert ranking.log_loss([s for s, _ in pairs], [p for _, p in pairs]) == pytest.approx(by_hand, rel=1e-6)
