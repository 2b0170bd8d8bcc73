"""When items came, with nothing learned: a part of the score of its own.

Who has just chosen a film of 1994 is likely to choose another one of about then, and whoever reads this morning's news
reads more of this morning's. So each item is published with h_i, how near its announcement was to each of some knots,
⟨h_i, h_j⟩ falling from 1 to 0 as two items are further apart, and a user with the decayed mean of those of what they
chose last; what that is worth is fitted on fresh events (`models.calibration`). The knots are quantiles of all
announcements, so that near means a share of the catalogue and no number of days; between two of them h is linear (de
Boor, "A practical guide to splines", 1978), brought to length 1.

Shape suffixes: N items, K knots or their places in a vector.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

WEIGHT = 1.0
"""What the product of two is multiplied by before calibration, which starts from 1."""


def knots_of(announced_N: Floats, most: int) -> Floats:
    """Times in seconds, ascending and at most so many, with as many announcements between any two (ties apart)."""
    known_N = announced_N[np.isfinite(announced_N)]
    if not len(known_N) or most < 2:
        return np.empty(0)
    return np.unique(np.quantile(known_N, np.linspace(0, 1, most)))


def vintages(announced_N: Floats, knots_K: Floats, size: int) -> NDArray[np.float32]:
    """h (N, size) of items announced at these times, in seconds; zeros where all came at once, or one never did."""
    out_NK = np.zeros((len(announced_N), size), np.float32)
    if len(knots_K) < 2:
        return out_NK
    row_N = np.flatnonzero(np.isfinite(announced_N))
    time_N = np.clip(announced_N[row_N], knots_K[0], knots_K[-1])
    low_N = np.searchsorted(knots_K, time_N, side="right").clip(1, len(knots_K) - 1) - 1
    share_N = (time_N - knots_K[low_N]) / (knots_K[low_N + 1] - knots_K[low_N])
    length_N = np.hypot(share_N, 1 - share_N)
    out_NK[row_N, low_N] = (1 - share_N) / length_N
    out_NK[row_N, low_N + 1] = share_N / length_N
    return out_NK
