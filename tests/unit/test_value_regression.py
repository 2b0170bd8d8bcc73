"""A user's vector from values: the regression in its dual form against its textbook form, and what it follows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.histories import Histories, HistoryTensors, ValueScale
from models.learner import Learner
from models.memory import EventBatch, Memory
from models.spec import ModelSpec, TrainSpec
from models.value_regression import DRIFTS, LEVEL, PACE, SLOPE, SPANS, TASTE, TOGETHER, ValueRegression

D, E, K, PLACES = 3, 2, 4, 6


def times(parameter: torch.Tensor, first: float | tuple[float, ...]) -> torch.Tensor:
    """What a learned variance or span stands for."""
    return torch.tensor(first) * (PACE * parameter.detach()).exp()


def history(values: list[float]) -> HistoryTensors:
    """One user's values, newest first, of a stream of mean 3 and deviation 1; NaN: an event without one."""
    one = Histories.empty(1, PLACES)
    count = len(values)
    one.item_BL[0, :count] = np.arange(count)
    one.value_BL[0, :count] = values
    one.time_BL[0, :count] = 100.0 - np.arange(count)
    one.count_B[:] = count
    return one.tensors(ValueScale(count=2.0, total=6.0, squares=20.0))


def items(seed: int = 0) -> torch.Tensor:
    """Published vectors of six items, (1, L, V)."""
    drawn = torch.randn(1, PLACES, D + E + K + 1, generator=torch.Generator().manual_seed(seed))
    drawn[..., -1] = 1
    return drawn


@torch.no_grad()
def published(values: list[float], *, dot: bool = True) -> torch.Tensor:
    """The user's vector (V,)."""
    regression = ValueRegression(D, dot=dot, together=dot)
    vectors = items() if dot else torch.cat((items()[..., : D + E], items()[..., -1:]), dim=2)
    regression.observe(vectors[0, :, :D] + 0.5, vectors[0, :, D + E : -1])
    regression.anyone.copy_(torch.tensor([0.3, -0.2, 0.1]))
    users: torch.Tensor = regression(torch.zeros(1, D), torch.ones(1, E), vectors, history(values))
    return users[0]


@torch.no_grad()
def test_scores_are_those_of_a_regression_with_a_weight_for_each_thing_that_is_unknown() -> None:
    values = [5.0, float("nan"), 1.0, 4.0]
    regression = ValueRegression(D, dot=True, together=True)
    vectors = items()[0].double()
    regression.observe(items()[0, :, :D] + 0.5, items()[0, :, D + E : -1])
    w = vectors[:, D + E : -1]
    w = w / w.square().sum(1).mean().sqrt()
    centre, size = (vectors[:, :D] + 0.5).mean(0), regression.size.double()
    e = (vectors[:, :D] - centre) / size
    expected = e @ torch.tensor([0.3, -0.2, 0.1]).double() + vectors[:, D : D + E].sum(1)
    # weights: tastes of the personal part and of co-occurrence, the slope, the level that stays, and one for each place
    # and drift
    place = torch.arange(-1.0, PLACES).double()  # the next event comes before the newest
    drifts = [
        a * torch.exp(-(place[:, None] - place).abs() / span)
        for a, span in zip(
            times(regression.drifts, DRIFTS).double(), times(regression.spans, SPANS).double(), strict=True
        )
    ]
    variances = torch.block_diag(  # type: ignore[no-untyped-call]
        times(regression.taste, TASTE) * torch.eye(D),
        times(regression.together, TOGETHER) * torch.eye(K),
        times(regression.slope, SLOPE)[None, None],
        times(regression.level, LEVEL)[None, None],
    ).double()
    prior = torch.block_diag(variances, *drifts)  # type: ignore[no-untyped-call]
    drift_of = torch.eye(PLACES + 1).double().repeat(1, 2)
    design = torch.cat((e, w, expected[:, None], torch.ones(PLACES, 1), drift_of[1:]), dim=1)
    there = torch.tensor([0, 2, 3])
    x, z = design[there], torch.tensor([5.0, 1.0, 4.0]).double() - 3 - expected[there]
    found = torch.linalg.solve(prior.inverse() + x.T @ x, x.T @ z)
    for item in range(PLACES):
        now = torch.cat((e[item], w[item], expected[item : item + 1], torch.ones(1), drift_of[0]))
        score = float(published(values) @ items()[0, item])
        assert abs(score - float(3 + expected[item] + now @ found)) < 1e-4


@torch.no_grad()
@pytest.mark.parametrize("far", [-10.0, 10.0])
def test_variances_that_ran_away_leave_a_vector_that_is_finite(far: float) -> None:
    regression = ValueRegression(D, dot=True, together=True)
    for parameter in (regression.level, regression.drifts, regression.spans, regression.taste, regression.slope):
        parameter.fill_(far)
    regression.together.fill_(far)
    users = regression(torch.zeros(1, D), torch.ones(1, E), items(), history([5.0, 1.0, 4.0]))
    assert users.isfinite().all()


def test_without_values_everybody_is_anyone() -> None:
    nothing = published([])
    assert torch.equal(nothing, published([float("nan")] * 3))
    assert torch.equal(nothing[D : D + E], torch.ones(E))
    assert not nothing[D + E : -1].any()
    assert not torch.equal(nothing, published([5.0]))


def test_newer_values_say_more_of_the_level_and_more_values_say_more() -> None:
    levels = [float(published(values, dot=False)[-1]) for values in ([5.0, 3.0], [3.0, 5.0], [5.0, 5.0], [3.0, 3.0])]
    newest, older, both, neither = levels
    assert neither < older < newest < both


def test_how_much_tastes_vary_is_learned_and_here_they_do_not() -> None:
    rng = np.random.default_rng(0)
    levels = rng.normal(size=100)
    spec = ModelSpec(dim=8, objective="rating")
    memory = Memory(spec, {"default": 1.0})
    learner = Learner(spec, TrainSpec(threads=1), memory, seed=0)
    for phase in range(12):
        n = 2_000
        user, item = rng.integers(len(levels), size=n), rng.integers(40, size=n)
        values = (3 + levels[user] + 0.3 * rng.normal(size=n)).astype(np.float32)
        at = 1e9 + phase * n + np.arange(n, dtype=float)
        batch = EventBatch([f"u{u}" for u in user], [f"i{i}" for i in item], ["rating"] * n, values, at)
        learner.learn(np.asarray(memory.append(batch)), replay_ratio=0.0)
    regression = learner.scorer.regression
    assert regression is not None
    assert float(times(regression.taste, TASTE)) < 0.75 * TASTE


def test_tastes_are_learned_without_any_content() -> None:
    rng = np.random.default_rng(0)
    tastes, items = rng.normal(size=(60, 2)), rng.normal(size=(40, 2))
    spec = ModelSpec(dim=8, objective="rating")
    memory = Memory(spec, {"default": 1.0})
    learner = Learner(spec, TrainSpec(threads=1), memory, seed=0)
    losses = []
    for phase in range(5):
        n = 1_000
        user, item = rng.integers(60, size=n), rng.integers(40, size=n)
        values = (3 + (tastes[user] * items[item]).sum(1)).astype(np.float32)
        times = 1e9 + phase * n + np.arange(n, dtype=float)
        batch = EventBatch([f"u{u}" for u in user], [f"i{i}" for i in item], ["rating"] * n, values, times)
        losses.append(learner.learn(np.asarray(memory.append(batch)), replay_ratio=0.0).loss)
    # 1 is what a mean foresees; of tastes that are orthogonal to it, no bias knows anything
    assert losses[-1] < 0.5
