"""How the modalities of an item become one vector: a dict of name → module, and the fusions that only weigh and add.

Those that multiply modalities are in `models.fusion_products`, those in which modalities look at each other in
`models.fusion_attention`.

Every fusion is built as `cls(dim, count)` and maps `(x_BMD, mask_BM) → (B, D)`. A modality whose mask is false is
missing: whatever stands in its place, NaN included, touches neither the result nor a gradient. With all of them
missing the result is zeros, so that an item without content is where its id residual alone puts it.

Shape suffixes: B items, M modalities, D vector size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

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

    def weights(self, x_BMD: Tensor, mask_BM: Tensor) -> Tensor:
        """(B, M): 1 for each modality that is there."""
        return mask_BM.to(x_BMD.dtype)


class MeanFusion(Fusion):
    """y = Σ_m x_m / |present|: a sum whose size does not grow with the number of modalities; no parameters."""

    def fuse(self, x_BMD: Tensor, mask_BM: Tensor) -> Tensor:
        """Mean over the present of M."""
        return x_BMD.sum(dim=1) / mask_BM.sum(dim=1, keepdim=True).clamp(min=1)

    def weights(self, x_BMD: Tensor, mask_BM: Tensor) -> Tensor:
        """(B, M): the same for each modality that is there; a row sums to 1, or to 0 where all are missing."""
        return mask_BM.to(x_BMD.dtype) / mask_BM.sum(dim=1, keepdim=True).clamp(min=1)


class WeightedFusion(Fusion):
    """y = Σ_m α_m x_m, α = softmax over the present of one learned logit a modality, the same for all items.

    The scalar mixture of Peters et al., "Deep contextualized word representations" (ELMo), NAACL 2018, eq. 1, with γ
    = 1. Starts as the mean.
    """

    by_place = ("logit_M",)

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

    def parts(self, x_BMD: Tensor, mask_BM: Tensor) -> Tensor:
        """(B, M, D): each modality through its own columns; with b they sum to the result."""
        added = [x_BMD[:, m] @ self._vector(m).T + self._mask(m) for m in range(self.count)]
        return torch.where(mask_BM.unsqueeze(-1), torch.stack(added, dim=1), torch.zeros_like(x_BMD))

    @torch.no_grad()
    def carry_over(self, old: Fusion, pairs: Sequence[tuple[int, int]]) -> list[str]:
        """Columns belong to modalities: D for the vector of each, then one for the mask of each."""
        assert isinstance(old, ConcatFusion)
        self.project.bias.copy_(old.project.bias)
        for here, there in pairs:
            self._vector(here).copy_(old._vector(there))
            self._mask(here).copy_(old._mask(there))
        return ["project.bias"]

    def _vector(self, place: int) -> Tensor:
        return self.project.weight[:, place * self.dim : (place + 1) * self.dim]

    def _mask(self, place: int) -> Tensor:
        return self.project.weight[:, self.count * self.dim + place]


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

    @torch.no_grad()
    def carry_over(self, old: Fusion, pairs: Sequence[tuple[int, int]]) -> list[str]:
        """Each modality has a gate, and D columns in every gate."""
        assert isinstance(old, GatedFusion)
        mine, theirs = (fusion.gate.weight.view(fusion.count, fusion.count, fusion.dim) for fusion in (self, old))
        for here, there in pairs:
            self.gate.bias[here] = old.gate.bias[there]
            for here_too, there_too in pairs:
                mine[here, here_too] = theirs[there, there_too]
        return []


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
