"""How the modalities of an item become one vector: a dict of name → module.

Every fusion is built as `cls(dim, count)` and maps `(x_BMD, mask_BM) → (B, D)`. A modality whose mask is false is
missing: whatever stands in its place, NaN included, touches neither the result nor a gradient. With all of them
missing the result is zeros, so that an item without content is where its id residual alone puts it.

Shape suffixes: B items, M modalities, D vector size.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Fusion(nn.Module):
    """What all fusions share: a checked size, and `forward` that hides what is missing before and after `fuse`.

    Raises `ValueError` where `dim` or `count` is below 1: a model without modalities has nothing to fuse.
    """

    def __init__(self, dim: int, count: int) -> None:
        super().__init__()
        if dim < 1 or count < 1:
            raise ValueError(f"A fusion needs a dim and a count of at least 1, got {dim} and {count}; add a modality.")
        self.dim = dim
        self.count = count

    def forward(self, x_BMD: Tensor, mask_BM: Tensor) -> Tensor:
        """Fuse (B, M, D) under a boolean mask (B, M), true where the modality is there, into (B, D)."""
        # where, not a product: 0 · NaN is NaN
        present_BMD = torch.where(mask_BM.unsqueeze(-1), x_BMD, torch.zeros_like(x_BMD))
        return self.fuse(present_BMD, mask_BM) * mask_BM.any(dim=1, keepdim=True)

    def fuse(self, x_BMD: Tensor, mask_BM: Tensor) -> Tensor:
        """The fusion itself; missing modalities are zeros in `x_BMD`."""
        raise NotImplementedError


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


def masked_softmax(logits: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the last dimension where `mask` is true, 0 elsewhere; zeros where a row has nothing true."""
    # a finite floor: a row of -inf would give NaN, in the gradient too
    filled = logits.masked_fill(~mask, torch.finfo(logits.dtype).min)
    return torch.softmax(filled, dim=-1) * mask


FUSIONS: dict[str, Callable[[int, int], Fusion]] = {
    "sum": SumFusion,
    "mean": MeanFusion,
    "weighted": WeightedFusion,
    "concat": ConcatFusion,
    "gated": GatedFusion,
}
"""Fusions by the name that `[model] fusion` gives them; a new one is a class above and a line here."""
