"""A user as a vector: attention over the last events of their history, through a small network.

Shape suffixes: B users, L places of a history (newest first), D vector size, H heads, K popularity features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.dropout import drop
from models.fusion_base import masked_softmax
from models.histories import GAPS, LENGTHS, HistoryTensors
from models.memory import ACTIONS

HEADS = 4


class UserTower(nn.Module):
    """u = p + g ⊙ m + W₂ GELU(W₁ [LN([p₁ … p_H; m; n]); f]), with p_h the history's item vectors pooled by attention
    head h and m the decayed mean of all of the past (`models.past`).

    p is the mean of the p_h; n stands for the length of the history and f for the user's features; g starts at zero,
    and no gradient goes through m to the items. The item vectors are those that are scored (tied), so a new item or a
    new user works at once, plus what each item says in a history alone
    (`Learner.context`, nothing at first): that who had i will have j does not say it of who had j. Attention sees the
    items, how recent each event is by rank and by time, and what was done. Pooling by attention: Ilse, Tomczak &
    Welling, ICML 2018; tied item vectors: Hidasi & Karatzoglou, "Recurrent neural networks with top-k gains", CIKM
    2018.
    """

    def __init__(self, dim: int, history: int, features: int = 0) -> None:
        """`features` is the length of the encoded user features, 0 for none."""
        super().__init__()
        self.key = nn.Linear(dim, HEADS)
        recency = -0.1 * torch.arange(history, dtype=torch.float32)
        self.rank = nn.Parameter(recency.unsqueeze(1).repeat(1, HEADS))
        self.gap = nn.Parameter(torch.zeros(GAPS, HEADS))
        self.action = nn.Parameter(torch.zeros(ACTIONS, HEADS))
        self.value = nn.Parameter(torch.zeros(2, HEADS))
        self.length = nn.Parameter(torch.zeros(LENGTHS, dim))
        self.norm = nn.LayerNorm((HEADS + 2) * dim)
        self.inner = nn.Linear((HEADS + 2) * dim + features, 2 * dim)
        self.outer = nn.Linear(2 * dim, dim)
        self.past = nn.Parameter(torch.zeros(dim))

    def forward(
        self,
        x_BLD: Tensor,
        past_BD: Tensor,
        inputs: HistoryTensors,
        features: Tensor | None = None,
        *,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Item vectors (B, L, D) of the history, and the decayed mean (B, D) of all of it, to user vectors (B, D);
        drops inner units where `dropout` > 0."""
        # what was done when enters the weights alone: per head a number a place, and not a vector
        logit_BLH = (
            self.key(x_BLD)
            + self.rank[: x_BLD.shape[1]]
            + functional.embedding(inputs.gap_BL, self.gap)
            + functional.embedding(inputs.action_BL, self.action)
            + inputs.value_BL.unsqueeze(-1) * self.value[0]
            + inputs.valued_BL.unsqueeze(-1) * self.value[1]
        )
        weight_BHL = masked_softmax(logit_BLH.transpose(1, 2), inputs.mask_BL.unsqueeze(1))
        pooled_BHD = weight_BHL @ x_BLD
        direct_BD = pooled_BHD.mean(1) + self.past * past_BD
        length_BD = functional.embedding(inputs.length_B, self.length)
        z = torch.cat((pooled_BHD.flatten(1), past_BD, length_BD), dim=1)
        z = self.norm(z)
        if features is not None:
            z = torch.cat((z, features), dim=1)
        z = drop(z, dropout, generator)
        z = functional.gelu(self.inner(z))
        return direct_BD + self.outer(drop(z, dropout, generator))  # type: ignore[no-any-return]
