# ruff: noqa: N815 (shape suffixes)
"""All that users chose, its decayed mean and its first choices: what the last few events of a history do not show.

Shape suffixes: B users or examples, E events of all of them, P places of the past (newest first), X users or their
windows, one user's after another's, R rows, D vector size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

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
        kept_BP = (item_BP >= 0) & (weight_BP > 0)
        user_E, place_E = _there(kept_BP)
        decayed_E = weight_BP[kept_BP] * (0.5 ** (np.arange(item_BP.shape[1]) / half_life))[place_E]
        total_B = np.bincount(user_E, decayed_E, minlength=len(item_BP))
        weight_E = (decayed_E / np.maximum(total_B, 1e-9)[user_E]).astype(np.float32)
        if age_BP is None:
            counts_X = np.bincount(user_E, minlength=len(item_BP))
        else:
            window_E = np.searchsorted(WINDOW_ENDS, age_BP[kept_BP], side="right")
            counts_X = np.bincount(user_E * WINDOWS + window_E, minlength=len(item_BP) * WINDOWS)
        return cls(item_BP[kept_BP], np.cumsum(counts_X) - counts_X, weight_E)

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


class FirstChoices(NamedTuple):
    """What some users chose, each item where it was chosen first; one user's after another's, newest first."""

    users: int
    user_E: Ints
    place_E: Ints
    """Where in the user's past."""
    item_E: Ints

    @classmethod
    def of(cls, item_BP: Ints, chosen_BP: NDArray[np.bool_]) -> FirstChoices:
        """Of pasts (newest first), and at which of their places an item was chosen."""
        user_E, place_E = _there(chosen_BP)
        item_E = item_BP[chosen_BP]
        bits = int(item_E.max(initial=0)).bit_length()
        one_E, at_E = in_order(user_E << bits | item_E)
        # one item's choices are beside one another, and the last of them is the oldest
        oldest_E = np.ones(len(one_E), bool)
        oldest_E[:-1] = one_E[:-1] != one_E[1:]
        chosen_E = np.zeros(len(one_E), bool)
        chosen_E[at_E[oldest_E]] = True
        first_E = np.flatnonzero(chosen_E)
        return cls(len(item_BP), user_E[first_E], place_E[first_E], item_E[first_E])

    def apart(self, stretch_E: Ints) -> tuple[FirstChoices, tuple[Ints, Ints]]:
        """What each user chose in each stretch of time (numbers, the newest is 0, so that a user's ascend) as if each
        had a user of its own; and what these had chosen before, who in fact are one: users and items, each pair once,
        in no order."""
        stretches = int(stretch_E.max(initial=0)) + 1
        found, user_E = np.unique(self.user_E * stretches + stretch_E, return_inverse=True)
        number_X = np.full(self.users * stretches, -1)
        number_X[found] = np.arange(len(found))
        # by all stretches after its own
        at_H = np.repeat(np.arange(len(user_E)), stretch_E)
        later_H = np.arange(len(at_H)) - np.repeat(np.cumsum(stretch_E) - stretch_E, stretch_E)
        by_H = number_X[self.user_E[at_H] * stretches + later_H]
        there_H = np.flatnonzero(by_H >= 0)
        had = by_H[there_H], self.item_E[at_H[there_H]]
        return FirstChoices(len(found), user_E, self.place_E, self.item_E), had

    def blocks(self, users: int) -> Iterator[tuple[slice, FirstChoices]]:
        """The same of so many users at a time, and which."""
        for start in range(0, max(self.users, 1), users):
            stop = min(start + users, self.users)
            part = slice(*np.searchsorted(self.user_E, (start, stop)))
            yield (
                slice(start, stop),
                FirstChoices(stop - start, self.user_E[part] - start, self.place_E[part], self.item_E[part]),
            )


def _there(mask_BP: NDArray[np.bool_]) -> tuple[Ints, Ints]:
    """Users and places where the mask is true: what `numpy.nonzero` finds, in a third of the time."""
    user_E = np.repeat(np.arange(len(mask_BP)), np.count_nonzero(mask_BP, axis=1))
    return user_E, np.flatnonzero(mask_BP) - user_E * mask_BP.shape[1]


def in_order(number_E: Ints) -> tuple[Ints, Ints]:
    """Numbers ascending, and where each stood; equal ones as they stood."""
    # as one number with its place, which sorts much quicker than an index does
    bits = len(number_E).bit_length()
    sorted_E = np.sort(number_E << bits | np.arange(len(number_E)))
    return sorted_E >> bits, sorted_E & ((1 << bits) - 1)
