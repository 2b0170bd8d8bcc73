"""What every fusion has: a checked size, and a mask that hides what is missing.

Shape suffixes: B items, M modalities, D vector size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

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

    def parts(self, x_BMD: Tensor, mask_BM: Tensor) -> Tensor | None:
        """What each modality adds, (B, M, D), where the result is their sum, or that and a constant; None where
        modalities do more than add."""
        present_BMD = torch.where(mask_BM.unsqueeze(-1), x_BMD, torch.zeros_like(x_BMD))
        weight_BM = self.weights(present_BMD, mask_BM)
        return None if weight_BM is None else weight_BM.unsqueeze(-1) * present_BMD

    def weights(self, x_BMD: Tensor, mask_BM: Tensor) -> Tensor | None:  # noqa: ARG002
        """(B, M): how much of each modality is in the sum; None where it is no weighted sum."""
        return None

    by_place: ClassVar[tuple[str, ...]] = ()
    """Parameters whose first dimension is M."""

    @torch.no_grad()
    def carry_over(self, old: Fusion, pairs: Sequence[tuple[int, int]]) -> list[str]:
        """Take over what another fusion of this kind learned, for modalities by (place here, place there).

        Items that have none of the other modalities are then fused as by `old`. Returns the parameters that are the
        old ones whole.
        """
        theirs = dict(old.named_parameters())
        whole = []
        for name, mine in self.named_parameters():
            if name in self.by_place:
                for here, there in pairs:
                    mine[here] = theirs[name][there]
            else:
                mine.copy_(theirs[name])
                whole.append(name)
        return whole


def masked_softmax(logits: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the last dimension where `mask` is true, 0 elsewhere; zeros where a row has nothing true."""
    # a finite floor: a row of -inf would give NaN, in the gradient too
    filled = logits.masked_fill(~mask, torch.finfo(logits.dtype).min)
    return torch.softmax(filled, dim=-1) * mask


def present_mean(x_BMD: Tensor, mask_BM: Tensor) -> Tensor:
    """(B, D): mean over the modalities that are there; zeros where none is."""
    there_BM1 = mask_BM.unsqueeze(-1)
    return (x_BMD * there_BM1).sum(dim=1) / there_BM1.sum(dim=1).clamp(min=1)
