# ruff: noqa: N815 (shape suffixes)
"""Which items the same users choose: a short vector an item, ⟨w_i, w_j⟩ ≈ n_ij / √(n_i n_j), as a part of the score.

n_i users chose item i and n_ij of them j too, so the product is the cosine that item-based nearest neighbours go by
(Sarwar et al., "Item-based collaborative filtering recommendation algorithms", 2001). W Wᵀ is a fixed-rank
approximation of all these cosines: each block of events adds to it what it knows of (the pairs of a new item with those
that its user had), and the sum is brought back to its rank by one step of subspace iteration from the basis of before
and some random directions, and the Rayleigh–Ritz procedure (Halko, Martinsson & Tropp, "Finding structure with
randomness", 2011). So a block costs what it holds, however much came before.

Shape suffixes: N items, A those of them that are chosen now and then, K size of a vector, Q directions of a sketch, B
events, P places of the past, E pairs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from models.event_log import LogView, Places
from models.fold_in import FoldIn
from models.past import PAST, FirstChoices, in_order

Ints = NDArray[np.int64]

HALF_LIFE = 15_000.0
"""Events after which a choice counts half."""
RECENT_HALF_LIFE = 10.0
"""After so many later events of the same user one counts half in what they chose last."""
WEIGHT = 8.0
"""What the product of two vectors is multiplied by before calibration, which starts from 1."""
SHARE_HALF_LIFE = 3_000.0
"""The same for shares of all choices, by which a user's are expected: appeal turns faster than who chooses what."""
FORGOTTEN = 1e-3
"""An item whose count has fallen below has no vector any more; so a block's cost does not grow with the catalogue."""
PROBES = 8
"""Random directions of a sketch, which find what the basis of before does not hold."""
NEGLIGIBLE = 1e-8
"""Directions whose square is less than this share of the largest one's are rounding."""


class Cooccurrence:
    """The vectors and how many chose each item."""

    def __init__(self, dim: int, device: torch.device | str) -> None:
        self.values = torch.zeros(0, dim, device=device)
        """W, (N, K)."""
        self.counts = torch.zeros(0, dtype=torch.float64, device=device)
        """n, (N,), decayed."""
        self.recent = self.counts.clone()
        """The same, decayed by `SHARE_HALF_LIFE`."""
        self._fold_in: FoldIn | None = None

    def fold_in(self) -> FoldIn:
        """What all of a user's choices say by these vectors."""
        if self._fold_in is None:
            self._fold_in = FoldIn(self.values, self.recent)
        return self._fold_in

    def grow(self, rows: int) -> None:
        """Append so many items that nobody chose."""
        self.values = torch.cat((self.values, self.values.new_zeros(rows, self.values.shape[1])))
        self.counts = torch.cat((self.counts, self.counts.new_zeros(rows)))
        self.recent = torch.cat((self.recent, self.recent.new_zeros(rows)))

    def blank(self, rows: Tensor) -> None:
        """Forget rows."""
        self.values[rows] = 0
        self.counts[rows] = 0
        self.recent[rows] = 0
        self._fold_in = None

    @torch.no_grad()
    def take(self, log: LogView, positions: Ints, generator: torch.Generator) -> None:
        """Count these events (ascending), each with what its user had chosen before it."""
        if not len(positions):
            return
        choices = _Choices.of(log, positions, self.values.device)
        kept_N = self.counts * 0.5 ** (len(positions) / HALF_LIFE)
        once_B = torch.ones_like(choices.item_B, dtype=torch.float64)
        self.recent = (self.recent * 0.5 ** (len(positions) / SHARE_HALF_LIFE)).index_add(0, choices.item_B, once_B)
        counts_N = kept_N.index_add(0, choices.item_B, once_B)
        counts_N[counts_N < FORGOTTEN] = 0
        self.counts = counts_N
        if not self.values.shape[1]:
            return
        alive_A = torch.nonzero(counts_N).squeeze(1)
        values_NK = torch.zeros_like(self.values)
        if len(alive_A):
            faded_AK = self.values[alive_A] * (kept_N[alive_A] / counts_N[alive_A]).sqrt().float().unsqueeze(1)
            values_NK[alive_A] = _of_rank(faded_AK, choices.cosines(counts_N, alive_A), generator)
        self.values = values_NK
        self._fold_in = None

    def state(self) -> dict[str, Tensor]:
        """A copy, on the CPU."""
        return {
            "values": self.values.cpu().clone(),
            "counts": self.counts.cpu().clone(),
            "recent": self.recent.cpu().clone(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take over a copied state."""
        device = self.values.device
        self.values, self.counts = state["values"].to(device).clone(), state["counts"].to(device).clone()
        self.recent = state["recent"].to(device).clone()
        self._fold_in = None


class _Choices(NamedTuple):
    """Items that their users chose for the first time, as far back as is looked, and what they had chosen before."""

    item_B: Tensor
    count_B: Tensor
    """How many items its user had, for each of these …"""
    had_E: Tensor
    """… and which, one's after another's."""
    weight_E: Tensor
    """A choice weighs half after a half-life; a pair, the root of the product of its two."""

    @classmethod
    def of(cls, log: LogView, positions: Ints, device: torch.device) -> _Choices:
        """Of the events at these positions."""
        chosen_B = positions[(log.weight[positions] > 0) & (log.item[positions] >= 0)]
        past_BP = log.histories(log.previous[chosen_B], PAST)
        places = Places(past_BP)
        had_BP = places.of(log.item, -1, np.int64)
        liked_BP = (had_BP >= 0) & (places.of(log.weight, 0) > 0)
        item_B = log.item[chosen_B].astype(np.int64)
        first_B = ~(liked_BP & (had_BP == item_B[:, None])).any(1)
        item_B, chosen_B, past_BP = item_B[first_B], chosen_B[first_B], past_BP[first_B]
        had = FirstChoices.of(had_BP[first_B], liked_BP[first_B])
        age_E = chosen_B[had.user_E] - past_BP[had.user_E, had.place_E]
        count_B = np.bincount(had.user_E, minlength=had.users)
        columns = (item_B, count_B, had.item_E, 0.5 ** (age_E / (2 * HALF_LIFE)))
        return cls(*(torch.from_numpy(one).to(device) for one in columns))

    def cosines(self, counts_N: Tensor, alive_A: Tensor) -> _Added:
        """What they add to the cosines of the items `alive_A`, whose counts are theirs already."""
        place_N = torch.zeros_like(counts_N, dtype=torch.int64)
        place_N[alive_A] = torch.arange(len(alive_A), device=alive_A.device)
        root_N = torch.where(counts_N > 0, counts_N, torch.inf).rsqrt()  # what has no vector any more adds nothing
        new_E = torch.repeat_interleave(self.item_B, self.count_B)
        value_E = (self.weight_E * root_N[self.had_E] * root_N[new_E]).float()
        by_had_E, at_E = in_order(place_N[self.had_E].cpu().numpy())
        order_E = torch.from_numpy(at_E).to(value_E.device)
        start_A = torch.from_numpy(np.searchsorted(by_had_E, np.arange(len(alive_A)))).to(value_E.device)
        return _Added(
            new_B=place_N[self.item_B],
            alone_B1=root_N[self.item_B].square().float().unsqueeze(1),
            had=_Rows(place_N[self.had_E], self.count_B.cumsum(0) - self.count_B, value_E),
            by=_Rows(place_N[new_E[order_E]], start_A, value_E[order_E]),
        )


class _Rows(NamedTuple):
    """A sparse matrix, one row after another."""

    column_E: Tensor
    start_R: Tensor
    value_E: Tensor

    def __matmul__(self, x_AQ: Tensor) -> Tensor:
        found_RQ: Tensor = functional.embedding_bag(
            self.column_E, x_AQ, self.start_R, mode="sum", per_sample_weights=self.value_E
        )
        return found_RQ


class _Added(NamedTuple):
    """A symmetric sparse matrix (A, A): of new items with what their users had, and back, and with themselves."""

    new_B: Tensor
    alone_B1: Tensor
    had: _Rows
    """(B, A)."""
    by: _Rows
    """(A, A), which new items were chosen by those who had each."""

    def __matmul__(self, x_AQ: Tensor) -> Tensor:
        new_BQ = self.had @ x_AQ + self.alone_B1 * x_AQ[self.new_B]
        return (self.by @ x_AQ).index_add_(0, self.new_B, new_BQ)


def _of_rank(values_AK: Tensor, added_AA: _Added, generator: torch.Generator) -> Tensor:
    """W' (A, K) with W' W'ᵀ ≈ W Wᵀ + `added_AA`."""

    def product(x_AQ: Tensor) -> Tensor:
        found_AQ: Tensor = torch.addmm(added_AA @ x_AQ, values_AK, values_AK.T @ x_AQ)
        return found_AQ

    rows, dim = values_AK.shape
    basis_AQ = _orthonormal(values_AK)
    probes = dim + PROBES - basis_AQ.shape[1]
    probes_AQ = torch.randn(rows, probes, generator=generator, device=values_AK.device)
    probes_AQ -= basis_AQ @ (basis_AQ.T @ probes_AQ)
    basis_AQ = _orthonormal(product(torch.cat((basis_AQ, _orthonormal(probes_AQ)), dim=1)))
    core_QQ = (basis_AQ.T @ product(basis_AQ)).double()
    power_Q, turn_QQ = torch.linalg.eigh((core_QQ + core_QQ.T) / 2)
    turn_QK = (turn_QQ * power_Q.clamp(min=0).sqrt())[:, -dim:].float()
    return torch.cat((values_AK.new_zeros(rows, dim - turn_QK.shape[1]), basis_AQ @ turn_QK), dim=1)


def _orthonormal(x_AQ: Tensor) -> Tensor:
    """An orthonormal basis of the columns' span, without what is rounding."""
    power_Q, turn_QQ = torch.linalg.eigh((x_AQ.T @ x_AQ).double())
    there_Q = power_Q > NEGLIGIBLE * power_Q[-1:].clamp(min=1e-30)
    turn_QR = turn_QQ[:, there_Q] * power_Q[there_Q].rsqrt()
    basis_AR: Tensor = x_AQ @ turn_QR.float()
    return basis_AR
