"""How the modalities of an item become one vector: a dict of name → module, and the fusions that only weigh and add.

Those that multiply modalities are in `models.fusion_products`, those in which modalities look at each other in
`models.fusion_attention`.

Every fusion is built as `cls(dim, count)` and maps `(x_BMD, mask_BM) → (B, D)`. A modality whose mask is false is
missing: whatever stands in its place, NaN included, touches neither the result nor a gradient. With all of them
missing the result is zeros, so that an item without content is where its id residual alone puts it.

Shape suffixes: B items, M modalities, D vector size.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from models.fusion_attention import AttentionFusion, CrossAttentionFusion, TransformerFusion
from models.fusion_base import Fusion, masked_softmax
from models.fusion_products import BilinearFusion, MultilinearFusion


class SumFusion(Fusion):
    """y = Σ_m x_m over the modalities that are there. The textbook's late fusion; no parameters."""

    def fuse(self, x_BMD: Tensor, mask_BM: Tensor) -> Tensor:  # noqa: ARG002
        """Sum over M."""
        return x_BMD.sum(dim=1)


class MeanFusion(Fusion):
    """y = Σ_m x_m / |present|: a sum whose size does not grow with the number of modalities; no parameters."""

    def fuse(self, x_BMD: Tensor, mask_BM: Tensor) -> Tensor:
        """Mean over the present of M."""
        return x_BMD.sum(dim=1) / mask_BM.sum(dim=1, keepdim=True).clamp(min=1)


class WeightedFusion(Fusion):
    """y = Σ_m α_m x_m, α = softmax over the present of one learned logit a modality, the same for all items.

    The scalar mixture of Peters et al., "Deep contextualized word representations" (ELMo), NAACL 2018, eq. 1, with γ
    = 1. Starts as the mean.
    """

    def __init__(self, dim: int, count: int) -> None:
        super().__init__(dim, count)
        self.logit_M = nn.Parameter(torch.zeros(count))

    def weights(self, x_BMD: Tensor, mask_BM: Tensor) -> Tensor:  # noqa: ARG002
        """(B, M): the share of each modality; a row sums to 1, or to 0 where all are missing."""
        return masked_softmax(self.logit_M.expand(mask_BM.shape), mask_BM)

    def fuse(self, x_BMD: Tensor, mask_BM: Tensor) -> Tensor:
        """Mixture over M."""
        return torch.einsum("bm,bmd->bd", self.weights(x_BMD, mask_BM), x_BMD)


class ConcatFusion(Fusion):
    """y = W [x_1; …; x_M; mask] + b: one linear layer over all modalities.

    The joint representation of Ngiam et al., "Multimodal deep learning", ICML 2011. The mask is an input too, so that
    "missing" and "zero" are told apart.
    """

    def __init__(self, dim: int, count: int) -> None:
        super().__init__(dim, count)
        self.project = nn.Linear(count * dim + count, dim)

    def fuse(self, x_BMD: Tensor, mask_BM: Tensor) -> Tensor:
        """Project M·D + M inputs to D."""
        return self.project(torch.cat((x_BMD.flatten(1), mask_BM.to(x_BMD.dtype)), dim=1))  # type: ignore[no-any-return]


class GatedFusion(Fusion):
    """y = Σ_m g_m x_m, g = softmax over the present of W [x_1; …; x_M] + b: each item weighs its own modalities.

    The gates of Arevalo et al., "Gated multimodal units for information fusion", ICLR workshop 2017, for any number of
    modalities: a softmax takes the place of the sigmoid and its complement. Starts as the mean.
    """

    def __init__(self, dim: int, count: int) -> None:
        super().__init__(dim, count)
        self.gate = nn.Linear(count * dim, count)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def weights(self, x_BMD: Tensor, mask_BM: Tensor) -> Tensor:
        """(B, M): each item's gates; a row sums to 1, or to 0 where all are missing. `x_BMD` must be finite."""
        return masked_softmax(self.gate(x_BMD.flatten(1)), mask_BM)

    def fuse(self, x_BMD: Tensor, mask_BM: Tensor) -> Tensor:
        """Gate over M."""
        return torch.einsum("bm,bmd->bd", self.weights(x_BMD, mask_BM), x_BMD)


FUSIONS: dict[str, Callable[[int, int], Fusion]] = {
    "sum": SumFusion,
    "mean": MeanFusion,
    "weighted": WeightedFusion,
    "concat": ConcatFusion,
    "gated": GatedFusion,
    "attention": AttentionFusion,
    "bilinear": BilinearFusion,
    "multilinear": MultilinearFusion,
    "cross_attention": CrossAttentionFusion,
    "transformer": TransformerFusion,
}
"""Fusions by the name that `[model] fusion` gives them; a new one is a class and a line here."""
