"""The scorer's inputs of items, as tensors: contents encoded in chunks, and a table kept up to date while learning.

Shape suffixes: N items, R rows, D vector size.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.beside import Beside, at_once, halved
from models.features import FeatureTable
from models.scorer import Features, Scorer, observed
from models.spec import ModelSpec

CHUNK = 1024
"""Items encoded at once."""


def gather(table: FeatureTable, rows: NDArray[np.int64], device: torch.device | str) -> Features:
    """Each modality's vectors of these rows, and how many vectors each has."""
    features = {}
    for name in table.dims:
        vectors, lengths = table.gather(name, rows)
        features[name] = (torch.from_numpy(vectors).to(device), torch.from_numpy(lengths).to(device))
    return features


def gather_one(spec: ModelSpec, features: Mapping[str, NDArray[np.float32]]) -> Features:
    """The same of one item that has these features."""
    table = FeatureTable(spec.modalities, spec.frames)
    table.put(0, features)
    return gather(table, np.zeros(1, np.int64), "cpu")


def observe(scorer: Scorer, items: FeatureTable, users: FeatureTable, device: torch.device | str) -> None:
    """Let the input normalisations that are not warm yet see the vectors that were announced since they last did."""
    for table, encoders in ((items, scorer.encoders), (users, scorer.profiles)):
        for name in table.dims:
            seen = observed(encoders[name])
            if seen is not None:
                vectors, lengths = table.since(name, seen)
                told = torch.from_numpy(vectors).to(device), torch.from_numpy(lengths).to(device)
                if table is items:
                    scorer.observe(name, *told)
                else:
                    scorer.observe_users(name, *told)


def encode(
    scorer: Scorer, table: FeatureTable, rows: NDArray[np.int64], device: torch.device | str, beside: Beside = at_once
) -> Tensor:
    """The fused content of these rows, (R, D), without gradients; zeros where there are no modalities. Half of them are
    encoded `beside` the others."""
    if not table.dims or not len(rows):
        return torch.zeros(len(rows), scorer.spec.dim, device=device)

    @torch.no_grad()  # of the thread that runs it
    def encoded(start: int) -> Tensor:
        return scorer.content(gather(table, rows[start : start + CHUNK], device))

    return torch.cat(halved(beside, encoded, range(0, len(rows), CHUNK)))


@torch.no_grad()
def likeness(scorer: Scorer, table: FeatureTable, rows: NDArray[np.int64], device: torch.device | str) -> Tensor:
    """What was announced with these rows, (R, K); no columns where the model has none."""
    size = scorer.spec.likeness_dim
    if not size:
        return torch.zeros(len(rows), 0, device=device)
    parts = [scorer.likeness(gather(table, rows[at : at + CHUNK], device)) for at in range(0, len(rows), CHUNK)]
    return torch.cat(parts) if parts else torch.zeros(0, size, device=device)


def same_encoders(one: Scorer, other: Scorer) -> bool:
    """Whether two scorers encode every item alike, bit for bit."""
    return _same(one, other, ("encoders.", "fusion."))


def same_outlines(one: Scorer, other: Scorer) -> bool:
    """Whether they make the same likeness of every item, bit for bit."""
    shifts = tuple(f"encoders.{name}.{path}shift" for name in one.outlines for path in ("norm.", "frame.norm."))
    return _same(one, other, ("outlines.", *shifts))


def _same(one: Scorer, other: Scorer, parts: tuple[str, ...]) -> bool:
    if one is other:
        return True
    if one.spec.modalities != other.spec.modalities or one.spec.fusion != other.spec.fusion:
        return False
    mine, theirs = one.state_dict(), other.state_dict()
    names = [name for name in mine if name.startswith(parts)]
    return all(name in theirs and torch.equal(mine[name], theirs[name]) for name in names)


def chosen_rows(gradient_RD: Tensor, most: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Which rows to send a gradient through the encoders for, and how much each stands for; all where they are few.

    Priority sampling (Duffield, Lund & Thorup, "Priority sampling for estimation of arbitrary subset sums", 2007):
    rows of large gradients for certain, others as often as theirs are large, and weighed so that the sum is unbiased.
    """
    count = len(gradient_RD)
    if count <= most:
        return torch.arange(count, device=gradient_RD.device), gradient_RD.new_ones(count)
    size_R = torch.linalg.vector_norm(gradient_RD, dim=1)
    priority_R = size_R / torch.rand(count, generator=generator, device=gradient_RD.device).clamp(min=1e-9)
    highest, order = torch.topk(priority_R, most + 1)
    chosen, threshold = order[:-1], highest[-1]
    size_C = size_R[chosen]
    return chosen, torch.where(size_C < threshold, threshold / size_C, 1.0)
