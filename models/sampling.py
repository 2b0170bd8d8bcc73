"""What is drawn at random while learning: negatives, and stored examples to replay. Every draw takes its generator."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def uniform_negatives(candidates: Tensor, shape: int | tuple[int, ...], *, generator: torch.Generator) -> Tensor:
    """Draw from an index array (N,) uniformly with replacement; `shape` of the candidates' dtype.

    Each draw's probability is 1/N, so `log_q = log(draws / N)` is the expected count that `losses.sampled_softmax`
    takes. Raises `ValueError` where there is no candidate to draw.
    """
    if len(candidates) == 0:
        raise ValueError("There is no candidate to draw negatives from; announce at least one item.")
    size = (shape,) if isinstance(shape, int) else shape
    drawn = torch.randint(len(candidates), size, generator=generator, device=generator.device)
    return candidates[drawn.to(candidates.device)]


def systematic_sample(weight_N: Tensor, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw `size` different rows of weights (N,), none negative: which, ascending, and how likely each was drawn.

    That is in proportion to its weight, and 1 where this would be more (Madow, "On the theory of systematic sampling",
    1949); so Σ x / probability over those drawn estimates Σ x over all without bias (Horvitz & Thompson, 1952). All
    rows of a positive weight where they are no more than `size`.
    """
    there_R = torch.nonzero(weight_N > 0).squeeze(1)
    chance_R = weight_N[there_R].double()
    if len(there_R) <= size:
        return there_R, torch.ones_like(chance_R)
    # only the largest can be certain, as many of them as are above 1 once those before are
    largest_S, row_S = torch.topk(chance_R, size)
    rest_S = chance_R.sum() - largest_S.cumsum(0) + largest_S
    certain = int(((size - torch.arange(size, device=chance_R.device)) * largest_S >= rest_S).int().cumprod(0).sum())
    chance_R[row_S[:certain]] = 0
    chance_R *= (size - certain) / chance_R.sum().clamp(min=1e-300)
    chance_R[row_S[:certain]] = 1
    start = torch.rand(1, generator=generator, device=generator.device, dtype=torch.float64).to(chance_R.device)
    steps_R = torch.floor(chance_R.cumsum(0) + start)
    drawn = torch.diff(steps_R, prepend=steps_R.new_zeros(1)) > 0
    return there_R[drawn], chance_R[drawn]


def sampled_candidates(
    there_N: Tensor, recent_N: Tensor, size: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Items to rank others among: as `systematic_sample`, half of them uniformly of those that are there (N,), half by
    how often they were chosen lately (N,)."""
    recent_N = recent_N * there_N
    weight_N = there_N / there_N.sum().clamp(min=1) + recent_N / recent_N.sum().clamp(min=1e-9)
    return systematic_sample(weight_N, size, generator)


def replay_positions(
    n_events: int, count: int, half_life: float, generator: torch.Generator, *, exclude_from: int | None = None
) -> NDArray[np.int64]:
    """Draw `count` stored log positions, with replacement, of probability ∝ 2^(−age / half_life); int64 (count,).

    Positions from `exclude_from` on are never drawn (they are this phase's new examples); the newest that may be has
    age 0. Exact inversion of the truncated geometric's distribution function: with λ = ln 2 / half_life and n
    positions, age = ⌊ −ln(1 − u (1 − e^{−λn})) / λ ⌋, u uniform on [0, 1) (Devroye, "Non-uniform random variate
    generation", 1986, II.2); nothing of size n is built. `half_life` may be infinite: uniform. Empty where there is
    nothing stored or `count` is 0. Raises `ValueError` where `half_life` is not positive.
    """
    if not half_life > 0:
        raise ValueError(f"The half-life of replay must be positive, got {half_life}; set a number of events.")
    stored = n_events if exclude_from is None else min(n_events, exclude_from)
    if stored <= 0 or count <= 0:
        return np.empty(0, np.int64)
    u = torch.rand(count, generator=generator, dtype=torch.float64, device=generator.device).cpu().numpy()
    rate = math.log(2) / half_life
    flat = rate * stored < 1e-12  # to the last bit; and λ itself may be 0
    age: NDArray[np.float64] = u * stored if flat else -np.log1p(u * np.expm1(-rate * stored)) / rate
    # rounding at u → 1 may step one past the oldest
    return stored - 1 - np.minimum(np.floor(age).astype(np.int64), stored - 1)


def favour_rare(
    drawn: NDArray[np.int64],
    happened: NDArray[np.floating],
    count: int,
    power: float,
    generator: torch.Generator,
) -> NDArray[np.int64]:
    """Keep `count` of the positions `drawn`, the likelier the less `happened` to their items: ∝ happened^(−power).

    Sampling, importance resampling (Rubin, "Using the SIR algorithm to simulate posterior distributions", 1988),
    without replacement, from several times as many draws. `happened` is infinite where a position is not to be kept.
    """
    weight = torch.from_numpy(np.maximum(happened, 1.0) ** -power).to(generator.device)
    count = min(count, int((weight > 0).sum()))
    if count == 0:
        return drawn[:0]
    kept: NDArray[np.int64] = drawn[torch.multinomial(weight, count, generator=generator).cpu().numpy()]
    return kept
