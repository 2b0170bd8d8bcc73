"""What the scorer minimises: plain functions of scores and targets, each the mean over its examples.

`weights` (B,), where given, are non-negative sample weights: the result is Σ w·loss / Σ w, and 0 where all weights
are 0.

Shape suffixes: B examples, N items or negatives.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def softmax_ranking(
    scores_BN: Tensor, target_B: Tensor, allowed: Tensor | None = None, *, weights: Tensor | None = None
) -> Tensor:
    """Cross entropy of the target among all allowed items: −log( exp s_t / Σ_{n allowed} exp s_n ).

    `target_B` holds indices into N; `allowed` is a boolean mask (N,) or (B, N), the target being always allowed. The
    softmax loss over the full catalogue, as in Covington, Adams & Sargin, "Deep neural networks for YouTube
    recommendations", 2016.
    """
    if allowed is not None:
        allowed_BN = allowed.expand(scores_BN.shape).scatter(1, target_B.unsqueeze(1), True)
        scores_BN = scores_BN.masked_fill(~allowed_BN, -torch.inf)
    return weighted_mean(functional.cross_entropy(scores_BN, target_B, reduction="none"), weights)


def sampled_softmax(
    positive_B: Tensor,
    negative_BN: Tensor,
    *,
    positive_log_q: Tensor | float = 0.0,
    negative_log_q: Tensor | float = 0.0,
    false_negative_BN: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Cross entropy of each positive's score among itself and sampled negatives, corrected for how they were sampled.

    Each score becomes s − log q, with q the expected count (or, up to a constant, the probability) of that item in
    the sample: `positive_log_q` broadcasts over (B,), `negative_log_q` over (B, N). Negatives that are in truth the
    positive (or liked) are masked by `false_negative_BN`. Without any negative left, the loss of an example is 0.
    Bengio & Senécal, "Adaptive importance sampling to accelerate training of a neural probabilistic language model",
    2008; for in-batch negatives, Yi et al., "Sampling-bias-corrected neural modeling for large corpus item
    recommendations", RecSys 2019.
    """
    corrected_BN = negative_BN - negative_log_q
    if false_negative_BN is not None:
        corrected_BN = corrected_BN.masked_fill(false_negative_BN, -torch.inf)
    logits = torch.cat(((positive_B - positive_log_q).unsqueeze(1), corrected_BN), dim=1)
    first_B = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
    return weighted_mean(functional.cross_entropy(logits, first_B, reduction="none"), weights)


def mse(predicted_B: Tensor, target_B: Tensor, *, weights: Tensor | None = None) -> Tensor:
    """Mean squared error (ŷ − y)²."""
    return weighted_mean((predicted_B - target_B) ** 2, weights)


def bce(logit_B: Tensor, target_B: Tensor, *, weights: Tensor | None = None) -> Tensor:
    """Binary cross entropy of a logit: −y log σ(s) − (1 − y) log(1 − σ(s)), computed stably; targets in [0, 1]."""
    return weighted_mean(functional.binary_cross_entropy_with_logits(logit_B, target_B, reduction="none"), weights)


def info_nce(a_BD: Tensor, b_BD: Tensor, *, temperature: float = 0.07) -> Tensor:
    """Cross entropy of each row's partner among all, by cosine / temperature, both ways.

    ½ Σ over (a, b) and (b, a) of mean_i −log( exp(cos(a_i, b_i)/τ) / Σ_j exp(cos(a_i, b_j)/τ) ): Radford et al.,
    "Learning transferable visual models from natural language supervision" (CLIP), ICML 2021, figure 3, with their
    initial τ, fixed.
    """
    logits = cosines(a_BD, b_BD) / temperature
    partner_B = torch.arange(len(logits), device=logits.device)
    return (softmax_ranking(logits, partner_B) + softmax_ranking(logits.T, partner_B)) / 2


def margin_cosine(a_BD: Tensor, b_BD: Tensor, *, margin: float = 0.2) -> Tensor:
    """mean_i (1 − cos(a_i, b_i)) + mean_{i≠j} max(0, cos(a_i, b_j) − margin): `torch.nn.CosineEmbeddingLoss` over all
    pairs of a batch, those that belong together and those that do not counted alike."""
    cosine_BB = cosines(a_BD, b_BD)
    return (1 - cosine_BB.diagonal()).mean() + off_diagonal_mean(functional.relu(cosine_BB - margin))


def triplet(a_BD: Tensor, b_BD: Tensor, *, margin: float = 0.2) -> Tensor:
    """mean_{i≠j} max(0, margin − cos(a_i, b_i) + cos(a_i, b_j)), both ways, halved.

    The triplet loss of Schroff, Kalenichenko & Philbin, "FaceNet", CVPR 2015, between two kinds of vectors, over all
    negatives of the batch as the sum of hinges in Faghri et al., "VSE++", BMVC 2018, eq. 5.
    """
    cosine_BB = cosines(a_BD, b_BD)
    own_B = cosine_BB.diagonal()
    one_way, other_way = (functional.relu(margin - own_B.unsqueeze(1) + x_BB) for x_BB in (cosine_BB, cosine_BB.T))
    return (off_diagonal_mean(one_way) + off_diagonal_mean(other_way)) / 2


def cosines(a_BD: Tensor, b_ND: Tensor) -> Tensor:
    """(B, N): the cosine of every pair; 0 where one of the two is zeros."""
    return functional.normalize(a_BD, dim=1) @ functional.normalize(b_ND, dim=1).T


def off_diagonal_mean(x_BB: Tensor) -> Tensor:
    """Mean of what is not on the diagonal; 0 where there is nothing else."""
    count = len(x_BB)
    return (x_BB.sum() - x_BB.diagonal().sum()) / max(1, count * (count - 1))


def weighted_mean(loss_B: Tensor, weights: Tensor | None) -> Tensor:
    """Σ w·loss / Σ w; the plain mean without weights; 0 (with a gradient of 0) where there is nothing to average."""
    if weights is None:
        return loss_B.sum() / max(1, len(loss_B))
    total = weights.sum()
    return (loss_B * weights).sum() / torch.where(total > 0, total, torch.ones_like(total))
