"""What a user chose beyond what anybody would have: a second reading of co-occurrence, as a part of the score.

A mean of what was chosen says nothing of what was not, nor that who has chosen a hundred items has used up those that
were to be expected. Fitted to both, a user's vector is the ridge regression

    θ_u = (Σ_i p_i(n) w_i w_iᵀ + λ I)⁻¹ (Σ_{h chosen} w_h − Σ_i p_i(n) w_i),    p_i(n) = 1 − exp(−n f_i),

where w_i are the vectors of co-occurrence, n is how many the user chose and f_i the item's share of all choices: one
Newton step, from no taste at all, towards the likeliest taste of someone who meets items as a Poisson process and takes
none twice. With p constant it is the fold-in of implicit matrix factorisation (Hu, Koren & Volinsky, "Collaborative
filtering for implicit feedback datasets", 2008). It needs what depends on n alone, and the sum of what was chosen;
so it falls into parts, one for each part of the choices, each less its share of what was to be expected.

Shape suffixes: N items, B users, W parts of their choices, K size of a vector, G lengths of a history.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.past import PAST

RIDGE = 5.0
"""λ, in units of the items' mean squared length."""
WEIGHT = 0.7
"""What the product with an item's vector is multiplied by before calibration, which starts from 1."""
LENGTHS = int(np.log2(PAST)) + 1
"""Lengths of a history that are told apart: 1, 2, 4 and so on."""


class FoldIn:
    """What is the same for all users whose histories are as long."""

    def __init__(self, values_NK: Tensor, counts_N: Tensor) -> None:
        """Of items with these vectors, chosen so often (decayed or not)."""
        self._of = values_NK, counts_N
        there_N = counts_N > 0
        w_NK, share_N = values_NK[there_N], (counts_N[there_N] / counts_N.sum()).float()
        length_G = 2.0 ** torch.arange(LENGTHS, device=w_NK.device)
        p_GN = -torch.expm1(-length_G.unsqueeze(1) * share_N)
        self._expected_GK = (p_GN @ w_NK) / length_G.unsqueeze(1)
        """Of one choice."""
        ridge = RIDGE * w_NK.square().sum(1).mean() if len(w_NK) else w_NK.new_ones(())
        self._ridge_KK = (ridge + 1e-9) * torch.eye(w_NK.shape[1], device=w_NK.device, dtype=torch.float64)
        self._w_NK, self._p_GN = w_NK, p_GN
        self._maps: dict[int, Tensor] = {}

    @classmethod
    def of(cls, values_NK: Tensor, counts_N: Tensor, like: FoldIn | None) -> FoldIn:
        """The same, or `like` itself where it was made of the same."""
        same = like is not None and all(map(torch.equal, (values_NK, counts_N), like._of))
        return like if like is not None and same else cls(values_NK, counts_N)

    def __call__(self, mean_BWK: Tensor, counts_BW: NDArray[np.int64]) -> Tensor:
        """The parts of θ (B, W, K) of users, from those of the mean of what they chose and how much each part was.

        The parts add up to the mean of all, and to θ; zeros for who chose nothing.
        """
        n_BW = torch.from_numpy(counts_BW).to(mean_BWK)
        n_B = n_BW.sum(1)
        nearest_B = torch.log2(n_B.clamp(1, PAST)).round().long()
        expected_B1K = self._expected_GK[nearest_B].unsqueeze(1)
        beyond_BWK = mean_BWK * n_B[:, None, None] - expected_B1K * n_BW.unsqueeze(2)
        theta_BWK = torch.empty_like(beyond_BWK)
        for length in torch.unique(nearest_B).tolist():
            theta_BWK[nearest_B == length] = beyond_BWK[nearest_B == length] @ self._map(length)
        return theta_BWK

    def prepare(self) -> None:
        """Make what all lengths need, so that nobody waits for it later."""
        for length in range(LENGTHS):
            self._map(length)

    def _map(self, length: int) -> Tensor:
        """The inverse for this length, (K, K), made when it is first asked for: a phase has users of few lengths."""
        if length not in self._maps:
            gram_KK = ((self._p_GN[length].unsqueeze(1) * self._w_NK).T @ self._w_NK).double()
            self._maps[length] = torch.linalg.inv(gram_KK + self._ridge_KK).float()
        return self._maps[length]
