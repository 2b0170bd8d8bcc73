"""How much each term of the score is to be trusted, what newness and counts at each half-life add, and untouched items.

All of it is learned from events that the weights have not learned from yet.

A Gaussian belief about the scales, and about what items that nobody has touched get more or less of, is carried from
phase to phase: each phase's softmax likelihood is maximised with that belief as the prior (Laplace approximation, by
Fisher scoring), and the belief fades by a half-life in events.

Shape suffixes: B examples, N candidates, T terms of each example (personal, bias, popularity, likeness and vintage at
each pace, co-occurrence, the fold-in on it by windows of age, that on learned vectors, factors and departures from them
by windows, newness and log counts at each half-life, and 1 for an untouched item), S scales, C coefficients: the
scales, then those of newness and of log counts, then what untouched items get.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from models.histories import LENGTHS
from models.popularity import HALF_LIVES, NEWNESS_HALF_LIVES, WEIGHED
from models.scorer import (
    LIKENESS_SCALES,
    POPULARITY_SCALE,
    SCALES,
    TASTE_SCALES,
    VINTAGE_SCALES,
    Corrections,
    Untouched,
    neutral_scales,
)

HALF_LIFE = 2_500.0
"""Events after which a phase's evidence counts half."""
PRIOR = 5.0
"""Precision of the initial belief that every term is as it is made and nothing is added."""
FLOOR, CEILING = 0.02, 10.0
"""Bounds of the scales."""
MOST_UNTOUCHED = 8.0
"""Bound of what untouched items' appeal is raised by, and that of new ones by each newness, up or down; a factor of e⁸
in how often they are chosen."""
MOST_COUNTED = 2.0
"""Bound of what a log count at one half-life adds, up or down."""
UNTOUCHED = SCALES + WEIGHED
"""The first coefficient of those for untouched items: what is added to their appeal; then by what share their personal
term counts for more or less than others', their likeness, and their vintage."""
COEFFICIENTS = UNTOUCHED + 4
BOUNDS = torch.tensor(
    [
        *[[FLOOR, CEILING]] * SCALES,
        *[[-MOST_UNTOUCHED, MOST_UNTOUCHED]] * len(NEWNESS_HALF_LIVES),
        *[[-MOST_COUNTED, MOST_COUNTED]] * len(HALF_LIVES),
        *([-MOST_UNTOUCHED, MOST_UNTOUCHED], [-0.98, 2.0], [-0.98, 9.0], [-0.98, 9.0]),
    ],
    dtype=torch.float64,
)
"""Of each coefficient, lowest and highest."""
TERMS = SCALES - LENGTHS + 1 + WEIGHED + 1
"""Terms of an example: the scales but for those of length have one each."""


def _terms_of(scales: slice) -> slice:
    return slice(scales.start - LENGTHS + 1, scales.stop - LENGTHS + 1)


TWOFOLD = (
    (slice(0, 1), _terms_of(TASTE_SCALES)),
    (_terms_of(LIKENESS_SCALES),),
    (_terms_of(VINTAGE_SCALES),),
)
"""Terms that have other scales for untouched items: those of learned vectors, of likeness and of vintage."""
CHUNK = 32
"""Examples looked at together: so few that what is made of their terms stays in the processor's cache."""
NEWTON_STEPS = 10
"""At most; one that moves the coefficients no further than they are uncertain by is the last."""
LONGEST_STEP = 1.0
"""No coefficient moves further in one: the likelihood is no parabola that far."""


@dataclass(frozen=True)
class Calibration:
    """The belief about the coefficients: its mean (C,), and what was learned about it (precision, (C, C))."""

    mean: Tensor = field(
        default_factory=lambda: torch.cat((neutral_scales().clamp(FLOOR), torch.zeros(COEFFICIENTS - SCALES))).double()
    )
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
        weighed = self.mean[SCALES:UNTOUCHED] / self.scales[POPULARITY_SCALE]
        untouched = Untouched(float(appeal / self.scales[POPULARITY_SCALE]), *(1 + share for share in shares))
        return Corrections(tuple(weighed.tolist()), untouched)

    def faded(self, events: int, half_life: float = HALF_LIFE) -> Calibration:
        """The same belief, trusted less now that so many events more have passed."""
        return replace(self, evidence=self.evidence * 0.5 ** (events / half_life))

    def of_scales(self, half_life: float) -> Calibration:
        """The belief about the scales alone, of the evidence of so short a memory; all else has been put on items."""
        mean, evidence = torch.zeros_like(self.mean), torch.zeros_like(self.evidence)
        mean[:SCALES] = self.mean[:SCALES]
        evidence[:SCALES, :SCALES] = self.evidence[:SCALES, :SCALES] * (half_life / HALF_LIFE)
        return Calibration(mean, evidence)

    def after(self, served: Calibration, now: Calibration) -> Calibration:
        """The belief about scales that began from those of `served`, for items that are made by `now`.

        Corrections of items are in units of the popularity's scale, so that it is how far it has moved that goes on.
        """
        by = float(now.scales[POPULARITY_SCALE] / served.scales[POPULARITY_SCALE])
        mean, evidence = self.mean.clone(), self.evidence.clone()
        mean[POPULARITY_SCALE] = (mean[POPULARITY_SCALE] * by).clamp(FLOOR, CEILING)
        evidence[POPULARITY_SCALE] /= by
        evidence[:, POPULARITY_SCALE] /= by
        return Calibration(mean, evidence)

    def scores(self, terms_TBN: Tensor, length_B: Tensor) -> Tensor:
        """Scores (B, N) of examples with these terms and buckets of the length of their histories."""
        return _score(terms_TBN, self.mean[length_B].float(), self.mean[LENGTHS - 1 :].float())[1]

    def fitted(
        self,
        terms_TBN: Tensor,
        target_B: Tensor,
        allowed_BN: Tensor,
        length_B: Tensor,
        *,
        offset_N: Tensor | None = None,
    ) -> Calibration:
        """The belief after these examples, which maximises their posterior.

        `terms_TBN` are unscaled terms of the score; the target is allowed whatever `allowed_BN` says of it. `offset_N`
        is added to all scores of a candidate: the log of how many it stands for.
        """
        if not len(target_B):
            return self
        terms_TBN = terms_TBN.float().cpu()
        target_B, length_B = target_B.cpu(), length_B.cpu()
        offset_N = torch.zeros(terms_TBN.shape[2]) if offset_N is None else offset_N.float().cpu()
        hidden_BN = ~allowed_BN.cpu().scatter(1, target_B.unsqueeze(1), True)
        prior = self.evidence + PRIOR * torch.eye(COEFFICIENTS, dtype=torch.float64)
        theta, mean = self.mean.clone(), self.mean
        hessian = torch.zeros_like(prior)
        for _ in range(NEWTON_STEPS):
            gradient, hessian = torch.zeros_like(theta), torch.zeros_like(prior)
            for at in range(0, len(target_B), CHUNK):
                part = slice(at, at + CHUNK)
                length = length_B[part]
                slopes_CBN, score_BN = _score(terms_TBN[:, part], theta[length].float(), theta[LENGTHS - 1 :].float())
                chance_BN = score_BN.add_(offset_N).masked_fill_(hidden_BN[part], -torch.inf).softmax(1)
                _add_derivatives(gradient, hessian, slopes_CBN, chance_BN, target_B[part], length)
            room_C2 = (BOUNDS - theta.unsqueeze(1)).clamp(-LONGEST_STEP, LONGEST_STEP)
            precision = prior + hessian
            step = _within(room_C2, precision, gradient - prior @ (theta - mean))
            theta = theta + step
            # what was cut short may have far to go, however little is known of it yet
            if float(step.abs().max()) < LONGEST_STEP and float(step @ precision @ step) < COEFFICIENTS:
                break
        if not bool(theta.isfinite().all()):
            return self
        return Calibration(theta, self.evidence + hessian)

    def state(self) -> dict[str, Tensor]:
        """A copy of the belief."""
        return {"mean": self.mean.clone(), "evidence": self.evidence.clone()}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> Calibration:
        """The belief that `state` copied."""
        return cls(state["mean"].clone(), state["evidence"].clone())


def _within(room_C2: Tensor, curvature_CC: Tensor, gradient_C: Tensor) -> Tensor:
    """Newton's step (C,) where each coordinate has so much room, down and up: the best in the parabola's box.

    By an active set: coordinates that want more room are held there while the others are solved for anew, and let go
    where they want back (Nocedal & Wright, "Numerical optimization", 2006, section 16.7); the best step met, should
    that not come to an end.
    """
    low_C, high_C = room_C2.T
    step_C, held_C = torch.zeros_like(gradient_C), torch.zeros_like(gradient_C, dtype=torch.bool)
    best_C, most = step_C, -math.inf
    for _ in range(2 * len(gradient_C)):
        while True:
            free_C = ~held_C
            rest_C = gradient_C - curvature_CC @ (step_C * held_C)
            step_C = step_C.clone()
            step_C[free_C] = torch.linalg.solve(curvature_CC[free_C][:, free_C], rest_C[free_C])
            inside_C = step_C.clamp(low_C, high_C)
            beyond_C = (inside_C != step_C) & free_C
            step_C = inside_C
            if not bool(beyond_C.any()):
                break
            held_C = held_C | beyond_C
        slope_C = gradient_C - curvature_CC @ step_C
        gain = float(step_C @ (gradient_C + slope_C)) / 2
        if not gain > most:
            break
        best_C, most = step_C, gain
        back_C = held_C & torch.where(step_C <= low_C, slope_C > 0, slope_C < 0)
        if not bool(back_C.any()):
            break
        held_C = held_C & ~back_C
    return best_C if most > -math.inf else step_C  # which is not finite then


def _score(terms_TBN: Tensor, personal_B: Tensor, theta_C: Tensor) -> tuple[Tensor, Tensor]:
    """What each coefficient of an example changes in the scores, (C, B, N), and the scores, (B, N).

    The first coefficient, that of the personal term, is `personal_B`, and the first of `theta_C` stands for it only.
    """
    terms, untouched_BN = len(terms_TBN), terms_TBN[-1]
    slopes_CBN = terms_TBN.new_empty(terms + len(TWOFOLD), *untouched_BN.shape)
    slopes_CBN[:terms] = terms_TBN

    def total(slopes_GBN: Tensor, group: slice) -> Tensor:
        if group.start == 0:
            rest_BN = torch.tensordot(theta_C[1 : group.stop], slopes_GBN[1:], dims=1)
            return torch.addcmul(rest_BN, personal_B.unsqueeze(1), slopes_GBN[0])
        found_BN: Tensor = torch.tensordot(theta_C[group], slopes_GBN, dims=1)
        return found_BN

    for number, groups in enumerate(TWOFOLD, start=terms):
        whole_BN = torch.stack([total(terms_TBN[group], group) for group in groups]).sum(0)
        torch.mul(whole_BN, untouched_BN, out=slopes_CBN[number])
        factor_BN = 1 + theta_C[number] * untouched_BN
        for group in groups:
            slopes_CBN[group] *= factor_BN
    return slopes_CBN, total(slopes_CBN[:terms], slice(0, terms))


def _add_derivatives(
    gradient: Tensor, hessian: Tensor, slopes_CBN: Tensor, chance_BN: Tensor, target_B: Tensor, length_B: Tensor
) -> None:
    """Adds the gradient of the examples' log likelihood by coefficient, and minus its Hessian, to those given."""
    weighted_CBN = slopes_CBN * chance_BN
    expected_CB = weighted_CBN.sum(2).double()
    beyond_CB = slopes_CBN[:, torch.arange(len(target_B)), target_B].double() - expected_CB
    gradient.index_add_(0, length_B, beyond_CB[0])
    gradient[LENGTHS:] += beyond_CB[1:].sum(1)
    # over all examples at once, but for the personal term: each has a scale by its length there
    second_CC = (weighted_CBN[1:].flatten(1) @ slopes_CBN[1:].flatten(1).T).double()
    with_personal_CB = torch.einsum("bn,cbn->cb", weighted_CBN[0], slopes_CBN).double() - expected_CB[0] * expected_CB
    by_length = hessian.new_zeros(LENGTHS, len(slopes_CBN)).index_add_(0, length_B, with_personal_CB.T)
    hessian[LENGTHS:, LENGTHS:] += second_CC - expected_CB[1:] @ expected_CB[1:].T
    hessian[range(LENGTHS), range(LENGTHS)] += by_length[:, 0]
    hessian[:LENGTHS, LENGTHS:] += by_length[:, 1:]
    hessian[LENGTHS:, :LENGTHS] += by_length[:, 1:].T
