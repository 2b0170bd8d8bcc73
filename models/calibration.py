"""How much each term of the score is to be trusted, and untouched items as a whole.

All of it is learned from events that the weights have not learned from yet.

A Gaussian belief about the scales, and about what items that nobody has touched get more or less of, is carried from
phase to phase: each phase's softmax likelihood is maximised with that belief as the prior (Laplace approximation, by
Fisher scoring), and the belief fades by a half-life in events.

Shape suffixes: B examples, N candidates, T terms of one example (personal, bias, popularity, likeness, co-occurrence,
and 1 for an untouched item), S scales, C coefficients: the scales, then what untouched items get.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from models.histories import LENGTHS
from models.scorer import POPULARITY_SCALE, SCALES, Untouched

HALF_LIFE = 5_000.0
"""Events after which a phase's evidence counts half."""
PRIOR = 5.0
"""Precision of the initial belief that every scale is 1 and nothing is added."""
FLOOR, CEILING = 0.02, 3.0
"""Bounds of the scales."""
MOST_UNTOUCHED = 8.0
"""Bound of what untouched items' appeal is raised by, up or down; a factor of e⁸ in how often they are chosen."""
UNTOUCHED = SCALES
"""The first coefficient of those for untouched items: what is added to their appeal; then by what share their personal
term counts for more or less than others', and their likeness."""
COEFFICIENTS = SCALES + 3
BOUNDS = torch.tensor(
    [[FLOOR, CEILING]] * SCALES + [[-MOST_UNTOUCHED, MOST_UNTOUCHED], [-0.98, 2.0], [-0.98, 9.0]], dtype=torch.float64
)
"""Of each coefficient, lowest and highest."""
TWOFOLD = [0, 3]
"""Terms that have other scales for untouched items: the personal one and the likeness."""
NEWTON_STEPS = 3


@dataclass
class Calibration:
    """The belief about the coefficients: its mean (C,), and what was learned about it (precision, (C, C))."""

    mean: Tensor = field(default_factory=lambda: torch.tensor([1.0] * SCALES + [0.0] * 3, dtype=torch.float64))
    evidence: Tensor = field(default_factory=lambda: torch.zeros(COEFFICIENTS, COEFFICIENTS, dtype=torch.float64))

    @property
    def scales(self) -> Tensor:
        """The scales to serve, (S,) float32."""
        return self.mean[:SCALES].clamp(FLOOR, CEILING).float()

    @property
    def untouched(self) -> Untouched:
        """What becomes of untouched items."""
        appeal, personal, likeness = self.mean[UNTOUCHED:].tolist()
        return Untouched(float(appeal / self.scales[POPULARITY_SCALE]), 1 + personal, 1 + likeness)

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
        shared = torch.arange(LENGTHS, COEFFICIENTS)
        scale_BT = torch.cat((length_B.unsqueeze(1), shared.expand(len(length_B), -1)), dim=1)
        prior = self.evidence + PRIOR * torch.eye(COEFFICIENTS, dtype=torch.float64)
        theta, mean = self.mean.clone(), self.mean
        hessian = torch.zeros_like(prior)
        for _ in range(NEWTON_STEPS):
            slopes_BNC, score_BN1 = _score(terms_BNT, theta[scale_BT].float())
            chance_BN1 = score_BN1.masked_fill_(~allowed_BN.unsqueeze(2), -torch.inf).softmax(1)
            weighted_BNC = chance_BN1 * slopes_BNC
            expected_BT = weighted_BNC.sum(1).double()
            second_BTT = (weighted_BNC.transpose(1, 2) @ slopes_BNC).double()
            own_BT = slopes_BNC[torch.arange(len(target_B)), target_B]
            covariance_BTT = second_BTT - expected_BT.unsqueeze(2) * expected_BT.unsqueeze(1)
            gradient = torch.zeros_like(theta)
            gradient.index_put_((scale_BT,), weight * (own_BT.double() - expected_BT), accumulate=True)
            hessian = torch.zeros_like(prior)
            hessian.index_put_(
                (scale_BT.unsqueeze(2).expand_as(second_BTT), scale_BT.unsqueeze(1).expand_as(second_BTT)),
                weight * covariance_BTT, accumulate=True,
            )  # fmt: skip
            step = torch.linalg.solve(prior + hessian, gradient - prior @ (theta - mean))
            theta = (theta + step.clamp(-0.5, 0.5)).clamp(*BOUNDS.T)
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


def _score(terms_BNT: Tensor, theta_BC: Tensor) -> tuple[Tensor, Tensor]:
    """What each coefficient of an example changes in the scores, (B, N, C), and the scores, (B, N, 1)."""
    terms = terms_BNT.shape[2]
    untouched_BN1 = terms_BNT[..., -1:]
    more_BN2 = terms_BNT[..., TWOFOLD] * theta_BC[:, None, TWOFOLD] * untouched_BN1
    slopes_BNC = torch.cat((terms_BNT, more_BN2), dim=2)
    slopes_BNC[..., TWOFOLD] *= 1 + theta_BC[:, None, terms:] * untouched_BN1
    return slopes_BNC, slopes_BNC[..., :terms] @ theta_BC[:, :terms].unsqueeze(2)
