# ruff: noqa: N815 (shape suffixes)
"""What users want, inferred from what they chose and from what items are (`models.factors`).

θ_u by Newton's method and Laplace's approximation, from all that is known of what the user chose, and the items'
uncertainty, which is a ridge on θ in the dimensions that little is known of; and, where wants may have turned, by how
much the choices of each window of age depart from it.

Shape suffixes: N items, S those of them that stand for all, B users, P places of the past (newest first), E choices of
all of some users, H those made before, W windows of age, G stretches of time, X users' stretches or windows, K
dimensions, R those of them that have not vanished, T pairs of two of them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from models.past import WINDOW_ENDS, WINDOWS, FirstChoices

Ints = NDArray[np.int64]

ITEMS = 1_024
"""Beyond so many items that are chosen now and then …"""
STAND_INS = 512
"""… the items at so many places in their shares stand for all."""
NEWTON_STEPS = 3
LONGEST_STEP = 2.0
"""θ moves no further in one; where a step is a user's first, the likelihood is far from its parabola."""
NEGLIGIBLE = 1e-6
"""A dimension in which no item's coordinate is more has vanished: users are not read in it."""
LEAST_SHARE = 1e-6
"""Of its user's choices an item was there for so many at least."""
UNDERFLOW = 1e-20
"""Products of two coordinates that are less are 0."""
BLOCK_USERS = 256
"""Users read at once."""


class Choices(NamedTuple):
    """What is known of what some users chose, one user's after another's, newest first, and among what."""

    user_E: Tensor
    place_E: Tensor
    """Where in the user's past."""
    row_E: Tensor
    count_B1: Tensor
    available_BS: Tensor
    """Log of each item's share of what all choose, times the share of the user's choices at which it was not taken."""


class Rivals:
    """The items that a choice is expected among, and how often all choose each."""

    def __init__(self, counts_N: Tensor, start: float = 0.5) -> None:
        """Of items that were chosen so often (decayed or not). `start`, from 0 to 1, decides which ones stand for all
        where they are many."""
        self.row_S, share_S = _stand_ins(counts_N, start)
        """Rows of the items that stand for all."""
        self._log_share_S = share_S.log()
        self._there_N = torch.cat((counts_N > 0, counts_N.new_zeros(1, dtype=torch.bool)))
        self._place_N = self.row_S.new_full((len(counts_N),), -1)
        self._place_N[self.row_S] = torch.arange(len(self.row_S), device=self.row_S.device)

    def choices(self, first: FirstChoices, had: tuple[Ints, Ints] | None = None) -> Choices:
        """Of users who chose these items, and could not choose what they `had` (users and known items). Items whose
        counts have run out say nothing: there is no share by which they were to be expected."""
        found = (torch.from_numpy(one).to(self.row_S.device) for one in (first.user_E, first.place_E, first.item_E))
        user_E, place_E, row_E = found
        known_E = self._there_N[row_E.clamp(max=len(self._place_N))]
        if not bool(known_E.all()):
            user_E, place_E, row_E = (one[torch.nonzero(known_E)[:, 0]] for one in (user_E, place_E, row_E))
        count_B = torch.bincount(user_E, minlength=first.users)
        # the oldest was there for its own choice only, the newest until the end
        before_E = count_B.cumsum(0)[user_E] - torch.arange(len(user_E), device=user_E.device)
        log_E = (before_E.float() / count_B.float()[user_E]).clamp(min=LEAST_SHARE).log()
        rival_E = self._place_N[row_E]
        available_BS = self._log_share_S.repeat(len(count_B), 1)
        cell_E = user_E * available_BS.shape[1] + rival_E
        if len(self.row_S) < len(self._place_N):
            there_E = torch.nonzero(rival_E >= 0)[:, 0]
            cell_E, log_E = cell_E[there_E], log_E[there_E]
        available_BS.view(-1).scatter_add_(0, cell_E, log_E)
        if had is not None:
            user_H, row_H = (torch.from_numpy(one).to(self.row_S.device) for one in had)
            rival_H = self._place_N[row_H]
            there_H = torch.nonzero(rival_H >= 0)[:, 0]
            available_BS[user_H[there_H], rival_H[there_H]] += math.log(LEAST_SHARE)
        return Choices(user_E, place_E, row_E, count_B.unsqueeze(1), available_BS)


class UserPosterior:
    """θ of users, given what items are."""

    def __init__(self, mean_NK: Tensor, precision_NK: Tensor, rivals: Rivals) -> None:
        """Of items with these vectors, which are known so well."""
        self._mean_NK = mean_NK
        self._mean_SK = mean_NK[rivals.row_S]
        self._variance_SK = 1 / precision_NK[rivals.row_S]
        size = mean_NK.shape[1]
        self._upper = torch.triu_indices(size, size, device=mean_NK.device)
        first, second = self._upper
        products_ST = self._mean_SK[:, first] * self._mean_SK[:, second]
        # of dimensions that have vanished they would be denormal, which makes sums over them six times slower
        self._products_ST = torch.where(products_ST.abs() < UNDERFLOW, 0.0, products_ST)

    def expected(self, theta_BK: Tensor, choices: Choices) -> Tensor:
        """How many of each user's choices were to be expected of each item that stands for all, (B, S)."""
        return choices.count_B1 * torch.addmm(choices.available_BS, theta_BK, self._mean_SK.T).softmax(1)

    def expected_sum(self, theta_BK: Tensor, choices: Choices) -> Tensor:
        """The sum of these items' vectors, (B, K)."""
        return self.expected(theta_BK, choices) @ self._mean_SK

    def chosen_sum(self, choices: Choices, count_X: Tensor) -> Tensor:
        """The sums (X, K) of the vectors of what was chosen, so many one after another at a time."""
        start_X = count_X.cumsum(0) - count_X
        return torch.as_tensor(functional.embedding_bag(choices.row_E, self._mean_NK, start_X, mode="sum"))

    def evidence_of_turns(self, choices: Choices, stretch_E: Tensor, precision_BKK: Tensor) -> float:
        """How much likelier, log of the odds by Laplace's approximation, these choices are where each user wants
        something else in each stretch of time (numbers) than where all want the same throughout.

        Where θ_u + d with d ~ N(0, I) is wanted in a stretch, rather than θ_u, whose precision is given. θ_u stays as
        it is, and each d pays for itself though they add up to nothing: this is cautious, less than the odds are.
        """
        users, size = precision_BKK.shape[:2]
        stretches = int(stretch_E.max()) + 1 if len(stretch_E) else 1
        count_X = torch.bincount(choices.user_E * stretches + stretch_E, minlength=users * stretches)
        count_BG1 = count_X.view(users, stretches, 1).float()
        share_BG1 = count_BG1 / choices.count_B1.clamp(min=1).unsqueeze(2)
        sum_BGK = self.chosen_sum(choices, count_X).view(users, stretches, size)
        beyond_BGK = sum_BGK - share_BG1 * sum_BGK.sum(1, keepdim=True)
        # what all choose more of in a stretch is no turn of anybody's wants
        some_BG = ((share_BG1 > 0) & (share_BG1 < 1)).squeeze(2)
        both_BG1 = count_BG1 * some_BG.unsqueeze(2)  # who chose in one stretch only departs from nothing
        beyond_BGK -= both_BG1 * (beyond_BGK.sum(0) / both_BG1.sum(0).clamp(min=1))
        user_X = torch.nonzero(some_BG)[:, 0]
        eye_KK = torch.eye(size, device=precision_BKK.device)
        precision_XKK = torch.lerp(eye_KK, precision_BKK[user_X], share_BG1[some_BG].unsqueeze(2))
        root_XKK, failed_X = torch.linalg.cholesky_ex(precision_XKK)
        if bool(failed_X.any()):
            return -math.inf
        moved_XK1 = torch.linalg.solve_triangular(root_XKK, beyond_BGK[some_BG].unsqueeze(2), upper=False)
        return float(moved_XK1.square().sum() / 2 - root_XKK.diagonal(dim1=1, dim2=2).log().sum())

    def __call__(self, choices: Choices) -> tuple[Tensor, Tensor]:
        """θ (B, K), zeros of who chose nothing, and its precision (B, K, K)."""
        count_B1 = choices.count_B1
        sum_BK = self.chosen_sum(choices, count_B1.squeeze(1))
        size = sum_BK.shape[1]
        theta_BK, precision_BKK = torch.zeros_like(sum_BK), sum_BK.new_zeros(len(sum_BK), size, size)
        for _ in range(NEWTON_STEPS):
            expected_BS = self.expected(theta_BK, choices)
            mean_BK = expected_BS @ self._mean_SK
            ridge_BK = 1 + expected_BS @ self._variance_SK
            square_BT = expected_BS @ self._products_ST
            first, second = self._upper
            precision_BKK[:, first, second] = square_BT
            precision_BKK[:, second, first] = square_BT
            precision_BKK -= mean_BK.unsqueeze(2) * (mean_BK / count_B1.clamp(min=1)).unsqueeze(1)
            precision_BKK += torch.diag_embed(ridge_BK)
            gradient_BK = sum_BK - mean_BK - ridge_BK * theta_BK
            step_BK = torch.linalg.solve(precision_BKK, gradient_BK)
            length_B1 = step_BK.norm(dim=1, keepdim=True)
            theta_BK = theta_BK + step_BK * (LONGEST_STEP / length_B1.clamp(min=LONGEST_STEP))
        return theta_BK, precision_BKK


class FactorReading:
    """Items as they are now, from which users are inferred in the dimensions that have not vanished."""

    def __init__(self, mean_NK: Tensor, precision_NK: Tensor, counts_N: Tensor) -> None:
        """Of items with these vectors, which are known so well and were chosen so often (decayed or not)."""
        self._size = mean_NK.shape[1]
        self._there_R = torch.nonzero((mean_NK.abs() > NEGLIGIBLE).any(0))[:, 0]
        self._rivals = Rivals(counts_N)
        self._posterior = UserPosterior(mean_NK[:, self._there_R], precision_NK[:, self._there_R], self._rivals)

    @property
    def device(self) -> torch.device:
        """Where the items are."""
        return self._there_R.device

    def by_window(self, first: FirstChoices, age_BP: Ints) -> Tensor:
        """θ of users who chose these items, then by how much it would move for what was chosen in each window of age
        less what it expects there; (B, 1 + W, K), zeros of who chose nothing. `age_BP`: how many events ago each was,
        ascending."""
        if not len(self._there_R) or not len(first.user_E):
            return torch.zeros(first.users, 1 + WINDOWS, self._size, device=self.device)
        parts = [
            self._by_window(self._rivals.choices(part), torch.from_numpy(age_BP[users]).to(self.device))
            for users, part in first.blocks(BLOCK_USERS)
        ]
        return self._whole(torch.cat(parts))

    def _by_window(self, choices: Choices, age_BP: Tensor) -> Tensor:
        theta_BR, precision_BRR = self._posterior(choices)
        mean_BR = self._posterior.expected_sum(theta_BR, choices)
        age_E = age_BP[choices.user_E, choices.place_E]
        window_E = torch.bucketize(age_E, torch.tensor(WINDOW_ENDS, device=age_BP.device), right=True)
        # newest first, so that one window's stand beside one another
        count_X = torch.bincount(choices.user_E * WINDOWS + window_E, minlength=len(age_BP) * WINDOWS)
        chosen_BWR = self._posterior.chosen_sum(choices, count_X).view(len(age_BP), WINDOWS, -1)
        share_BW1 = count_X.view(len(age_BP), WINDOWS, 1) / choices.count_B1.clamp(min=1).unsqueeze(2)
        # the precision is symmetric
        departure_BWR = torch.linalg.solve(precision_BRR, chosen_BWR - share_BW1 * mean_BR.unsqueeze(1), left=False)
        return torch.cat((theta_BR.unsqueeze(1), departure_BWR), dim=1)

    def _whole(self, theta_R: Tensor) -> Tensor:
        """With zeros in the dimensions that have vanished."""
        if theta_R.shape[-1] == self._size:
            return theta_R
        whole_K = theta_R.new_zeros(*theta_R.shape[:-1], self._size)
        whole_K[..., self._there_R] = theta_R
        return whole_K


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
