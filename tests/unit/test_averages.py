"""The average that is served is that of all steps, whichever rows were in them."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from models.averages import Averages
from models.item_tables import RowTable
from models.learner import Learner
from models.serving import Snapshot
from models.spec import TrainSpec
from tests.unit.test_learner import ACTIONS, TRAIN, spec_of, world


def test_average_of_rows_that_were_in_few_steps_is_that_of_all_steps() -> None:
    draw = torch.Generator().manual_seed(0)
    table = RowTable(3, "cpu")
    table.grow(5)
    table.values.copy_(torch.randn(5, 3, generator=draw))
    table.average.copy_(table.values)
    expected = table.values.clone()
    for number, rows in enumerate(([0, 1], [1], [0, 1, 2], None, [3], [1, 0])):
        index = None if rows is None else torch.tensor(rows)
        count = 5 if rows is None else len(rows)
        gradient = torch.randn(count, 3, generator=draw)
        keep = Averages.share(0.9, number)
        table.step(index, gradient, torch.ones(count, dtype=torch.bool), rate=0.1, decay=0.0, keep=keep)
        expected = keep * expected + (1 - keep) * table.values
        if number == 2:
            table.settle()
            torch.testing.assert_close(table.average, expected)
    assert not torch.allclose(table.average, expected)  # some rows wait for their next step
    table.settle()
    torch.testing.assert_close(table.average, expected)


def test_average_starts_as_the_mean_and_then_forgets() -> None:
    assert Averages.share(0.98, 0) == 0
    assert 0 < Averages.share(0.98, 5) < Averages.share(0.98, 50) < 0.98
    assert Averages.share(0.98, 10_000) == 0.98


def test_in_place_puts_the_averages_where_the_weights_are_and_takes_them_away_again() -> None:
    module = nn.Linear(2, 1)
    averages = Averages(module, {})
    start = module.weight.detach().clone()
    with torch.no_grad():
        module.weight += 1
    averages.take(0.75)
    with averages.in_place():
        torch.testing.assert_close(module.weight.detach(), start + 0.25)
    torch.testing.assert_close(module.weight.detach(), start + 1)
    torch.testing.assert_close(averages.state()["weight"], start + 0.25)
    torch.testing.assert_close(averages.weights()["weight"], start + 1)


def test_snapshot_serves_the_average_and_without_one_the_last_weights() -> None:
    spec = spec_of()
    memory = world(spec)
    for average, same in ((0.98, False), (0.0, True)):
        learner = Learner(spec, TrainSpec(batch=48, actions=ACTIONS, average=average), memory, seed=0)
        learner.learn(np.arange(240), replay_ratio=1.0)
        state = learner.state_dict()
        snapshot = Snapshot.build(spec, state, memory, version=1)
        served = snapshot.scorer.state_dict()["tower.outer.weight"]
        assert torch.equal(served, state["scorer"]["tower.outer.weight"])
        assert torch.equal(served, learner.scorer.tower.outer.weight.detach()) == same
        for table in learner.tables.values():
            assert torch.equal(table.average, table.values) == same


def test_history_is_read_with_what_its_items_say_of_a_user_and_forgotten_items_say_nothing() -> None:
    spec = spec_of()
    memory = world(spec)
    learner = Learner(spec, TRAIN, memory, seed=0)
    learner.learn(np.arange(200), replay_ratio=1.0)
    state = learner.state_dict()
    assert state["context"]["values"].abs().sum() > 0
    with_it = Snapshot.build(spec, state, memory, version=1)
    state["context"]["values"] *= 0
    without = Snapshot.build(spec, state, memory, version=1)
    np.testing.assert_array_equal(with_it.vectors("items"), without.vectors("items"))
    assert (with_it.vectors("users") != without.vectors("users")).any()
    row = memory.item_index("4")
    assert row is not None
    memory.forget_item("4")
    learner.learn(np.arange(200, 240), replay_ratio=1.0)
    for table in learner.tables.values():
        assert not table.values[row].any()
        assert not table.average[row].any()
