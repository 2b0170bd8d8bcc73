"""Tensors that a checkpoint does not hold, and some that it could."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.fuzz.mutations import odd_value

_ODD: tuple[Callable[[Tensor], Any], ...] = (
    lambda t: t.to(torch.float16),
    lambda t: t.to(torch.float64),
    lambda t: t.to(torch.int64),
    lambda t: t.to(torch.complex64),
    lambda t: t.bool(),
    lambda t: t.unsqueeze(0),
    lambda t: t.flatten(),
    lambda t: t.flatten()[:-1].clone(),
    lambda t: torch.cat((t.flatten(), t.flatten())),
    lambda t: t.float().to_sparse() if t.ndim else t,
    lambda t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8),
    lambda t: torch.nn.Parameter(t.float()),
    lambda t: t.new_empty(0),
    lambda t: t.new_zeros(()),
    lambda t: t.new_zeros((1,)).expand(1000),
    lambda t: torch.zeros_like(t),
    lambda t: -t if t.dtype != torch.bool else t,
    lambda t: t + 1,
    lambda t: t.tolist(),
    lambda t: torch.full_like(t, 3e38) if t.is_floating_point() else torch.full_like(t, 120),
    lambda t: torch.full_like(t, torch.nan) if t.is_floating_point() else t - 1000,
)


def odd_content(value: Any, chance: random.Random) -> Any:
    """In place of a leaf of a stored state: a tensor of another kind, one number of it changed, or another value."""
    if not isinstance(value, Tensor) or chance.random() < 0.1:
        return odd_value(value, chance)
    if chance.random() < 0.4 and value.numel() and value.dtype != torch.uint8:
        changed = value.clone()
        numbers = (-1, 0, 2**40) if not value.is_floating_point() else (torch.nan, torch.inf, -1.0, 1e30, 3e38, 0.0)
        changed.view(-1)[chance.randrange(value.numel())] = chance.choice(numbers)
        return changed
    if chance.random() < 0.3 and value.numel():
        raw = bytearray(value.contiguous().view(-1).numpy().tobytes())
        raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
        return torch.frombuffer(raw, dtype=value.dtype).clone().view(value.shape)
    return chance.choice(_ODD)(value)
