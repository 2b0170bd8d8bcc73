# ruff: noqa: N815 (shape suffixes)
"""The decayed mean of all that users chose: what the last few events of a history do not show.

Shape suffixes: B users or examples, E events of all of them, P places of the past (newest first), X users or their
windows, one user's after another's, R rows, D vector size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

Ints = NDArray[np.int64]

KNOWN = 1024
"""How many of a user's events are looked back at, so that what they took long ago is not taken for refused."""
PAST = 256
"""How many of these are averaged."""
HALF_LIFE = 128.0
"""After so many later events of the same user one counts half."""
WINDOW_ENDS = (500, 2_000, 8_000, 32_000)
"""Windows of age end after so many events of anybody; the last has no end."""
WINDOWS = len(WINDOW_ENDS) + 1


@dataclass(frozen=True)
class Past:
    """Whose vectors are averaged for each of some users, in windows of age or all in one, and with what weights."""

    row_E: Ints
    """Item rows, one user's after another's."""
    start_X: Ints
    """Where each user's begin, or those of each of their windows."""
    weight_E: NDArray[np.float32]
    """Weights, which add up to 1 for a user, all windows together."""

    @classmethod
    def of(
        cls, item_BP: Ints, weight_BP: NDArray[np.float32], half_life: float = HALF_LIFE, age_BP: Ints | None = None
    ) -> Past:
        """Of the last events of users: item rows, -1 for none, and the weights of what was done (NaN for none); what
        weighs nothing or less was not chosen and is left out. One counts half after `half_life` later ones. In windows
        where ages in events are given, the greater the older."""
        kept_BP = (item_BP >= 0) & (np.nan_to_num(weight_BP) > 0)
        decay_P = 0.5 ** (np.arange(item_BP.shape[1]) / half_life)
        decayed_BP = np.where(kept_BP, weight_BP * decay_P, 0.0)
        decayed_BP /= np.maximum(decayed_BP.sum(1, keepdims=True), 1e-9)
        counts_X = kept_BP.sum(1)
        if age_BP is not None:
            # newest first, so that one window's stand beside one another
            younger = [(kept_BP & (age_BP < end)).sum(1) for end in WINDOW_ENDS]
            counts_X = np.diff(np.stack([*younger, counts_X], axis=1), prepend=0, axis=1).reshape(-1)
        return cls(item_BP[kept_BP], np.cumsum(counts_X) - counts_X, decayed_BP[kept_BP].astype(np.float32))

    @property
    def counts_X(self) -> Ints:  # noqa: N802
        """How many events of each user or window are averaged."""
        return np.diff(self.start_X, append=len(self.row_E))

    def mean(self, vectors_RD: Tensor) -> Tensor:
        """The users' means (X, D) of the vectors of all item rows, or what each window adds to them; zeros for who
        chose nothing."""
        return self._mean(torch.from_numpy(self.row_E), vectors_RD)

    def mean_of(self, vectors_ED: Tensor) -> Tensor:
        """The same of vectors that are those of `row_E` already."""
        return self._mean(torch.arange(len(self.row_E)), vectors_ED)

    def _mean(self, index_E: Tensor, vectors_RD: Tensor) -> Tensor:
        device = vectors_RD.device
        start_X, weight_E = torch.from_numpy(self.start_X).to(device), torch.from_numpy(self.weight_E).to(device)
        return functional.embedding_bag(
            index_E.to(device), vectors_RD, start_X, mode="sum", per_sample_weights=weight_E
        )  # fmt: skip


def sorted_items(item_BP: Ints) -> tuple[Ints, Ints]:
    """Each row's items in order, and at which of its places each stood, those of one item ascending; (B, P) both."""
    # as one number with its place, which sorts much quicker than an index does
    bits = item_BP.shape[1].bit_length()
    sorted_BP = np.sort(item_BP << bits | np.arange(item_BP.shape[1]), axis=1)
    return sorted_BP >> bits, sorted_BP & ((1 << bits) - 1)
