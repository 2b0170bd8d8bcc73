"""Fusions in which modalities multiply each other: what holds only of an item with this *and* that.

A missing modality is zeros, and a product of zeros adds nothing: its other modalities are fused without it.

Shape suffixes: B items, M modalities, D vector size, R rank.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.fusion_base import Fusion, present_mean

RANK = 4
"""Terms in which `MultilinearFusion` writes its tensor."""


def per_modality(count: int, rank: int, dim: int) -> nn.Parameter:
    """(M, R, D, D): one matrix a modality and rank, each drawn as `nn.Linear` draws its own."""
    bound = dim**-0.5
    return nn.Parameter(torch.empty(count, rank, dim, dim).uniform_(-bound, bound))


class BilinearFusion(Fusion):
    """y = mean of the present x_m + P Σ_{m<n} tanh(U_m x_m) ∘ tanh(U_n x_n) / pairs: every pair meets once.

    Kim et al., "Hadamard product for low-rank bilinear pooling", ICLR 2017, eq. 8, in place of a full D × D × D tensor
    for each pair, with rank D; their linear shortcut (section 3.3) is what an item of one modality has. The sum over
    pairs is ((Σ z)² − Σ z²) / 2, as in Rendle, "Factorization machines", ICDM 2010.
    """

    by_place = ("factor",)

    def __init__(self, dim: int, count: int) -> None:
        super().__init__(dim, count)
        self.factor = per_modality(count, 1, dim)
        self.project = nn.Linear(dim, dim, bias=False)

    def fuse(self, x_BMD: Tensor, mask_BM: Tensor) -> Tensor:
        """Mean, and the mean of the products of all present pairs."""
        z_BMD = torch.tanh(torch.einsum("bmd,med->bme", x_BMD, self.factor[:, 0]))
        product_BD = (z_BMD.sum(dim=1).square() - z_BMD.square().sum(dim=1)) / 2
        present_B1 = mask_BM.sum(dim=1, keepdim=True)
        pairs_B1 = (present_B1 * (present_B1 - 1) / 2).clamp(min=1)
        return present_mean(x_BMD, mask_BM) + self.project(product_BD / pairs_B1)  # type: ignore[no-any-return]


class MultilinearFusion(Fusion):
    """y = 1/R Σ_r ( ∏_m (1 + W_m^r x_m) − 1 ): products of all subsets of the modalities, up to all of them at once.

    Liu et al., "Efficient low-rank multimodal fusion with modality-specific factors", ACL 2018, eq. 8: the tensor of
    Zadeh et al., "Tensor fusion network", EMNLP 2017, in R terms. The 1 that both append to each x_m keeps its weight
    of 1 here, so that a missing modality is a neutral factor, and the constant term is taken off.
    """

    by_place = ("factor",)

    def __init__(self, dim: int, count: int) -> None:
        super().__init__(dim, count)
        self.factor = per_modality(count, RANK, dim)

    def fuse(self, x_BMD: Tensor, mask_BM: Tensor) -> Tensor:  # noqa: ARG002
        """Multiply over M, average over R."""
        z_BMRD = torch.einsum("bmd,mred->bmre", x_BMD, self.factor)
        return ((1 + z_BMRD).prod(dim=1) - 1).mean(dim=1)
