"""What users want and what items are, in as few dimensions as the choices bear out: a part of the score.

A user takes next item i with probability ∝ f_i · exp⟨θ_u, v_i⟩ among those not taken before, where f_i is the item's
share of all choices, θ_u ~ N(0, I) and v_i ~ N(0, diag α): a factorisation of choices with the law of choice
(McFadden 1974) for its likelihood. All of it is inferred, with no rate that would have to suit a stream:

- θ_u by Newton's method and Laplace's approximation (`models.factor_reading`);
- v_i as a Gaussian with a precision a coordinate, by natural-gradient steps on whole histories of the users of each
  block (Hoffman, Blei, Wang & Paisley, "Stochastic variational inference", 2013; Khan & Lin, "Conjugate-computation
  variational inference", 2017);
- α by how large v is, so that dimensions which explain nothing vanish (Bishop, "Variational principal components",
  1999); each block the axes are turned and scaled to where users vary by 1 in each and items' coordinates are
  uncorrelated, which is what makes that quick (Qi & Jaakkola, "Parameter expanded variational Bayesian methods", 2007);
- where users of a block are likelier to have wanted something else in each stretch of time than the same throughout,
  each stretch has a θ of its own for the items to be learned by.

Unlike `models.cooccurrence` it knows that choices use items up, and how sure it is of anything; unlike the tower's
vectors it has no more dimensions than there is evidence for.

Shape suffixes: N items, S those of them that stand for all, R those that a block moves, B users, P places of the past
(newest first), E choices of all of some users, K dimensions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.event_log import LogView, Places
from models.factor_reading import Choices, FactorReading, Rivals, UserPosterior
from models.finite import all_finite
from models.past import KNOWN, WINDOW_ENDS, FirstChoices

Ints = NDArray[np.int64]

USERS = 512
"""Most users whose histories a block is learned by."""
STRETCH_ENDS = WINDOW_ENDS[2:]
"""Stretches of time within which wants may differ end after so many events of anybody; the last has no end."""
PASSES = 2
"""Steps of the items in a block."""
RATE = 0.2
"""Length of such a step, 1 being all the way to what the block alone says; less where the block holds less of all."""
VARIANCE = 0.3
"""α before anything was learned."""
LEAST_VARIANCE = 1e-4
"""α at least, so that a dimension may come back."""
SPREAD = 0.1
"""Standard deviation of the first items' coordinates: from 0 nothing would move."""


class Factors:
    """The belief about the items, and how it learns."""

    def __init__(self, dim: int, device: torch.device | str) -> None:
        self.mean = torch.zeros(0, dim, device=device)
        """v, (N, K); zeros of an item that nobody chose."""
        self.precision = self.mean.clone()
        """How well each coordinate is known, (N, K)."""
        self.variance = torch.full((dim,), VARIANCE, device=device)
        """α, (K,)."""
        self.counts = torch.zeros(0, dtype=torch.float64, device=device)
        """How often each item was chosen, as of the last block learned; decayed."""
        self._reading: FactorReading | None = None

    @property
    def reading(self) -> FactorReading:
        """The items as they are now."""
        if self._reading is None:
            self._reading = FactorReading(self.mean, self.precision, self.counts)
        return self._reading

    @property
    def finite(self) -> bool:
        """Whether all that is believed is finite."""
        return all(map(all_finite, (self.mean, self.precision, self.variance)))

    def grow(self, rows: int) -> None:
        """Append so many items that nobody chose."""
        size = self.mean.shape[1]
        self.mean = torch.cat((self.mean, self.mean.new_zeros(rows, size)))
        self.precision = torch.cat((self.precision, (1 / self.variance).expand(rows, size)))
        self.counts = torch.cat((self.counts, self.counts.new_zeros(rows)))
        self._reading = None

    def blank(self, rows: Tensor) -> None:
        """Forget rows."""
        self.mean[rows] = 0
        self.precision[rows] = 1 / self.variance
        self.counts[rows] = 0
        self._reading = None

    @torch.no_grad()
    def take(self, log: LogView, positions: Ints, counts_N: Tensor, generator: torch.Generator) -> None:
        """Learn by what the users of these events (ascending) chose until then; items were chosen `counts_N` times
        (decayed) by now."""
        size, total = self.mean.shape[1], float(counts_N.sum())
        if not size or total == 0:
            return
        self.counts = counts_N.clone()
        self._reading = None
        # at random, so that an item which nobody of a block chose is seldom, and then all the more, pushed away by it
        rivals = Rivals(counts_N, float(torch.rand(1, generator=generator, device=self.mean.device)))
        first, age_BP = _chosen(log, positions)
        # what nobody is expected to choose any more is left out: it would only be drawn to its users, never pushed away
        choices = rivals.choices(first)
        if not len(choices.row_E) or not self.finite:
            return
        if not self.mean.any():
            chosen_N1 = (counts_N > 0).unsqueeze(1)
            noise_NK = torch.randn(self.mean.shape, generator=generator, device=self.mean.device)
            self.mean = SPREAD * noise_NK * chosen_N1
        posterior = UserPosterior(self.mean, self.precision, rivals)
        theta_BK, precision_BKK = posterior(choices)
        if bool(precision_BKK.isfinite().all()) and self._turned(posterior, choices, age_BP, precision_BKK):
            # the items are learned by wants as they were at the time
            choices = rivals.choices(*first.apart(_stretches(age_BP[first.user_E, first.place_E])))
            theta_BK, precision_BKK = posterior(choices)
        if not bool(theta_BK.isfinite().all() and precision_BKK.isfinite().all()):
            return
        covariance_BKK = torch.linalg.inv(precision_BKK)
        turn_KK = self._turn(theta_BK, covariance_BKK)
        back_KK = torch.linalg.inv(turn_KK)
        theta_BK = theta_BK @ back_KK.T
        spread_BK = (back_KK @ covariance_BKK @ back_KK.T).diagonal(dim1=1, dim2=2)
        square_BK = theta_BK.square() + spread_BK
        share = min(1.0, len(choices.row_E) / total)
        touched_N = torch.zeros_like(counts_N, dtype=torch.bool)
        touched_N[choices.row_E] = touched_N[rivals.row_S] = True
        touched_R = torch.nonzero(touched_N)[:, 0]
        chosen_NK = torch.zeros_like(self.mean).index_add_(0, choices.row_E, theta_BK[choices.user_E])
        rate = min(RATE, share)
        for _ in range(PASSES):
            expected_BS = UserPosterior(self.mean, self.precision, rivals).expected(theta_BK, choices)
            gradient_NK = chosen_NK.index_add(0, rivals.row_S, expected_BS.T @ theta_BK, alpha=-1)
            fisher_NK = torch.zeros_like(self.mean).index_add_(0, rivals.row_S, expected_BS.T @ square_BK)
            mean_RK, precision_RK = self.mean[touched_R], self.precision[touched_R]
            precision_RK = torch.lerp(precision_RK, 1 / self.variance + fisher_NK[touched_R] / share, rate)
            step_RK = (gradient_NK[touched_R] / share - mean_RK / self.variance) / precision_RK
            self.mean[touched_R] = mean_RK + rate * step_RK.clamp(-1, 1)
            self.precision[touched_R] = precision_RK
        there_N = counts_N > 0
        found_K = (self.mean[there_N].square() + 1 / self.precision[there_N]).mean(0)
        self.variance = torch.lerp(self.variance, found_K, rate / 4).clamp(min=LEAST_VARIANCE)

    @staticmethod
    def _turned(posterior: UserPosterior, choices: Choices, age_BP: Ints, precision_BKK: Tensor) -> bool:
        age_E = age_BP[choices.user_E.cpu().numpy(), choices.place_E.cpu().numpy()]
        stretch_E = torch.from_numpy(_stretches(age_E)).to(precision_BKK.device)
        return posterior.evidence_of_turns(choices, stretch_E, precision_BKK) > 0

    def _turn(self, theta_BK: Tensor, covariance_BKK: Tensor) -> Tensor:
        """Turn and scale the items to where users vary by 1; returns by what (K, K), v ← v A."""
        second_KK = (theta_BK.T @ theta_BK + covariance_BKK.sum(0)).double() / len(theta_BK)
        power_K, axes_KK = torch.linalg.eigh(second_KK)
        scale_KK = (axes_KK * power_K.clamp(min=1e-6).sqrt()) @ axes_KK.T
        scaled_NK = self.mean.double() @ scale_KK
        _, principal_KK = torch.linalg.eigh(scaled_NK.T @ scaled_NK)
        turn_KK: Tensor = (scale_KK @ principal_KK).float()
        self.mean = self.mean @ turn_KK
        self.precision = 1 / ((1 / self.precision) @ turn_KK.square())
        self.variance = (self.variance @ turn_KK.square()).clamp(min=LEAST_VARIANCE)
        return turn_KK

    def state(self) -> dict[str, Tensor]:
        """A copy, on the CPU."""
        stored = {"mean": self.mean, "precision": self.precision, "variance": self.variance, "counts": self.counts}
        return {name: value.cpu().clone() for name, value in stored.items()}

    def load(self, state: dict[str, Any]) -> None:
        """Take over a copied state."""
        device = self.mean.device
        self.mean, self.precision, self.variance, self.counts = (
            state[name].to(device).clone() for name in ("mean", "precision", "variance", "counts")
        )
        self._reading = None


def _chosen(log: LogView, positions: Ints) -> tuple[FirstChoices, Ints]:
    """What the users of these events had chosen by the last of theirs, and how long ago each was, in events, (B, P); of
    some users, where they are many."""
    chosen = positions[(log.weight[positions] > 0) & (log.item[positions] >= 0) & (log.user[positions] >= 0)]
    _, place = np.unique(log.user[chosen][::-1], return_index=True)
    last_B = np.sort(chosen[::-1][place])
    if len(last_B) > USERS:
        last_B = last_B[np.linspace(0, len(last_B) - 1, USERS).round().astype(np.int64)]
    past_BP = log.histories(last_B, KNOWN)
    places = Places(past_BP)
    item_BP = places.of(log.item, -1, np.int64)
    first = FirstChoices.of(item_BP, (item_BP >= 0) & (places.of(log.weight, 0) > 0))
    return first, positions[-1:].max(initial=0) - past_BP


def _stretches(age_E: Ints) -> Ints:
    """In which stretch of time each of these choices was made."""
    return np.searchsorted(STRETCH_ENDS, age_E, side="right")
