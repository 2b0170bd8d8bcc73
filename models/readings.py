# ruff: noqa: N815 (shape suffixes)
"""What a user's choices say by vectors that the tower does not learn through: parts of a user's published vector.

The means, at two paces, of what was announced with what was chosen last (`models.likeness`) and of when that was
(`models.vintage`), the mean of who chose it (`models.cooccurrence`), factors (`models.factors`), and two fold-ins
(`models.fold_in`) of all choices, on co-occurrence and on the items' learned vectors. A fold-in is a sum over choices,
so that it falls into windows of age (`models.past`): what was chosen an hour ago says more of what comes next than what
was chosen a year ago, or less, where tastes turn back to what they were; how much each window is worth is fitted like
every other term's scale (`models.calibration`).

Shape suffixes: B users or examples, P paces, W windows of age, E events of a history, K size of a reading's vectors, D
size of the learned ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models import cooccurrence, fold_in, likeness, vintage
from models.factor_reading import FactorReading
from models.fold_in import FoldIn
from models.histories import Histories
from models.past import WINDOWS, Past

Ints = NDArray[np.int64]
Means = Callable[[Past], Tensor]
"""The means (X, K) of the vectors of what was chosen."""


@dataclass(frozen=True)
class Readings:
    """Each is what its product with an item's vectors adds to the score, before calibration."""

    like_BPK: Tensor
    """Beside items' likeness, at each pace."""
    vintage_BPK: Tensor
    """Beside their vintage, likewise."""
    together_BK: Tensor
    """Beside their co-occurrence."""
    folded_BWK: Tensor
    """Beside it too."""
    factors_BWK: Tensor
    """Beside their factors: by all choices, then how those of each window depart from it."""
    taste_BWD: Tensor | None
    """Beside their learned vectors; None where a network reads those."""

    @classmethod
    def of(
        cls,
        histories: Histories,
        told: Means,
        together: Means,
        personal: Means,
        *,
        likeness_dim: int,
        factors: FactorReading,
        folded: FoldIn,
        taste: FoldIn | None,
    ) -> Readings:
        """Of these histories, from what was told of items (likeness, of `likeness_dim` columns, then vintage), their
        co-occurrence and learned vectors; `folded` is of co-occurrence and `taste` of the learned vectors."""
        paces = [histories.liked(half_life) for half_life in likeness.HALF_LIVES]
        liked, chosen = histories.liked(cooccurrence.RECENT_HALF_LIFE), histories.chosen()
        told_BPK = torch.stack([told(pace) for pace in paces], dim=1)
        counts_BW = chosen.counts_X.reshape(-1, WINDOWS)

        def fold(reading: FoldIn, mean_XK: Tensor) -> Tensor:
            return reading(mean_XK.view(*counts_BW.shape, mean_XK.shape[1]), counts_BW)

        return cls(
            like_BPK=likeness.WEIGHT * told_BPK[..., :likeness_dim],
            vintage_BPK=vintage.WEIGHT * told_BPK[..., likeness_dim:],
            together_BK=cooccurrence.WEIGHT * together(liked),
            folded_BWK=fold_in.WEIGHT * fold(folded, together(chosen)),
            factors_BWK=factors.by_window(histories.first_choices(), histories.age_BP),
            taste_BWD=None if taste is None else fold(taste, personal(chosen)),
        )
