"""The textbook preset: near the floor where there is nothing to learn, near the noise where there is."""

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console

from models.textbook import TextbookScorer
from service.textbook import EPOCHS, PHASES, TESTED, learn, planted_world, run, uniform_world

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("seed", [0, 1])
def test_dice_are_never_predicted_meaningfully_below_their_variance(seed: int, tmp_path: Path) -> None:
    world = uniform_world(seed)
    results = list(learn(world, seed=seed, checkpoint=tmp_path / "uniform.pt"))
    for result in results:
        assert result.test_mse > world.floor - 3 * world.stray(TESTED)
        assert result.test_mse < 1.2 * world.floor + 3 * world.stray(TESTED)


@pytest.mark.parametrize("seed", [0, 1, 3])
def test_a_planted_rule_is_learned_to_within_a_third_of_the_noise(seed: int, tmp_path: Path) -> None:
    world = planted_world(seed)
    assert world.expected.var().item() > world.floor  # there is something to learn
    results = list(learn(world, seed=seed, checkpoint=tmp_path / "planted.pt"))
    assert [len(result.training_mse) for result in results] == [EPOCHS] * PHASES
    assert results[0].training_mse[0] > results[0].training_mse[-1]
    assert abs(results[-1].test_mse - world.floor) < world.floor / 3


def test_noise_has_the_variance_that_is_claimed() -> None:
    for world in (uniform_world(0), planted_world(0)):
        squares = world.noise(200_000, torch.Generator().manual_seed(0)) ** 2
        assert squares.mean().item() == pytest.approx(world.floor, rel=0.02)
        assert squares.std().item() == pytest.approx(world.floor_spread, rel=0.05)


def test_a_seed_prints_the_same_twice_and_says_what_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.textbook.RATINGS", TESTED + 200)  # what is learned of them is tested above
    printed = []
    for _ in range(2):
        console = Console(file=io.StringIO(), width=100)
        assert run(3, console) == 0
        assert isinstance(console.file, io.StringIO)
        printed.append(console.file.getvalue())
    assert printed[0] == printed[1]
    for words in (
        "uniform ratings",
        "planted ratings",
        "2.083 ±",
        "epoch 5",
        "test",
        "predicted",
        "times the noise floor",
    ):
        assert words in printed[0]


def test_a_caller_keeps_its_random_state(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    next(learn(uniform_world(0), seed=0, checkpoint=tmp_path / "uniform.pt"))
    assert torch.equal(before, torch.get_rng_state())


def test_the_scorer_gives_one_rating_a_pair() -> None:
    scorer = TextbookScorer(3, {"image": 4, "text": 5}, dim=2)
    assert scorer(torch.ones(7, 3), {"text": torch.ones(7, 5), "image": torch.ones(7, 4)}).shape == (7,)
