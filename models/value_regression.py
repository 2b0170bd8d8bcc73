"""What a user's values say of the user: a Bayesian linear regression of them on the vectors of the items.

Shape suffixes: B users or examples, L places of a history (newest first), D vector size, V length of published vectors,
H drifts.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.histories import HistoryTensors

LEVEL, DRIFTS, SPANS = 0.2, (0.1, 0.1), (3.0, 30.0)
"""Variances that the user's level starts with: what stays, and what is forgotten over so many events."""
TASTE, TOGETHER, SLOPE = 0.2, 0.2, 0.3
"""The same of the personal part and of co-occurrence, for an item of the usual size, and of how much more than others a
user follows what everybody thinks of an item. All are in units of the noise of one value, and learned."""
PACE = 30.0
"""How much faster logarithms of variances and spans are learned than weights: they are few, and all values tell."""
BOUND = 3.0
"""How far these logarithms get from where they start: twentyfold, either way."""


class ValueRegression(nn.Module):
    """The posterior mean of a user's vector w, given the values of the user's last events.

        z_h = ⟨w, i_h⟩ + level_h + noise,    w = (1 + s) w₀ + [u, 0],    u ~ N(0, λ I),    s ~ N(0, c)

    z are values less the mean of all, in their standard deviations; i_h is a published item vector, w₀ the user's
    vector before any value, so that β_h = ⟨w₀, i_h⟩ is what would be expected, and level_h a walk over the events with
    covariance k(h, h') = k₀ + Σ_j k_j exp(−|h − h'| / τ_j). In its dual form (Rasmussen & Williams, "Gaussian
    processes for machine learning", 2006, chapter 2), with e_h the personal part of an item, centred and in units of
    its size:

        α = (K + I)⁻¹ (z − β),    K = k + λ e eᵀ + μ w wᵀ + c β βᵀ,    u = λ Σ_h α_h e_h,    s = c Σ_h α_h β_h,
        level = Σ_h k(now, h) α_h

    and likewise μ Σ_h α_h w_h for w_h, who chose the item (`models.cooccurrence`), in units of its usual size: what the
    same users choose is liked alike. So the score of any item is a dot product still. All variances are learned by the
    error of what is foreseen, and the item vectors with them (Wilson et al., "Deep kernel learning", AISTATS 2016).
    Under the `mlp` head the network stands for the personal part: K leaves it out, and co-occurrence.
    """

    centre: Tensor
    size: Tensor
    length: Tensor

    def __init__(self, dim: int, *, dot: bool, together: bool = False) -> None:
        super().__init__()
        self.dim, self.dot = dim, dot
        self.level = nn.Parameter(torch.zeros(()))
        self.drifts = nn.Parameter(torch.zeros(len(DRIFTS)))
        self.spans = nn.Parameter(torch.zeros(len(SPANS)))
        self.taste = nn.Parameter(torch.zeros(()))
        self.slope = nn.Parameter(torch.zeros(()))
        if together:
            self.together = nn.Parameter(torch.zeros(()))
            """Of co-occurrence; there where items have it."""
        self.anyone = nn.Parameter(torch.zeros(dim))
        """The personal part of w₀ for everybody: what content alone says of an item's value."""
        self.gate = nn.Parameter(torch.zeros(dim))
        """How much of the user tower's vector is added to it."""
        self.register_buffer("centre", torch.zeros(dim))
        self.register_buffer("size", torch.ones(()))
        self.register_buffer("length", torch.ones(()))

    @torch.no_grad()
    def observe(self, vectors_ND: Tensor, together_NK: Tensor) -> None:
        """Where the personal parts of items are, and how far from there they are on average; how long the vectors of
        co-occurrence are, zeros left out."""
        power_N = together_NK.square().sum(1)
        if bool((power_N > 0).any()):
            self.length.copy_(power_N[power_N > 0].mean().sqrt())
        if len(vectors_ND) > 1:
            self.centre.copy_(vectors_ND.mean(0))
            self.size.copy_((vectors_ND - self.centre).square().sum(1).mean().sqrt().clamp(min=0.25))

    def forward(self, tower_BD: Tensor, rest_BE: Tensor, items_BLV: Tensor, inputs: HistoryTensors) -> Tensor:
        """Published user vectors (B, V), the base last.

        `tower_BD` and `rest_BE` are what the user tower says and the dimensions that follow the personal ones;
        `items_BLV` are the published vectors of the history's items: these two parts, co-occurrence, and a 1.
        """
        d, e = self.dim, self.dim + rest_BE.shape[1]
        mask_BL = (inputs.mask_BL & inputs.valued_BL).to(items_BLV)
        prior_BD = self.anyone + self.gate * tower_BD
        if self.dot:
            prior_BD = prior_BD / self.size
        expected_BL = (items_BLV[..., d:e] @ rest_BE.unsqueeze(2)).squeeze(2)
        if self.dot:
            expected_BL = expected_BL + ((items_BLV[..., :d] - self.centre) @ prior_BD.unsqueeze(2)).squeeze(2)
        expected_BL = expected_BL * mask_BL
        e_BLD = (items_BLV[..., :d] - self.centre) / self.size * mask_BL.unsqueeze(2)
        slope, taste = _times(self.slope, SLOPE), _times(self.taste, TASTE)
        kernel_LL, now_L = self._levels(mask_BL.shape[1])
        kernel_BLL = kernel_LL * (mask_BL.unsqueeze(2) * mask_BL.unsqueeze(1))
        kernel_BLL = kernel_BLL + slope * expected_BL.unsqueeze(2) * expected_BL.unsqueeze(1)
        if self.dot:
            kernel_BLL = kernel_BLL + taste * (e_BLD @ e_BLD.transpose(1, 2))
        w_BLK = items_BLV[..., e:-1] / self.length * mask_BL.unsqueeze(2)
        if w_BLK.shape[2]:
            kernel_BLL = kernel_BLL + _times(self.together, TOGETHER) * (w_BLK @ w_BLK.transpose(1, 2))
        noise_LL = torch.eye(mask_BL.shape[1], device=mask_BL.device)
        surprise_BL = (inputs.value_BL - expected_BL) * mask_BL
        factor_BLL, failed_B = torch.linalg.cholesky_ex(kernel_BLL + noise_LL)
        # what is beyond all measure is not finite, and refused as such
        factor_BLL = torch.where((failed_B > 0)[:, None, None], torch.nan, factor_BLL)
        alpha_BL = torch.cholesky_solve(surprise_BL.unsqueeze(2), factor_BLL).squeeze(2)
        more_B1 = 1 + slope * (alpha_BL * expected_BL).sum(1, keepdim=True)
        own_BD = taste / self.size * (alpha_BL.unsqueeze(1) @ e_BLD).squeeze(1)
        base_B1 = (alpha_BL * now_L).sum(1, keepdim=True)
        if self.dot:
            own_BD = more_B1 * prior_BD + own_BD
            base_B1 = base_B1 - (own_BD @ self.centre).unsqueeze(1)
            own_BD = inputs.deviation * own_BD
        else:
            own_BD = prior_BD + own_BD
        parts = [own_BD, inputs.deviation * more_B1 * rest_BE]
        if w_BLK.shape[2]:
            together = inputs.deviation * _times(self.together, TOGETHER) / self.length
            parts.append(together * (alpha_BL.unsqueeze(1) @ w_BLK).squeeze(1))
        return torch.cat((*parts, inputs.mean + inputs.deviation * base_B1), dim=1)

    def _levels(self, length: int) -> tuple[Tensor, Tensor]:
        """Covariance of the user's level between the events of a history (L, L), and with the next event (L,)."""
        place_L = torch.arange(length, device=self.level.device, dtype=torch.float32)
        apart_LL = (place_L.unsqueeze(1) - place_L).abs()
        both = torch.cat((apart_LL, (place_L + 1).unsqueeze(0)))
        drift = _times(self.drifts, DRIFTS)[:, None, None] * torch.exp(-both / _times(self.spans, SPANS)[:, None, None])
        covariance = _times(self.level, LEVEL) + drift.sum(0)
        return covariance[:-1], covariance[-1]


def _times(parameter: Tensor, first: float | tuple[float, ...]) -> Tensor:
    """What a parameter stands for: 0 for what it was at first, more or less for a multiple of it."""
    return parameter.new_tensor(first) * torch.exp((PACE * parameter).clamp(-BOUND, BOUND))
