"""The terms of a score, each before calibration puts its scale on it.

Shape suffixes: B examples, N items, T terms of a score, V length of published vectors, K columns of a reading.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.popularity import NEVER_SEEN, WEIGHED
from models.readings import Readings
from models.spec import ModelSpec


def put_terms(
    out: Tensor, spec: ModelSpec, user_BV: Tensor, readings: Readings,
    item_NV: Tensor, alike_NK: Tensor, features_NK: Tensor | None,
) -> None:  # fmt: skip
    """Fills in the terms of examples beside items: all of them, (T, B, N), or one each, (T, B).

    Users are as the weights make them, (B, D + E without what is alike), and so are items; without `features_NK` log
    counts and having been touched by nobody are taken to be in the items' vectors, and have terms of 0.
    """
    each = out.ndim == 2
    pattern = "btv,bv->tb" if each else "btv,nv->tbn"
    d, user_B1V = spec.dim, user_BV.unsqueeze(1)
    sizes = [spec.likeness_dim, spec.vintage_dim, spec.cooccurrence_dim, spec.factors_dim]
    outline, vintage, chosen_by, factor = torch.split(alike_NK, sizes, dim=1)
    assert readings.taste_BWD is not None
    pairs = (
        (user_B1V[:, :, :d], item_NV[:, :d]),
        (user_B1V[:, :, d : d + 1], item_NV[:, d : d + 1]),
        (user_B1V[:, :, d + 1 :], item_NV[:, d + 1 :]),
        (readings.like_BPK, outline),
        (readings.vintage_BPK, vintage),
        (readings.together_BK.unsqueeze(1), chosen_by),
        (readings.folded_BWK, chosen_by),
        (readings.taste_BWD, item_NV[:, :d]),
        (readings.factors_BWK, factor),
    )
    at = 0
    for mine, theirs in pairs:
        out[at : at + mine.shape[1]] = torch.einsum(pattern, mine, theirs)
        at += mine.shape[1]
    if features_NK is None:
        out[at:] = 0
        return
    weighed_KN = features_NK[:, :WEIGHED].T
    out[at : at + WEIGHED] = weighed_KN if each else weighed_KN.unsqueeze(1)
    out[-1] = features_NK[:, NEVER_SEEN]
