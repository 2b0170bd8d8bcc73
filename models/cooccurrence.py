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

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.event_log import LogView
from models.past import PAST

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

HALF_LIFE = 15_000.0
"""Events after which a choice counts half."""
WEIGHT = 8.0
"""What the product of two vectors is multiplied by before calibration, which starts from 1."""
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

    def grow(self, rows: int) -> None:
        """Append so many items that nobody chose."""
        self.values = torch.cat((self.values, self.values.new_zeros(rows, self.values.shape[1])))
        self.counts = torch.cat((self.counts, self.counts.new_zeros(rows)))

    def blank(self, rows: Tensor) -> None:
        """Forget rows."""
        self.values[rows] = 0
        self.counts[rows] = 0

    @torch.no_grad()
    def take(self, log: LogView, positions: Ints, generator: torch.Generator) -> None:
        """Count these events (ascending), each with what its user had chosen before it."""
        if not self.values.shape[1] or not len(positions):
            return
        device = self.values.device
        item_B, new_E, had_E, weight_E = (torch.from_numpy(one).to(device) for one in _choices(log, positions))
        kept_N = self.counts * 0.5 ** (len(positions) / HALF_LIFE)
        counts_N = kept_N.index_add(0, item_B, torch.ones_like(item_B, dtype=torch.float64))
        counts_N[counts_N < FORGOTTEN] = 0
        self.counts = counts_N
        alive_A = torch.nonzero(counts_N).squeeze(1)
        if not len(alive_A):
            return
        place_N = torch.empty_like(counts_N, dtype=torch.int64)
        place_N[alive_A] = torch.arange(len(alive_A), device=device)
        counts_A = counts_N[alive_A]
        there_E = counts_N[had_E] > 0
        new_E, had_E, own_B = place_N[new_E[there_E]], place_N[had_E[there_E]], place_N[item_B]
        weight_E = weight_E[there_E]
        pairs = torch.stack((torch.cat((new_E, had_E, own_B)), torch.cat((had_E, new_E, own_B))))
        weight = torch.cat((weight_E, weight_E, weight_E.new_ones(len(own_B))))
        cosines = (weight * (counts_A[pairs[0]] * counts_A[pairs[1]]).rsqrt()).float()
        added_AA = torch.sparse_coo_tensor(pairs, cosines, (len(alive_A), len(alive_A)), check_invariants=False)
        values_AK = self.values[alive_A] * (kept_N[alive_A] / counts_A).sqrt().float().unsqueeze(1)
        self.values = torch.zeros_like(self.values).index_copy(0, alive_A, _of_rank(values_AK, added_AA, generator))

    def state(self) -> dict[str, Tensor]:
        """A copy, on the CPU."""
        return {"values": self.values.cpu().clone(), "counts": self.counts.cpu().clone()}

    def load(self, state: dict[str, Any]) -> None:
        """Take over a copied state."""
        device = self.values.device
        self.values, self.counts = state["values"].to(device).clone(), state["counts"].to(device).clone()


def _choices(log: LogView, positions: Ints) -> tuple[Ints, Ints, Ints, Floats]:
    """Items (B,) that their users chose for the first time, as far back as is looked; and pairs of these (E,) with each
    one chosen before (E,), and their weights (E,)."""
    chosen = positions[(log.weight[positions] > 0) & (log.item[positions] >= 0)]
    past_BP = log.histories(log.previous[chosen], PAST)
    liked_BP = (past_BP >= 0) & (log.weight[past_BP] > 0)
    had_BP = np.where(liked_BP, log.item[past_BP], -1).astype(np.int64)
    order_BP = np.argsort(had_BP, axis=1, kind="stable")
    had_BP, past_BP = np.take_along_axis(had_BP, order_BP, 1), np.take_along_axis(past_BP, order_BP, 1)
    item_B = log.item[chosen].astype(np.int64)
    first_B = ~(had_BP == item_B[:, None]).any(1)
    item_B, had_BP = item_B[first_B], had_BP[first_B]
    age_BP = chosen[first_B][:, None] - past_BP[first_B]
    once_BP = had_BP >= 0
    once_BP[:, :-1] &= had_BP[:, :-1] != had_BP[:, 1:]  # the oldest of repeats is the one that was counted
    # a choice weighs half after a half-life; a pair, the root of the product of its two
    weight_E = 0.5 ** (age_BP[once_BP] / (2 * HALF_LIFE))
    return item_B, np.repeat(item_B, once_BP.sum(1)), had_BP[once_BP], weight_E


def _of_rank(values_NK: Tensor, added_NN: Tensor, generator: torch.Generator) -> Tensor:
    """W' (N, K) with W' W'ᵀ ≈ W Wᵀ + `added_NN`."""

    def product(x_NQ: Tensor) -> Tensor:
        found_NQ: Tensor = torch.addmm(torch.sparse.mm(added_NN, x_NQ), values_NK, values_NK.T @ x_NQ)
        return found_NQ

    rows, dim = values_NK.shape
    basis_NQ = _orthonormal(values_NK)
    probes = dim + PROBES - basis_NQ.shape[1]
    probes_NQ = torch.randn(rows, probes, generator=generator, device=values_NK.device)
    probes_NQ -= basis_NQ @ (basis_NQ.T @ probes_NQ)
    basis_NQ = _orthonormal(product(torch.cat((basis_NQ, _orthonormal(probes_NQ)), dim=1)))
    core_QQ = (basis_NQ.T @ product(basis_NQ)).double()
    power_Q, turn_QQ = torch.linalg.eigh((core_QQ + core_QQ.T) / 2)
    turn_QK = (turn_QQ * power_Q.clamp(min=0).sqrt())[:, -dim:].float()
    return torch.cat((values_NK.new_zeros(rows, dim - turn_QK.shape[1]), basis_NQ @ turn_QK), dim=1)


def _orthonormal(x_NQ: Tensor) -> Tensor:
    """An orthonormal basis of the columns' span, without what is rounding."""
    power_Q, turn_QQ = torch.linalg.eigh((x_NQ.T @ x_NQ).double())
    there_Q = power_Q > NEGLIGIBLE * power_Q[-1:].clamp(min=1e-30)
    turn_QR = turn_QQ[:, there_Q] * power_Q[there_Q].rsqrt()
    basis_NR: Tensor = x_NQ @ turn_QR.float()
    return basis_NR
