"""How much each term of the score is to be trusted, and untouched items as a whole.

All of it is learned from events that the weights have not learned from yet.

The score is linear in the scales and in what is added for items that nobody has touched, so the softmax log-likelihood
is concave in them, and a Gaussian belief about them can be carried from phase to phase: each phase's likelihood is
maximised with that belief as the prior (Laplace approximation), and the belief fades by a half-life in events.

Shape suffixes: B examples, N candidates, T terms of one example (personal, bias, popularity, and 1 for an untouched
item), S scales, C coefficients: the scales, then what untouched items get.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from models.histories import LENGTHS
from models.scorer import SCALES

HALF_LIFE = 5_000.0
"""Events after which a phase's evidence counts half."""
PRIOR = 5.0
"""Precision of the initial belief that every scale is 1 and nothing is added."""
FLOOR, CEILING = 0.02, 3.0
"""Bounds of the scales."""
MOST_UNTOUCHED = 8.0
"""Bound of what untouched items get, up or down; a factor of e⁸ in how often they are chosen."""
UNTOUCHED = SCALES
"""Which coefficient that is."""
NEWTON_STEPS = 3


@dataclass
class Calibration:
    """The belief about the coefficients: its mean (C,), and what was learned about it (precision, (C, C))."""

    mean: Tensor = field(default_factory=lambda: _doubles(1.0, 0.0))
    evidence: Tensor = field(default_factory=lambda: torch.zeros(SCALES + 1, SCALES + 1, dtype=torch.float64))

    @property
    def scales(self) -> Tensor:
        """The scales to serve, (S,) float32."""
        return self.mean[:SCALES].clamp(FLOOR, CEILING).float()

    @property
    def untouched(self) -> float:
        """What an untouched item's appeal is raised by, before the popularity's scale is put on it."""
        return float(self.mean[UNTOUCHED] / self.scales[LENGTHS + 1])

    def fade(self, events: int) -> None:
        """Trust what was learned less, now that so many events more have passed."""
        self.evidence *= 0.5 ** (events / HALF_LIFE)

    def fit(self, terms_BNT: Tensor, target_B: Tensor, allowed_BN: Tensor, length_B: Tensor, *, weight: float) -> None:
        """Maximise the posterior given these examples, each counted `weight` times.

        `terms_BNT` are unscaled terms of the score; the target is allowed whatever `allowed_BN` says of it.
        """
        if len(terms_BNT) == 0:
            return
        terms_BNT = terms_BNT.float().cpu()
        target_B, length_B = target_B.cpu(), length_B.cpu()
        allowed_BN = allowed_BN.cpu().scatter(1, target_B.unsqueeze(1), True)
        shared = torch.arange(LENGTHS, SCALES + 1)
        scale_BT = torch.cat((length_B.unsqueeze(1), shared.expand(len(length_B), -1)), dim=1)
        lowest, highest = _doubles(FLOOR, -MOST_UNTOUCHED), _doubles(CEILING, MOST_UNTOUCHED)
        prior = self.evidence + PRIOR * torch.eye(SCALES + 1, dtype=torch.float64)
        theta, mean = self.mean.clone(), self.mean
        own_BT = terms_BNT[torch.arange(len(target_B)), target_B]
        hessian = torch.zeros_like(prior)
        for _ in range(NEWTON_STEPS):
            score_BN1 = terms_BNT @ theta[scale_BT].float().unsqueeze(2)
            chance_BN1 = score_BN1.masked_fill_(~allowed_BN.unsqueeze(2), -torch.inf).softmax(1)
            weighted_BNT = chance_BN1 * terms_BNT
            expected_BT = weighted_BNT.sum(1).double()
            second_BTT = (weighted_BNT.transpose(1, 2) @ terms_BNT).double()
            covariance_BTT = second_BTT - expected_BT.unsqueeze(2) * expected_BT.unsqueeze(1)
            gradient = torch.zeros_like(theta)
            gradient.index_put_((scale_BT,), weight * (own_BT.double() - expected_BT), accumulate=True)
            hessian = torch.zeros_like(prior)
            hessian.index_put_(
                (scale_BT.unsqueeze(2).expand_as(second_BTT), scale_BT.unsqueeze(1).expand_as(second_BTT)),
                weight * covariance_BTT, accumulate=True,
            )  # fmt: skip
            step = torch.linalg.solve(prior + hessian, gradient - prior @ (theta - mean))
            theta = (theta + step.clamp(-0.5, 0.5)).clamp(lowest, highest)
        if bool(theta.isfinite().all()):
            self.mean = theta
            self.evidence = self.evidence + hessian

    def state(self) -> dict[str, Tensor]:
        """A copy of the belief."""
        return {"mean": self.mean.clone(), "evidence": self.evidence.clone()}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> Calibration:
        """The belief that `state` copied."""
        return cls(state["mean"].clone(), state["evidence"].clone())


def _doubles(scales: float, untouched: float) -> Tensor:
    return torch.tensor([scales] * SCALES + [untouched], dtype=torch.float64)
