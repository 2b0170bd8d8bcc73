"""How much each term of the score is to be trusted, what counts at each half-life add, and untouched items as a whole.

All of it is learned from events that the weights have not learned from yet.

A Gaussian belief about the scales, and about what items that nobody has touched get more or less of, is carried from
phase to phase: each phase's softmax likelihood is maximised with that belief as the prior (Laplace approximation, by
Fisher scoring), and the belief fades by a half-life in events.

Shape suffixes: B examples, N candidates, T terms of one example (personal, bias, popularity, likeness and vintage at
each pace, co-occurrence, the fold-in on it by windows of age, that on learned vectors, factors, log counts at each
half-life, and 1 for an untouched item), S scales, C coefficients: the scales, then those of log counts, then what
untouched items get.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from models.histories import LENGTHS
from models.popularity import HALF_LIVES
from models.scorer import (
    LIKENESS_SCALES,
    POPULARITY_SCALE,
    SCALES,
    TASTE_SCALES,
    VINTAGE_SCALES,
    Corrections,
    Untouched,
)

HALF_LIFE = 5_000.0
"""Events after which a phase's evidence counts half."""
PRIOR = 5.0
"""Precision of the initial belief that every scale is 1 and nothing is added."""
FLOOR, CEILING = 0.02, 3.0
"""Bounds of the scales."""
MOST_UNTOUCHED = 8.0
"""Bound of what untouched items' appeal is raised by, up or down; a factor of e⁸ in how often they are chosen."""
MOST_COUNTED = 2.0
"""Bound of what a log count at one half-life adds, up or down."""
UNTOUCHED = SCALES + len(HALF_LIVES)
"""The first coefficient of those for untouched items: what is added to their appeal; then by what share their personal
term counts for more or less than others', their likeness, and their vintage."""
COEFFICIENTS = UNTOUCHED + 4
BOUNDS = torch.tensor(
    [
        *[[FLOOR, CEILING]] * SCALES,
        *[[-MOST_COUNTED, MOST_COUNTED]] * len(HALF_LIVES),
        *([-MOST_UNTOUCHED, MOST_UNTOUCHED], [-0.98, 2.0], [-0.98, 9.0], [-0.98, 9.0]),
    ],
    dtype=torch.float64,
)
"""Of each coefficient, lowest and highest."""
_TERMS = [0] * LENGTHS + list(range(1, SCALES - LENGTHS + 1))
"""Which term each scale is of: the first ones share one, which is the personal."""
TWOFOLD = ([0, *_TERMS[TASTE_SCALES]], _TERMS[LIKENESS_SCALES], _TERMS[VINTAGE_SCALES])
"""Terms that have other scales for untouched items: those of learned vectors, of likeness and of vintage."""
NEWTON_STEPS = 10
"""At most …"""
ENOUGH = 0.1
"""… for a step that moves no coefficient by more is the last."""


@dataclass
class Calibration:
    """The belief about the coefficients: its mean (C,), and what was learned about it (precision, (C, C))."""

    mean: Tensor = field(default_factory=lambda: (torch.arange(COEFFICIENTS) < SCALES).double())
    evidence: Tensor = field(default_factory=lambda: torch.zeros(COEFFICIENTS, COEFFICIENTS, dtype=torch.float64))

    @property
    def scales(self) -> Tensor:
        """The scales to serve, (S,) float32."""
        return self.mean[:SCALES].clamp(FLOOR, CEILING).float()

    @property
    def corrections(self) -> Corrections:
        """What becomes of items' own vectors."""
        appeal, *shares = self.mean[UNTOUCHED:].tolist()
        # the popularity's scale will be put on all of their appeal
        by_count = self.mean[SCALES:UNTOUCHED] / self.scales[POPULARITY_SCALE]
        untouched = Untouched(float(appeal / self.scales[POPULARITY_SCALE]), *(1 + share for share in shares))
        return Corrections(tuple(by_count.tolist()), untouched)

    def fade(self, events: int) -> None:
        """Trust what was learned less, now that so many events more have passed."""
        self.evidence *= 0.5 ** (events / HALF_LIFE)

    def fit(self, terms_BTN: Tensor, target_B: Tensor, allowed_BN: Tensor, length_B: Tensor, *, weight: float) -> None:
        """Maximise the posterior given these examples, each counted `weight` times.

        `terms_BTN` are unscaled terms of the score; the target is allowed whatever `allowed_BN` says of it.
        """
        if len(terms_BTN) == 0:
            return
        terms_BTN = terms_BTN.float().cpu()
        target_B, length_B = target_B.cpu(), length_B.cpu()
        allowed_BN = allowed_BN.cpu().scatter(1, target_B.unsqueeze(1), True)
        shared = torch.arange(LENGTHS, COEFFICIENTS)
        scale_BC = torch.cat((length_B.unsqueeze(1), shared.expand(len(length_B), -1)), dim=1)
        prior = self.evidence + PRIOR * torch.eye(COEFFICIENTS, dtype=torch.float64)
        theta, mean = self.mean.clone(), self.mean
        hessian = torch.zeros_like(prior)
        for _ in range(NEWTON_STEPS):
            slopes_BCN, score_BN = _score(terms_BTN, theta[scale_BC].float())
            chance_BN = score_BN.masked_fill_(~allowed_BN, -torch.inf).softmax(1)
            expected_BC = torch.einsum("bcn,bn->bc", slopes_BCN, chance_BN).double()
            second_BCC = torch.einsum("bcn,bn,bdn->bcd", slopes_BCN, chance_BN, slopes_BCN).double()
            own_BC = slopes_BCN[torch.arange(len(target_B)), :, target_B]
            covariance_BCC = second_BCC - expected_BC.unsqueeze(2) * expected_BC.unsqueeze(1)
            gradient = torch.zeros_like(theta)
            gradient.index_put_((scale_BC,), weight * (own_BC.double() - expected_BC), accumulate=True)
            hessian = torch.zeros_like(prior)
            hessian.index_put_(
                (scale_BC.unsqueeze(2).expand_as(second_BCC), scale_BC.unsqueeze(1).expand_as(second_BCC)),
                weight * covariance_BCC, accumulate=True,
            )  # fmt: skip
            step = torch.linalg.solve(prior + hessian, gradient - prior @ (theta - mean))
            before, theta = theta, (theta + step.clamp(-1, 1)).clamp(*BOUNDS.T)
            if float((theta - before).abs().max()) < ENOUGH:
                break
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


def _score(terms_BTN: Tensor, theta_BC: Tensor) -> tuple[Tensor, Tensor]:
    """What each coefficient of an example changes in the scores, (B, C, N), and the scores, (B, N)."""
    terms = terms_BTN.shape[1]
    untouched_B1N = terms_BTN[:, -1:]
    more = [(theta_BC[:, None, group] @ terms_BTN[:, group]) * untouched_B1N for group in TWOFOLD]
    slopes_BCN = torch.cat((terms_BTN, *more), dim=1)
    for number, group in enumerate(TWOFOLD):
        slopes_BCN[:, group] *= 1 + theta_BC[:, terms + number, None, None] * untouched_B1N
    return slopes_BCN, (theta_BC[:, None, :terms] @ slopes_BCN[:, :terms]).squeeze(1)
