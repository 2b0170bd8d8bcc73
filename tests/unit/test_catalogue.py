"""The rows that a step sends through the encoders."""

from __future__ import annotations

import torch

from models.catalogue import chosen_rows


def test_chosen_rows_stand_for_all_of_them() -> None:
    generator = torch.Generator().manual_seed(3)
    gradient_RD = torch.randn(400, 4, generator=generator) * torch.rand(400, 1, generator=generator) ** 4
    gradient_RD[7] = 50
    gradient_RD[50:90] = 0
    sums = []
    for _ in range(3_000):
        chosen, weights = chosen_rows(gradient_RD, 40, generator)
        assert len(torch.unique(chosen)) == 40
        assert weights[chosen == 7].tolist() == [1.0]
        assert (weights >= 1).all()
        sums.append((gradient_RD[chosen] * weights.unsqueeze(1)).sum(0))
    spread_D = torch.stack(sums).std(0) / len(sums) ** 0.5
    assert ((torch.stack(sums).mean(0) - gradient_RD.sum(0)).abs() < 4 * spread_D).all()


def test_where_rows_are_few_all_are_chosen() -> None:
    chosen, weights = chosen_rows(torch.randn(5, 2), 5, torch.Generator())
    assert chosen.tolist() == list(range(5))
    assert weights.tolist() == [1.0] * 5


def test_no_gradient_at_all_chooses_rows_all_the_same() -> None:
    chosen, weights = chosen_rows(torch.zeros(9, 2), 4, torch.Generator().manual_seed(0))
    assert len(torch.unique(chosen)) == 4
    assert weights.isfinite().all()


def test_more_certain_rows_than_there_is_room_for_stand_for_themselves() -> None:
    """Targets are given an infinite size, that they be chosen."""
    chosen, weights = chosen_rows(torch.tensor([[1.0]] + [[torch.inf]] * 8), 4, torch.Generator().manual_seed(0))
    assert 0 not in chosen.tolist()
    assert weights.tolist() == [1.0] * 4
