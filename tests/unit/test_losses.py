"""Losses: each formula against the same written out, and what weights and masks do."""

import math

import pytest
import torch

from models import losses
from models.alignment import ALIGNMENTS, alignment
from models.spec import Alignment


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


def unit(rows: torch.Tensor) -> list[list[float]]:
    normed: list[list[float]] = (rows / rows.norm(dim=1, keepdim=True)).tolist()
    return normed


def cosine_table(a_BD: torch.Tensor, b_BD: torch.Tensor) -> list[list[float]]:
    return [[sum(x * y for x, y in zip(a, b, strict=True)) for b in unit(b_BD)] for a in unit(a_BD)]


def test_info_nce_by_hand_both_ways() -> None:
    a_BD, b_BD = scores(3, 4), scores(3, 4, seed=1)
    table, loss = cosine_table(a_BD, b_BD), 0.0
    for i in range(3):
        for row in (table[i], [other[i] for other in table]):
            loss -= math.log(math.exp(row[i] / 0.5) / sum(math.exp(one / 0.5) for one in row)) / 6
    assert losses.info_nce(a_BD, b_BD, temperature=0.5).item() == pytest.approx(loss)


def test_margin_cosine_is_torchs_own_over_all_pairs() -> None:
    a_BD, b_BD = scores(4, 3), scores(4, 3, seed=1)
    own = torch.nn.functional.cosine_embedding_loss(a_BD, b_BD, torch.ones(4))
    pairs = [(i, j) for i in range(4) for j in range(4) if i != j]
    first, second = (list(places) for places in zip(*pairs, strict=True))
    others = torch.nn.functional.cosine_embedding_loss(a_BD[first], b_BD[second], -torch.ones(12), margin=0.1)
    torch.testing.assert_close(losses.margin_cosine(a_BD, b_BD, margin=0.1), own + others)


def test_triplet_by_hand_both_ways() -> None:
    a_BD, b_BD = scores(3, 4), scores(3, 4, seed=1)
    table, loss = cosine_table(a_BD, b_BD), 0.0
    for i in range(3):
        for j in range(3):
            if i != j:
                loss += max(0, 0.3 - table[i][i] + table[i][j]) / 12 + max(0, 0.3 - table[i][i] + table[j][i]) / 12
    assert losses.triplet(a_BD, b_BD, margin=0.3).item() == pytest.approx(loss)


@pytest.mark.parametrize("kind", sorted(ALIGNMENTS))
def test_alignments_are_least_where_partners_agree_and_all_others_differ(kind: Alignment) -> None:
    loss = ALIGNMENTS[kind]
    apart_BD = torch.eye(4)
    assert loss(apart_BD, 3 * apart_BD).item() == pytest.approx(0, abs=1e-5)
    assert loss(apart_BD, apart_BD.roll(1, 0)).item() > 0.5
    assert loss(torch.zeros(2, 4), torch.zeros(2, 4)).isfinite()


def test_alignment_takes_only_items_that_have_both_and_averages_over_pairs_of_modalities() -> None:
    x_BMD = scores(5, 3, 4).requires_grad_()
    mask_BM = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [0, 1, 1], [1, 1, 0]], dtype=torch.bool)
    weights: dict[Alignment, float] = {"cosine": 2.0, "infonce": 0.5}
    loss = alignment(x_BMD, mask_BM, weights)
    both = {(0, 1): [0, 1, 4], (1, 2): [0, 3]}  # the third pair is had by one item only
    by_hand = torch.zeros((), dtype=x_BMD.dtype)
    for (one, other), rows in both.items():
        a_BD, b_BD = x_BMD[rows, one], x_BMD[rows, other]
        by_hand = by_hand + (2 * losses.margin_cosine(a_BD, b_BD) + 0.5 * losses.info_nce(a_BD, b_BD)) / 2
    torch.testing.assert_close(loss, by_hand)
    torch.autograd.backward(loss)
    assert x_BMD.grad is not None
    assert ((x_BMD.grad.abs().sum(-1) > 0) == (mask_BM & (mask_BM.sum(1, keepdim=True) > 1))).all()
    assert alignment(x_BMD, torch.zeros_like(mask_BM), weights).item() == 0
