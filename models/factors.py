# ruff: noqa: N815 (shape suffixes)
"""What users want and what items are, in as few dimensions as the choices bear out: a part of the score.

A user takes next item i with probability ∝ f_i · exp⟨θ_u, v_i⟩ among those not taken before, where f_i is the item's
share of all choices, θ_u ~ N(0, I) and v_i ~ N(0, diag α): a factorisation of choices with the law of choice
(McFadden 1974) for its likelihood. All of it is inferred, with no rate that would have to suit a stream:

- θ_u by Newton's method and Laplace's approximation, from all that is known of what the user chose, and the items'
  uncertainty, which is a ridge on θ in the dimensions that little is known of; and, where wants may have turned, by how
  much the choices of each window of age depart from it;
- v_i as a Gaussian with a precision a coordinate, by natural-gradient steps on whole histories of the users of each
  block (Hoffman, Blei, Wang & Paisley, "Stochastic variational inference", 2013; Khan & Lin, "Conjugate-computation
  variational inference", 2017);
- α by how large v is, so that dimensions which explain nothing vanish (Bishop, "Variational principal components",
  1999); each block the axes are turned and scaled to where users vary by 1 in each and items' coordinates are
  uncorrelated, which is what makes that quick (Qi & Jaakkola, "Parameter expanded variational Bayesian methods", 2007).

Unlike `models.cooccurrence` it knows that choices use items up, and how sure it is of anything; unlike the tower's
vectors it has no more dimensions than there is evidence for.

Shape suffixes: N items, S those of them that stand for all, B users, P places of the past (newest first), E choices of
all of some users, W windows of age, K dimensions, H pairs of two of them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from models.event_log import LogView
from models.finite import all_finite
from models.past import KNOWN, WINDOW_ENDS, WINDOWS, sorted_items

Ints = NDArray[np.int64]

ITEMS = 1_024
"""Beyond so many items that are chosen now and then …"""
STAND_INS = 512
"""… the items at so many places in their shares stand for all."""
USERS = 512
"""Most users whose histories a block is learned by."""
NEWTON_STEPS = 3
LONGEST_STEP = 2.0
"""θ moves no further in one; where a step is a user's first, the likelihood is far from its parabola."""
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
BLOCK_USERS = 256
"""Users inferred at once."""


class _Choices(NamedTuple):
    """What is known of what some users chose, one user's after another's, newest first."""

    user_E: Tensor
    place_E: Tensor
    """Where in the user's past."""
    row_E: Tensor
    count_B1: Tensor


class FactorReading:
    """Items as they are now, from which users are inferred."""

    def __init__(self, mean_NK: Tensor, precision_NK: Tensor, counts_N: Tensor, start: float = 0.5) -> None:
        """Of items with these vectors, which are known so well and were chosen so often (decayed or not). `start`, from
        0 to 1, decides which ones stand for all where they are many."""
        self._mean_NK = mean_NK
        row_S, share_S = _stand_ins(counts_N, start)
        self.row_S = row_S
        """Items that stand for all."""
        self._log_share_S = share_S.log()
        self._mean_SK = mean_NK[row_S]
        self._variance_SK = 1 / precision_NK[row_S]
        self._there_N = counts_N > 0
        self._place_N = row_S.new_full((len(mean_NK) + 1,), -1)
        self._place_N[row_S] = torch.arange(len(row_S), device=row_S.device)
        size = mean_NK.shape[1]
        self._upper = torch.triu_indices(size, size, device=row_S.device)
        first, second = self._upper
        self._products_SH = self._mean_SK[:, first] * self._mean_SK[:, second]

    def __call__(self, row_BP: Tensor) -> Tensor:
        """θ (B, K) of users who chose these items (rows, newest first, each once, -1 for none), zeros where that is
        nothing. Items whose counts have run out say nothing: there is no share by which they were to be expected."""
        return self.posterior(row_BP)[0]

    def by_window(self, row_BP: Tensor, age_BP: Tensor) -> Tensor:
        """θ, then by how much it would move for what was chosen in each window of age less what it expects there;
        (B, 1 + W, K). `age_BP`: how many events ago each was, ascending."""
        if not len(self.row_S) or not row_BP.shape[1]:
            return self._mean_NK.new_zeros(len(row_BP), 1 + WINDOWS, self._mean_NK.shape[1])
        pairs = zip(torch.split(row_BP, BLOCK_USERS), torch.split(age_BP, BLOCK_USERS), strict=True)
        return torch.cat([self._by_window(*pair) for pair in pairs])

    def _by_window(self, row_BP: Tensor, age_BP: Tensor) -> Tensor:
        choices = self._choices(row_BP)
        available_BS = self._available(choices)
        theta_BK, precision_BKK = self._posterior(choices, available_BS)
        mean_BK = self._chances(theta_BK, available_BS, choices.count_B1) @ self._mean_SK
        age_E = age_BP[choices.user_E, choices.place_E]
        window_E = torch.bucketize(age_E, torch.tensor(WINDOW_ENDS, device=age_BP.device), right=True)
        # newest first, so that one window's stand beside one another
        count_X = torch.bincount(choices.user_E * WINDOWS + window_E, minlength=len(row_BP) * WINDOWS)
        chosen_XK = functional.embedding_bag(choices.row_E, self._mean_NK, count_X.cumsum(0) - count_X, mode="sum")
        count_BW1 = count_X.view(len(row_BP), WINDOWS, 1)
        expected_BWK = count_BW1 / choices.count_B1.clamp(min=1).unsqueeze(2) * mean_BK.unsqueeze(1)
        beyond_BWK = chosen_XK.view(expected_BWK.shape) - expected_BWK
        # the precision is symmetric
        departure_BWK = torch.linalg.solve(precision_BKK, beyond_BWK, left=False)
        return torch.cat((theta_BK.unsqueeze(1), departure_BWK), dim=1)

    def posterior(self, row_BP: Tensor) -> tuple[Tensor, Tensor]:
        """θ (B, K) and its precision (B, K, K)."""
        size = self._mean_SK.shape[1]
        if not len(self.row_S):
            eye_KK = torch.eye(size, device=row_BP.device)
            return eye_KK.new_zeros(len(row_BP), size), eye_KK.expand(len(row_BP), size, size)
        choices = [self._choices(part_BP) for part_BP in torch.split(row_BP, BLOCK_USERS)]
        thetas, precisions = zip(*(self._posterior(part, self._available(part)) for part in choices), strict=True)
        return torch.cat(thetas), torch.cat(precisions)

    def chances(self, theta_BK: Tensor, row_BP: Tensor) -> Tensor:
        """How many of each user's choices were to be expected of each item that stands for all, (B, S)."""
        choices = self._choices(row_BP)
        return self._chances(theta_BK, self._available(choices), choices.count_B1)

    def _choices(self, row_BP: Tensor) -> _Choices:
        known_BP = (row_BP >= 0) & (row_BP < len(self._mean_NK))
        known_BP &= self._there_N[torch.where(known_BP, row_BP, 0)]
        user_E, place_E = torch.nonzero(known_BP, as_tuple=True)
        return _Choices(user_E, place_E, row_BP[user_E, place_E], known_BP.sum(1, keepdim=True))

    def _available(self, choices: _Choices) -> Tensor:
        """Log of the share of a user's choices at which each of the items was not yet taken (B, S)."""
        user_E, _, row_E, count_B1 = choices
        # the oldest was there for its own choice only, the newest until the end
        count_B = count_B1.squeeze(1)
        before_E = count_B.cumsum(0)[user_E] - torch.arange(len(user_E), device=user_E.device)
        share_E = before_E / count_B[user_E]
        log_BS = self._log_share_S.repeat(len(count_B1), 1)
        place_E = self._place_N[row_E]
        there_E = place_E >= 0
        log_BS[user_E[there_E], place_E[there_E]] += share_E[there_E].clamp(min=1e-6).log()
        return log_BS

    def _chances(self, theta_BK: Tensor, available_BS: Tensor, count_B1: Tensor) -> Tensor:
        return count_B1 * torch.addmm(available_BS, theta_BK, self._mean_SK.T).softmax(1)

    def _posterior(self, choices: _Choices, available_BS: Tensor) -> tuple[Tensor, Tensor]:
        count_B1 = choices.count_B1
        count_B = count_B1.squeeze(1)
        sum_BK = functional.embedding_bag(choices.row_E, self._mean_NK, count_B.cumsum(0) - count_B, mode="sum")
        size = sum_BK.shape[1]
        theta_BK, precision_BKK = torch.zeros_like(sum_BK), sum_BK.new_zeros(len(sum_BK), size, size)
        for _ in range(NEWTON_STEPS):
            expected_BS = self._chances(theta_BK, available_BS, count_B1)
            mean_BK = expected_BS @ self._mean_SK
            ridge_BK = 1 + expected_BS @ self._variance_SK
            square_BH = expected_BS @ self._products_SH
            first, second = self._upper
            precision_BKK[:, first, second] = square_BH
            precision_BKK[:, second, first] = square_BH
            precision_BKK -= mean_BK.unsqueeze(2) * (mean_BK / count_B1.clamp(min=1)).unsqueeze(1)
            precision_BKK += torch.diag_embed(ridge_BK)
            gradient_BK = sum_BK - mean_BK - ridge_BK * theta_BK
            step_BK = torch.linalg.solve(precision_BKK, gradient_BK)
            length_B1 = step_BK.norm(dim=1, keepdim=True)
            theta_BK = theta_BK + step_BK * (LONGEST_STEP / length_B1.clamp(min=LONGEST_STEP))
        return theta_BK, precision_BKK


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
        row_BP = torch.from_numpy(_histories_of(log, positions)).to(self.mean.device)
        # what nobody is expected to choose any more would only be drawn to its users, and never pushed away
        row_BP = torch.where((row_BP >= 0) & (counts_N[row_BP] > 0), row_BP, -1)
        if not bool((row_BP >= 0).any()) or not self.finite:
            return
        if not self.mean.any():
            chosen_N1 = (counts_N > 0).unsqueeze(1)
            noise_NK = torch.randn(self.mean.shape, generator=generator, device=self.mean.device)
            self.mean = SPREAD * noise_NK * chosen_N1
        # at random, so that an item which nobody of a block chose is seldom, and then all the more, pushed away by it
        start = float(torch.rand(1, generator=generator, device=self.mean.device))
        reading = FactorReading(self.mean, self.precision, counts_N, start)
        theta_BK, precision_BKK = reading.posterior(row_BP)
        if not bool(theta_BK.isfinite().all() and precision_BKK.isfinite().all()):
            return
        covariance_BKK = torch.linalg.inv(precision_BKK)
        turn_KK = self._turn(theta_BK, covariance_BKK)
        back_KK = torch.linalg.inv(turn_KK)
        theta_BK = theta_BK @ back_KK.T
        spread_BK = (back_KK @ covariance_BKK @ back_KK.T).diagonal(dim1=1, dim2=2)
        square_BK = theta_BK.square() + spread_BK
        known_BP = row_BP >= 0
        share = min(1.0, int(known_BP.sum()) / total)
        row_E, user_E = row_BP[known_BP], torch.nonzero(known_BP)[:, 0]
        touched_R = torch.unique(torch.cat((row_E, reading.row_S)))
        chosen_NK = torch.zeros_like(self.mean).index_add_(0, row_E, theta_BK[user_E])
        rate = min(RATE, share)
        for _ in range(PASSES):
            reading = FactorReading(self.mean, self.precision, counts_N, start)
            expected_BS, row_S = reading.chances(theta_BK, row_BP), reading.row_S
            gradient_NK = chosen_NK.index_add(0, row_S, expected_BS.T @ theta_BK, alpha=-1)
            fisher_NK = torch.zeros_like(self.mean).index_add_(0, row_S, expected_BS.T @ square_BK)
            mean_RK, precision_RK = self.mean[touched_R], self.precision[touched_R]
            precision_RK = torch.lerp(precision_RK, 1 / self.variance + fisher_NK[touched_R] / share, rate)
            step_RK = (gradient_NK[touched_R] / share - mean_RK / self.variance) / precision_RK
            self.mean[touched_R] = mean_RK + rate * step_RK.clamp(-1, 1)
            self.precision[touched_R] = precision_RK
        there_N = counts_N > 0
        found_K = (self.mean[there_N].square() + 1 / self.precision[there_N]).mean(0)
        self.variance = torch.lerp(self.variance, found_K, rate / 4).clamp(min=LEAST_VARIANCE)

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


def first_choices(item_BP: Ints, weight_BP: NDArray[np.float32]) -> Ints:
    """The items of pasts (newest first) that were chosen, each where it was chosen first; -1 for all else."""
    chosen_BP = np.where((item_BP >= 0) & (weight_BP > 0), item_BP, -1)
    item_BP, place_BP = sorted_items(chosen_BP)
    # an item's places are beside one another, and the last of them is the oldest
    item_BP[:, :-1][item_BP[:, :-1] == item_BP[:, 1:]] = -1
    np.put_along_axis(chosen_BP, place_BP, item_BP, axis=1)
    return chosen_BP


def _histories_of(log: LogView, positions: Ints) -> Ints:
    """What the users of these events had chosen by the last of theirs, (B, P); of some users, where they are many."""
    chosen = positions[(log.weight[positions] > 0) & (log.item[positions] >= 0) & (log.user[positions] >= 0)]
    _, place = np.unique(log.user[chosen][::-1], return_index=True)
    last_B = np.sort(chosen[::-1][place])
    if len(last_B) > USERS:
        last_B = last_B[np.linspace(0, len(last_B) - 1, USERS).round().astype(np.int64)]
    past_BP = log.histories(last_B, KNOWN)
    there_BP = past_BP >= 0
    item_BP = np.where(there_BP, log.item[past_BP], -1).astype(np.int64)
    return first_choices(item_BP, np.where(there_BP, log.weight[past_BP], np.nan))


def _stand_ins(counts_N: Tensor, start: float) -> tuple[Tensor, Tensor]:
    """Items that stand for all and for which share of the choices each: all that are chosen now and then, or else those
    at evenly spaced places in their shares (systematic sampling; Madow 1949)."""
    there_R = torch.nonzero(counts_N > 0).squeeze(1)
    share_R = counts_N[there_R] / counts_N.sum()
    if len(there_R) <= ITEMS:
        return there_R, share_R.float()
    at_S = (torch.arange(STAND_INS, device=counts_N.device, dtype=share_R.dtype) + start) / STAND_INS
    place_S, times_S = torch.unique(torch.searchsorted(share_R.cumsum(0), at_S), return_counts=True)
    return there_R[place_S.clamp(max=len(there_R) - 1)], times_S.float() / STAND_INS
