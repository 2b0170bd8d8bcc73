"""Losses: each formula against the same written out, and what weights and masks do."""

import math

import pytest
import torch

from models import losses


def scores(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_softmax_ranking_is_the_mean_log_probability_of_the_target() -> None:
    scores_BN, target_B = scores(4, 6), torch.tensor([0, 5, 2, 2])
    by_hand = -sum(
        math.log(math.exp(row[t]) / sum(map(math.exp, row)))
        for row, t in zip(scores_BN.tolist(), target_B.tolist(), strict=True)
    )
    assert losses.softmax_ranking(scores_BN, target_B).item() == pytest.approx(by_hand / 4)


def test_softmax_ranking_leaves_out_what_is_not_allowed_but_never_the_target() -> None:
    scores_BN, target_B = scores(2, 4), torch.tensor([0, 3])
    allowed_N = torch.tensor([True, True, False, False])
    kept_BN = [[0, 1], [0, 1, 3]]
    by_hand = 0.0
    for row, kept, t in zip(scores_BN.tolist(), kept_BN, target_B.tolist(), strict=True):
        by_hand -= math.log(math.exp(row[t]) / sum(math.exp(row[n]) for n in kept)) / 2
    assert losses.softmax_ranking(scores_BN, target_B, allowed_N).item() == pytest.approx(by_hand)
    assert losses.softmax_ranking(scores_BN, target_B, allowed_N.repeat(2, 1)).item() == pytest.approx(by_hand)
    assert allowed_N.tolist() == [True, True, False, False]


def test_a_score_that_is_not_allowed_gets_no_gradient() -> None:
    scores_BN = scores(2, 4).requires_grad_()
    torch.autograd.backward(
        losses.softmax_ranking(scores_BN, torch.tensor([0, 1]), torch.tensor([True, True, True, False]))
    )
    assert scores_BN.grad is not None
    assert (scores_BN.grad[:, 3] == 0).all()
    assert scores_BN.grad.isfinite().all()


def test_sampled_softmax_over_all_others_equals_the_full_one() -> None:
    scores_BN, target_B = scores(3, 5), torch.tensor([0, 4, 2])
    positive_B = scores_BN.gather(1, target_B.unsqueeze(1)).squeeze(1)
    is_target_BN = torch.arange(5) == target_B.unsqueeze(1)
    sampled = losses.sampled_softmax(positive_B, scores_BN, false_negative_BN=is_target_BN)
    torch.testing.assert_close(sampled, losses.softmax_ranking(scores_BN, target_B))


def test_log_q_makes_the_sampled_partition_function_unbiased() -> None:
    """E_q[Σ exp(s − log expected count)] is the full Σ exp(s), however unlike the weights the sampling is."""
    score_N = scores(8)
    q_N = torch.softmax(scores(8, seed=1), dim=0)
    drawn = torch.multinomial(q_N, 200_000, replacement=True, generator=torch.Generator().manual_seed(2))
    log_count = (q_N[drawn] * len(drawn)).log()
    loss = losses.sampled_softmax(score_N[:1], score_N[drawn].unsqueeze(0), negative_log_q=log_count)
    full = torch.log(score_N[0].exp() + score_N.exp().sum()) - score_N[0]
    assert loss.item() == pytest.approx(full.item(), rel=0.01)


def test_sampled_softmax_corrects_both_sides_by_hand() -> None:
    loss = losses.sampled_softmax(
        torch.tensor([1.0]), torch.tensor([[2.0, 3.0]]), positive_log_q=0.5, negative_log_q=torch.tensor([[1.0, 2.5]])
    )
    own, others = math.exp(0.5), math.exp(1.0) + math.exp(0.5)
    assert loss.item() == pytest.approx(-math.log(own / (own + others)))


def test_sampled_softmax_without_negatives_left_is_0() -> None:
    positive_B = torch.tensor([1.0], requires_grad=True)
    loss = losses.sampled_softmax(positive_B, torch.ones(1, 2), false_negative_BN=torch.ones(1, 2, dtype=torch.bool))
    torch.autograd.backward(loss)
    assert loss.item() == 0
    assert positive_B.grad is not None
    assert positive_B.grad.isfinite().all()


def test_mse_and_bce_by_hand() -> None:
    assert losses.mse(torch.tensor([1.0, 4.0]), torch.tensor([3.0, 3.0])).item() == 2.5
    by_hand = -(math.log(1 / (1 + math.exp(-2))) + math.log(1 - 1 / (1 + math.exp(-1)))) / 2
    assert losses.bce(torch.tensor([2.0, 1.0]), torch.tensor([1.0, 0.0])).item() == pytest.approx(by_hand)
    assert losses.bce(torch.tensor([1e4, -1e4]), torch.tensor([1.0, 0.0])).item() == 0


def test_weights_average_and_all_zero_weights_give_0() -> None:
    predicted_B = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    value_B = torch.zeros(3)
    assert losses.mse(predicted_B, value_B, weights=torch.tensor([1.0, 0.0, 3.0])).item() == pytest.approx(28 / 4)
    nothing = losses.mse(predicted_B, value_B, weights=torch.zeros(3))
    torch.autograd.backward(nothing)
    assert nothing.item() == 0
    assert predicted_B.grad is not None
    assert predicted_B.grad.isfinite().all()
    assert losses.mse(torch.empty(0), torch.empty(0)).item() == 0


def test_equal_weights_change_no_loss() -> None:
    scores_BN, target_B = scores(4, 6), torch.tensor([0, 5, 2, 2])
    same_B = torch.full((4,), 0.3, dtype=torch.float64)
    torch.testing.assert_close(
        losses.softmax_ranking(scores_BN, target_B, weights=same_B), losses.softmax_ranking(scores_BN, target_B)
    )
    torch.testing.assert_close(
        losses.sampled_softmax(scores_BN[:, 0], scores_BN, weights=same_B),
        losses.sampled_softmax(scores_BN[:, 0], scores_BN),
    )
