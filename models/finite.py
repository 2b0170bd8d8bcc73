"""Whether numbers are finite, in one pass."""

from __future__ import annotations

from torch import Tensor


def all_finite(tensor: Tensor) -> bool:
    """Whether all of its numbers are, and are not so large that their sum is not."""
    return bool(tensor.detach().sum().isfinite())
