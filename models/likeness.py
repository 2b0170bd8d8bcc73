# ruff: noqa: N815 (shape suffixes)
"""How alike items are as they were announced, with nothing learned: a part of the score of its own.

What encoders make of features serves the items that they learn from, and tells less and less of how alike two items
are that nobody has touched. So each item keeps a copy of its features, short enough to be published: ⟨r_i, r_j⟩ is
nearly the sum over modalities of the cosines of what was announced (their means taken off). A user is the decayed mean
of the copies of what they chose last, at two paces; what that is worth beside all else is fitted on fresh events
(`models.calibration`). Content-based filtering by Rocchio's centroid (Pazzani & Billsus, "Content-based recommendation
systems", 2007).

Shape suffixes: N items or rows, I input size, K size of a copy, B users, S rows of a sketch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

HALF_LIVES = (2.0, 30.0)
"""A user's events are read at two paces: after so many later ones of the same user one counts half."""
PACES = len(HALF_LIVES)
EVENTS = 50
"""How many of a user's last events count at all."""
WEIGHT = 2.0
"""What the product of two copies is multiplied by before calibration, which starts from 1."""
_CHUNK = 256


class Outline(nn.Module):
    """r = x̂ P: one modality's vectors on their first principal components, in columns of their own.

    x̂ is the input less its mean and of length 1, as the caller gives it. P is of the rows that were observed, one chunk
    after another (Levy & Lindenbaum, "Sequential Karhunen–Loève basis extraction", 2000), turned to be as near as can
    be to what it was before (Schönemann's orthogonal Procrustes problem, 1966), so that copies of before stay good.
    Where modalities are added to a model, those of before keep the columns that they had once they are fixed.
    """

    sketch_SI: Tensor
    basis_IK: Tensor

    def __init__(self, dim_in: int, dim: int, columns: slice) -> None:
        """`columns`, of `dim` in all, are this modality's."""
        super().__init__()
        self._columns = slice(columns.start, min(columns.stop, columns.start + dim_in))
        self.register_buffer("sketch_SI", torch.zeros(dim, dim_in))
        self.register_buffer("basis_IK", torch.zeros(dim_in, dim))

    @torch.no_grad()
    def observe(self, x_NI: Tensor) -> None:
        """Take rows (N, I) into the components."""
        width = self._columns.stop - self._columns.start
        if not len(x_NI) or not width:
            return
        sketch = self.sketch_SI[:width].double()
        for part in torch.split(x_NI.double(), _CHUNK):
            rows = torch.cat((sketch, part))
            power, left = torch.linalg.eigh(rows @ rows.T)
            # rows times their left singular vectors: right ones, each as long as its singular value
            sketch = left[:, -width:].T @ rows
            power = power[-width:]
        found_IW = sketch.T * power.clamp(min=1e-9).rsqrt()
        found_IW = torch.where(power > 1e-9, found_IW, 0.0)
        left, _, right = torch.linalg.svd(found_IW.T @ self.basis_IK[:, self._columns].double())
        turned_IW = found_IW @ (left @ right)
        self.sketch_SI.zero_()
        self.sketch_SI[:width] = sketch
        self.basis_IK.zero_()
        self.basis_IK[:, self._columns] = turned_IW.float()

    def forward(self, x_NI: Tensor) -> Tensor:
        """Rows (N, I) to copies (N, K)."""
        return x_NI @ self.basis_IK


def outlines(dims: dict[str, int], dim: int) -> nn.ModuleDict:
    """An outline for each modality, columns shared out evenly."""
    edges = [at * dim // max(1, len(dims)) for at in range(len(dims) + 1)]
    parts = {
        name: Outline(dims[name], dim, slice(edges[at], edges[at + 1])) for at, name in enumerate(dims)
    }  # fmt: skip
    return nn.ModuleDict(parts)


def direction(x_NI: Tensor, mean_I: Tensor) -> Tensor:
    """Rows less the mean, of length 1; (N, I)."""
    return functional.normalize(x_NI - mean_I, dim=1)
