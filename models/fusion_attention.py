"""Fusions by attention: an item's modalities are weighed by what they say, or look at each other first.

Shape suffixes: B items, M modalities (asking), N modalities (asked), D vector size, H heads, E size of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.fusion_base import Fusion, masked_softmax, present_mean

HEADS = 4
"""Of `TransformerFusion`, where they divide its size; one otherwise."""


class AttentionFusion(Fusion):
    """y = Σ_m a_m x_m, a = softmax over the present of wᵀ tanh(V x_m + e_m), with e_m the same for all items.

    Additive attention of Bahdanau, Cho & Bengio, ICLR 2015, pooled as by Yang et al., "Hierarchical attention networks
    for document classification", NAACL 2016, eq. 5–7. Unlike the gates of `GatedFusion`, a modality's weight is decided
    by its own vector.
    """

    by_place = ("modality",)

    def __init__(self, dim: int, count: int) -> None:
        super().__init__(dim, count)
        self.modality = nn.Parameter(torch.zeros(count, dim))
        self.key = nn.Linear(dim, dim, bias=False)
        self.query = nn.Linear(dim, 1, bias=False)

    def weights(self, x_BMD: Tensor, mask_BM: Tensor) -> Tensor:
        """(B, M): each item's attention; a row sums to 1, or to 0 where all are missing. `x_BMD` must be finite."""
        return masked_softmax(self.query(torch.tanh(self.key(x_BMD) + self.modality)).squeeze(-1), mask_BM)

    def fuse(self, x_BMD: Tensor, mask_BM: Tensor) -> Tensor:
        """Pool over M."""
        return torch.einsum("bm,bmd->bd", self.weights(x_BMD, mask_BM), x_BMD)


class CrossAttentionFusion(Fusion):
    """y = mean over the present m of x_m + Σ_{n≠m} a_mn V x_n: each modality takes from the others what it asks for.

    a_mn = exp l_mn / (1 + Σ_{n≠m} exp l_mn) with l_mn = (Q (x_m + e_m))ᵀ K (x_n + e_n) / √D. Co-attention as in Lu et
    al., "ViLBERT", NeurIPS 2019, section 3.1, with one head. The 1 in the denominator is a key that stands for nothing:
    with two modalities there would be nothing to choose, and with one, nothing to ask.
    """

    by_place = ("modality",)

    def __init__(self, dim: int, count: int) -> None:
        super().__init__(dim, count)
        self.modality = nn.Parameter(torch.zeros(count, dim))
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)

    def fuse(self, x_BMD: Tensor, mask_BM: Tensor) -> Tensor:
        """Attend from M to the others, then average over M."""
        token_BMD = x_BMD + self.modality
        logit_BMN = self.query(token_BMD) @ self.key(token_BMD).transpose(1, 2) * self.dim**-0.5
        others_MN = ~torch.eye(self.count, dtype=torch.bool, device=x_BMD.device)
        # the key that stands for nothing comes first: logit 0, value 0
        nothing_BM1 = torch.zeros_like(logit_BMN[..., :1])
        allowed_BMN = torch.cat((nothing_BM1 == 0, mask_BM.unsqueeze(1) & others_MN), dim=-1)
        weight_BMN = masked_softmax(torch.cat((nothing_BM1, logit_BMN), dim=-1), allowed_BMN)[..., 1:]
        return present_mean(x_BMD + weight_BMN @ self.value(x_BMD), mask_BM)


class TransformerFusion(Fusion):
    """y = mean over the present of one transformer layer over the tokens t_m = x_m + e_m.

    t ← t + O attention(LN t); t ← t + W₂ GELU(W₁ LN t): Vaswani et al., "Attention is all you need", NeurIPS 2017, with
    the norms first as in Xiong et al., "On layer normalization in the transformer architecture", ICML 2020. Missing
    modalities are no keys and are left out of the mean.
    """

    by_place = ("modality",)

    def __init__(self, dim: int, count: int) -> None:
        super().__init__(dim, count)
        self.heads = HEADS if dim % HEADS == 0 else 1
        self.modality = nn.Parameter(torch.zeros(count, dim))
        self.attention_norm = nn.LayerNorm(dim)
        # no biases: one on the keys shifts all logits alike, and would never get a gradient
        self.query_key_value = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def fuse(self, x_BMD: Tensor, mask_BM: Tensor) -> Tensor:
        """One layer over M, then its mean."""
        token_BMD = x_BMD + self.modality
        token_BMD = token_BMD + self.out(self._attend(self.attention_norm(token_BMD), mask_BM))
        return present_mean(token_BMD + self.mlp(token_BMD), mask_BM)

    def _attend(self, token_BMD: Tensor, mask_BM: Tensor) -> Tensor:
        split_BM3HE = self.query_key_value(token_BMD).unflatten(-1, (3, self.heads, self.dim // self.heads))
        query_BHME, key_BHME, value_BHME = split_BM3HE.permute(2, 0, 3, 1, 4)
        logit_BHMN = query_BHME @ key_BHME.transpose(2, 3) * query_BHME.shape[-1] ** -0.5
        weight_BHMN = masked_softmax(logit_BHMN, mask_BM[:, None, None, :])
        pooled_BHME: Tensor = weight_BHMN @ value_BHME
        return pooled_BHME.transpose(1, 2).flatten(2)
