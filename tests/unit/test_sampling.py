"""Sampling: the distributions are the ones stated, and the same seed draws the same."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.sampling import favour_rare, replay_positions, systematic_sample, uniform_negatives


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def chi_squared_per_degree(observed: np.ndarray, expected: np.ndarray) -> float:
    return float(((observed - expected) ** 2 / expected).sum() / (len(expected) - 1))


def test_negatives_are_uniform_over_the_candidates() -> None:
    candidates = torch.tensor([3, 5, 8, 13])
    drawn = uniform_negatives(candidates, (100, 200), generator=generator())
    assert drawn.shape == (100, 200)
    counts = np.array([(drawn == c).sum().item() for c in candidates])
    assert counts.sum() == 20_000
    assert chi_squared_per_degree(counts, np.full(4, 5_000)) < 5
    assert uniform_negatives(candidates, 7, generator=generator()).shape == (7,)


def test_negatives_without_candidates_say_so() -> None:
    with pytest.raises(ValueError, match="announce"):
        uniform_negatives(torch.empty(0, dtype=torch.int64), 3, generator=generator())


@pytest.mark.parametrize(("n", "half_life"), [(10, 3.0), (40, 1000.0), (12, 0.7), (25, math.inf)])
def test_replay_halves_with_every_half_life(n: int, half_life: float) -> None:
    positions = replay_positions(n, 40_000, half_life, generator())
    weight = 2.0 ** (-(n - 1 - np.arange(n)) / half_life)
    expected = 40_000 * weight / weight.sum()
    enough = expected >= 5
    observed = np.bincount(positions, minlength=n)
    assert chi_squared_per_degree(observed[enough], expected[enough]) < 3


@settings(deadline=None, max_examples=200)
@given(
    n=st.integers(1, 10**9),
    exclude_from=st.none() | st.integers(1, 10**9),
    half_life=st.floats(1e-3, 1e12),
    seed=st.integers(0, 1000),
)
def test_replay_stays_within_what_is_stored(n: int, exclude_from: int | None, half_life: float, seed: int) -> None:
    positions = replay_positions(n, 50, half_life, generator(seed), exclude_from=exclude_from)
    assert positions.dtype == np.int64
    assert positions.shape == (50,)
    assert positions.min() >= 0
    assert positions.max() < min(n, exclude_from or n)


def test_ages_count_from_the_newest_that_may_be_drawn() -> None:
    shifted = replay_positions(1_000, 500, 20.0, generator(), exclude_from=300)
    assert np.array_equal(shifted, replay_positions(300, 500, 20.0, generator()))
    assert shifted.max() == 299


def test_the_same_seed_draws_the_same() -> None:
    first = replay_positions(1_000, 100, 50.0, generator(1))
    assert np.array_equal(first, replay_positions(1_000, 100, 50.0, generator(1)))
    assert not np.array_equal(first, replay_positions(1_000, 100, 50.0, generator(2)))


@pytest.mark.parametrize(("n", "count", "exclude_from"), [(0, 5, None), (5, 0, None), (5, 5, 0)])
def test_nothing_stored_or_asked_for_draws_nothing(n: int, count: int, exclude_from: int | None) -> None:
    assert len(replay_positions(n, count, 10.0, generator(), exclude_from=exclude_from)) == 0


@pytest.mark.parametrize("half_life", [0.0, -1.0, math.nan])
def test_a_half_life_that_is_not_positive_is_refused(half_life: float) -> None:
    with pytest.raises(ValueError, match="half-life"):
        replay_positions(10, 1, half_life, generator())


def test_rare_items_are_favoured_as_far_as_is_asked() -> None:
    # of 40,000 draws a tenth are of a rare item, the others of one that nine times as much happened to
    rare = np.arange(40_000) % 10 == 0
    happened = np.where(rare, 100.0, 900.0)
    shares = [
        np.mean(
            [rare[favour_rare(np.arange(40_000), happened, 200, power, generator(seed))].mean() for seed in range(20)]
        )
        for power in (0.0, 0.5, 1.0)
    ]
    np.testing.assert_allclose(shares, [0.1, 0.25, 0.5], atol=0.03)


def test_no_draw_is_kept_twice_and_none_of_what_is_gone() -> None:
    gone = np.arange(100) % 4 == 0
    kept = favour_rare(np.arange(100), np.where(gone, np.inf, 1.0), 80, 0.5, generator())
    assert len(kept) == len(set(kept.tolist())) == 75
    assert not gone[kept].any()
    assert len(favour_rare(np.arange(3), np.full(3, np.inf), 2, 1.0, generator())) == 0


def test_a_systematic_sample_has_its_size_and_each_row_as_often_as_it_says() -> None:
    draw = torch.Generator().manual_seed(0)
    weight = torch.cat((torch.tensor([50.0, 0.0, 20.0]), torch.rand(97, generator=draw)))
    drawn = torch.zeros(100)
    for _ in range(4_000):
        rows, chance = systematic_sample(weight, 20, draw)
        assert len(rows) == len(set(rows.tolist())) == 20
        drawn[rows] += 1
    drawn /= 4_000
    assert drawn[:3].tolist() == [1, 0, 1]
    expected = 18 * weight[3:] / weight[3:].sum()
    assert (drawn[3:] - expected).abs().max() < 0.04  # five standard errors
    assert chance.tolist() == pytest.approx([1.0, 1.0, *expected[rows[2:] - 3].tolist()], rel=1e-5)


def test_of_few_rows_all_are_in_a_systematic_sample() -> None:
    rows, chance = systematic_sample(torch.tensor([0.0, 3.0, 0.5]), 2, torch.Generator())
    assert (rows.tolist(), chance.tolist()) == ([1, 2], [1.0, 1.0])
    rows, _ = systematic_sample(torch.zeros(5), 2, torch.Generator())
    assert rows.tolist() == []
