"""What a user chose beyond what was to be expected: the ridge regression it says it is, and better than a mean."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.fold_in import RIDGE, FoldIn

Floats = NDArray[np.float64]


def folded(values: Floats, counts: Floats, chosen: list[list[int]]) -> Floats:
    mean = np.stack([values[items].mean(0) if items else np.zeros(values.shape[1]) for items in chosen])
    reading = FoldIn(torch.from_numpy(values).float(), torch.from_numpy(counts))
    found = reading(torch.from_numpy(mean).float().unsqueeze(1), np.array([[len(items)] for items in chosen]))
    return found[:, 0].double().numpy()


@pytest.mark.parametrize("n", [1, 2, 4, 8, 16])
def test_it_is_the_ridge_regression_of_what_was_and_was_not_chosen(n: int) -> None:
    rng = np.random.default_rng(n)
    values, counts = rng.normal(size=(40, 5)), rng.integers(0, 9, 40).astype(np.float64)
    values[counts == 0] = 0
    items = rng.choice(np.flatnonzero(counts), n, replace=False).tolist()
    p = 1 - np.exp(-n * counts / counts.sum())
    ridge = RIDGE * (values[counts > 0] ** 2).sum(1).mean()
    normal = (values * p[:, None]).T @ values + ridge * np.eye(5)
    expected = np.linalg.solve(normal, values[items].sum(0) - p @ values)
    np.testing.assert_allclose(folded(values, counts, [items])[0], expected, atol=1e-5)


def test_parts_of_the_choices_add_up_to_all_of_them() -> None:
    rng = np.random.default_rng(2)
    values, counts = torch.from_numpy(rng.normal(size=(30, 4))).float(), torch.ones(30)
    reading = FoldIn(values, counts)
    mean_BWK = torch.stack((values[:5].sum(0), values[5:12].sum(0))).unsqueeze(0) / 12
    parts = reading(mean_BWK, np.array([[5, 7]]))
    torch.testing.assert_close(parts.sum(1), reading(mean_BWK.sum(1, keepdim=True), np.array([[12]]))[:, 0])
    # one part says what its choices say beyond as many of anybody's, and nothing of the others
    none = reading(mean_BWK * torch.tensor([1.0, 0.0]).view(1, 2, 1), np.array([[5, 7]]))
    torch.testing.assert_close(none[:, 0], parts[:, 0])


def test_who_chose_nothing_has_no_taste_nor_does_anyone_before_there_are_items() -> None:
    rng = np.random.default_rng(0)
    values, counts = rng.normal(size=(9, 3)), np.ones(9)
    assert not folded(values, counts, [[]]).any()
    assert not folded(values * 0, counts * 0, [[], [1, 2]]).any()
    assert folded(values[:, :0], counts, [[1]]).shape == (1, 0)


def test_it_finds_tastes_that_a_mean_does_not_once_the_expected_is_used_up() -> None:
    rng = np.random.default_rng(1)
    items, users, each, size = 300, 200, 120, 6
    values = rng.normal(size=(items, size)) / np.sqrt(size)
    appeal = values @ rng.normal(size=size) + rng.normal(size=items)
    tastes = 2 * rng.normal(size=(users, size))
    # the order of utilities with Gumbel noise is that of choices without repeats
    utility = tastes @ values.T + appeal + rng.gumbel(size=(users, items))
    chosen = np.argsort(-utility, axis=1)[:, :each].tolist()
    counts = np.bincount(np.concatenate(chosen), minlength=items).astype(np.float64)

    def error(found: Floats) -> float:
        cosines = (found * tastes).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(tastes, axis=1)
        return 1 - float(cosines.mean())

    by_mean = error(np.stack([values[one].mean(0) for one in chosen]))
    assert error(folded(values, counts, chosen)) < 0.6 * by_mean
