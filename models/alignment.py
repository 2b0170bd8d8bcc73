"""Alignment: an item's modalities should say the same of it, so that one of them can stand in for a missing other.

Shape suffixes: B items, M modalities, D vector size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import combinations

import torch
from torch import Tensor

from models import losses
from models.spec import Alignment

ALIGNMENTS: dict[Alignment, Callable[[Tensor, Tensor], Tensor]] = {
    "infonce": losses.info_nce,
    "cosine": losses.margin_cosine,
    "triplet": losses.triplet,
}
"""Losses of two modalities' vectors (B, D) of the same items, by the name that `[train] align` gives them."""


def alignment(x_BMD: Tensor, mask_BM: Tensor, weights: Mapping[Alignment, float]) -> Tensor:
    """Σ weight · loss, averaged over the pairs of modalities, each over the items that have both.

    A pair that fewer than two items have says nothing: there is nobody to be told apart from.
    """
    terms = []
    for one, other in combinations(range(x_BMD.shape[1]), 2):
        both_B = mask_BM[:, one] & mask_BM[:, other]
        if int(both_B.sum()) < 2:
            continue
        a_BD, b_BD = x_BMD[both_B, one], x_BMD[both_B, other]
        terms.append(
            sum((weight * ALIGNMENTS[kind](a_BD, b_BD) for kind, weight in weights.items()), a_BD.new_zeros(()))
        )
    return torch.stack(terms).mean() if terms else x_BMD.new_zeros(())
