"""Softmax over a whole catalogue without a second copy of the scores: loss and gradients in one pass.

At ten thousand items the (B, N) scores are most of what a step costs; autograd would write them several times.

Shape suffixes: B examples, N candidates, V length of published vectors, C examples whose target was cold.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LEAST_LOGIT = -60.0
"""Scores further below the best count as this far: a probability of 1e-26."""


class FullSoftmax(torch.autograd.Function):
    """−Σ w_b log softmax(U Vᵀ)[b, target_b], with the target's own vector replaced where it was cold.

    Masked candidates have probability 0; a target is never masked. The popularity part of `V` (its last columns, from
    `split` on) takes gradients from the first `fresh` examples only.
    """

    @staticmethod
    def forward(
        ctx: Any,
        user_BV: Tensor,
        item_NV: Tensor,
        target_B: Tensor,
        weight_B: Tensor,
        hidden_from: Sequence[int] | None,
        hidden_BN: Tensor | None,
        hidden_BP: Tensor | None,
        cold_C: Tensor,
        cold_CV: Tensor,
        offset_N: Tensor | None,
        fresh: int,
        split: int,
    ) -> Tensor:
        """No candidates for an example are those from `hidden_from` on, those where `hidden_BN` is true, and the
        indices `hidden_BP` (-1 for none); `offset_N` is added to all scores of an item."""
        score_BN = user_BV @ item_NV.T
        if offset_N is not None:
            score_BN += offset_N
        own_B1 = score_BN.gather(1, target_B.unsqueeze(1))
        if len(cold_C):
            own = (user_BV[cold_C] * cold_CV).sum(1, keepdim=True)
            own_B1[cold_C] = own if offset_N is None else own + offset_N[target_B[cold_C]].unsqueeze(1)
        top_B1 = torch.maximum(score_BN.amax(1, keepdim=True), own_B1)
        # candidates are hidden after exp, and scores cut off before: infinities and denormals make it ten times slower
        score_BN.sub_(top_B1).clamp_(min=LEAST_LOGIT).exp_()
        if hidden_from is not None:
            for line, first in enumerate(hidden_from):
                score_BN[line, first:] = 0
        if hidden_BN is not None:
            score_BN.mul_(~hidden_BN)
        if hidden_BP is not None:
            # an index of -1 hides nothing: it points at the target, which is written last
            score_BN.scatter_(1, torch.where(hidden_BP >= 0, hidden_BP, target_B.unsqueeze(1)), 0)
        score_BN.scatter_(1, target_B.unsqueeze(1), (own_B1 - top_B1).clamp_(min=LEAST_LOGIT).exp_())
        total_B1 = score_BN.sum(1, keepdim=True)
        loss_B = (total_B1.log() + top_B1 - own_B1).squeeze(1)
        # from here on `score_BN` is the gradient: w (p − 1[target])
        score_BN.mul_(weight_B.unsqueeze(1) / total_B1)
        score_BN.scatter_add_(1, target_B.unsqueeze(1), -weight_B.unsqueeze(1))
        ctx.save_for_backward(user_BV, item_NV, target_B, score_BN, cold_C, cold_CV)
        ctx.fresh, ctx.split = fresh, split
        return (loss_B * weight_B).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of users, items and cold targets."""
        user_BV, item_NV, target_B, g_BN, cold_C, cold_CV = ctx.saved_tensors
        scale, fresh, split = grad_outputs[0], ctx.fresh, ctx.split
        cold_grad = None
        if len(cold_C):
            own_C1 = g_BN[cold_C, target_B[cold_C]].unsqueeze(1)
            cold_grad = own_C1 * user_BV[cold_C] * scale
            cold_grad[cold_C >= fresh, split:] = 0
            g_BN[cold_C, target_B[cold_C]] = 0
        user_grad = g_BN @ item_NV
        if len(cold_C):
            user_grad[cold_C] += own_C1 * cold_CV
        if fresh < len(g_BN):
            user_grad[fresh:, split:] = 0
            personal = g_BN.T @ user_BV[:, :split]
            popularity = g_BN[:fresh].T @ user_BV[:fresh, split:]
            item_grad = torch.cat((personal, popularity), dim=1)
        else:
            item_grad = g_BN.T @ user_BV
        return (user_grad * scale, item_grad * scale, *[None] * 6, cold_grad, None, None, None)
