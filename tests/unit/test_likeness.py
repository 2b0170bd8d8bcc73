"""What was announced, short enough to be published: cosines that last, and who it is the mean of."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from models.histories import Histories
from models.likeness import EVENTS, Outline, direction
from models.past import PAST
from models.scorer import Scorer
from models.spec import ModelSpec


def rows(count: int, rank: int, dim: int, seed: int = 0) -> torch.Tensor:
    """Unit vectors (count, dim) in a subspace."""
    draw = torch.Generator().manual_seed(seed)
    span = torch.linalg.qr(torch.randn(dim, rank, generator=torch.Generator().manual_seed(99)))[0]
    scale = 2.0 ** -torch.arange(rank)
    return functional.normalize((torch.randn(count, rank, generator=draw) * scale) @ span.T, dim=1)


def test_products_are_cosines_where_the_columns_suffice() -> None:
    x = rows(700, 4, 20)
    outline = Outline(20, 10, slice(3, 8))
    outline.observe(x)
    r = outline(x)
    torch.testing.assert_close(r @ r.T, x @ x.T, atol=1e-5, rtol=0)
    assert not r[:, :3].any()
    assert not r[:, 8:].any()


def test_too_few_columns_keep_what_varies_most() -> None:
    x = rows(700, 8, 20)
    outline = Outline(20, 2, slice(0, 2))
    outline.observe(x)
    best = torch.linalg.svd(x, full_matrices=False)
    kept = (best.S[:2] ** 2).sum() / (best.S**2).sum()
    assert float(outline(x).square().sum(1).mean()) == pytest.approx(float(kept), rel=0.01)


def test_more_rows_hardly_move_what_was_published() -> None:
    x, more = rows(600, 6, 20), rows(60, 6, 20, seed=1)
    outline = Outline(20, 6, slice(0, 6))
    outline.observe(x)
    before = outline(x)
    outline.observe(more)
    # the components of the two are others, and change sign at will
    assert float((outline(x) - before).norm(dim=1).max()) < 0.05


def test_rows_in_parts_are_rows_at_once_where_the_columns_suffice() -> None:
    x = rows(300, 4, 12)
    once, parts = Outline(12, 4, slice(0, 4)), Outline(12, 4, slice(0, 4))
    once.observe(x)
    for part in torch.split(x, 70):
        parts.observe(part)
    torch.testing.assert_close(parts(x) @ parts(x).T, once(x) @ once(x).T, atol=1e-5, rtol=0)


def test_nothing_observed_and_inputs_narrower_than_the_columns() -> None:
    outline = Outline(2, 8, slice(0, 4))
    assert not outline(torch.ones(3, 2)).any()
    outline.observe(torch.zeros(0, 2))
    x = rows(40, 2, 2)
    outline.observe(x)
    torch.testing.assert_close(outline(x) @ outline(x).T, x @ x.T, atol=1e-5, rtol=0)


def test_modalities_add_up_and_missing_ones_add_nothing() -> None:
    spec = ModelSpec(dim=4, likeness=12, modalities={"clip": 5, "text": 6}, frames={"clip": 3})
    scorer = Scorer(spec)
    draw = torch.Generator().manual_seed(3)
    text, clip = torch.randn(50, 6, generator=draw), torch.randn(50, 3, 5, generator=draw)
    frames, whole = torch.randint(1, 4, (50,), generator=draw), torch.ones(50, dtype=torch.int64)
    clip *= torch.arange(3)[None, :, None] < frames[:, None, None]
    scorer.observe("text", text, whole)
    scorer.observe("clip", clip, frames)
    both = scorer.likeness({"text": (text, whole), "clip": (clip, frames)})
    assert both.shape == (50, 12)
    none = torch.zeros(50, dtype=torch.int64)
    alone = scorer.likeness({"text": (text, whole), "clip": (torch.zeros_like(clip), none)})
    other = scorer.likeness({"text": (torch.zeros_like(text), none), "clip": (clip, frames)})
    torch.testing.assert_close(alone + other, both)
    mean = torch.stack([one[:n].mean(0) for one, n in zip(clip, frames.tolist(), strict=True)])
    x = torch.cat((direction(text, text.mean(0)), direction(mean, scorer.encoders["clip"].norm.shift)), dim=1)  # type: ignore[union-attr, arg-type]
    torch.testing.assert_close(both @ both.T, x @ x.T, atol=1e-4, rtol=0)


def test_only_rankings_by_dot_product_of_items_with_modalities_have_it() -> None:
    named = {"modalities": {"text": 3}}
    assert ModelSpec(**named).likeness_dim == 128  # type: ignore[arg-type]
    assert ModelSpec(**named, likeness=0).likeness_dim == 0  # type: ignore[arg-type]
    assert ModelSpec().likeness_dim == 0
    assert ModelSpec(**named, head="mlp").likeness_dim == 0  # type: ignore[arg-type]
    assert ModelSpec(**named, objective="rating").likeness_dim == 0  # type: ignore[arg-type]


def test_a_user_is_what_they_chose_last() -> None:
    histories = Histories.empty(2, 3)
    item_BP, weight_BP = np.full((2, PAST), -1, np.int64), np.full((2, PAST), np.nan, np.float32)
    item_BP[0, :3], weight_BP[0, :3] = (2, 0, 1), (1.0, -1.0, 1.0)  # the second was disliked
    item_BP[1, EVENTS], weight_BP[1, EVENTS] = 1, 1.0  # too long ago
    histories.past_BP, histories.weight_BP = item_BP, weight_BP
    table = torch.eye(3)
    for half_life in (2.0, 30.0):
        older = 0.5 ** (2 / half_life)
        expected = torch.tensor([[0.0, older, 1.0], [0.0, 0.0, 0.0]]) / (1 + older)
        torch.testing.assert_close(histories.liked(half_life).mean(table), expected)
