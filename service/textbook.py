"""`headwater replay --preset textbook`: incremental learning at its smallest, on two worlds whose answer is known.

40 users and 60 items, three phases of ratings. In the *uniform* world ratings are dice, so that no honest test error is
below their variance, 25/12. In the *planted* world a rating is a function of the features plus noise of a known
variance, and a scorer that learns comes near it. Each phase learns, is tested on ratings it has not seen, and is saved
and loaded again before the next, as the daemon does it.

Shape suffixes: U users, I items, N ratings; `pairs_N2` holds a user and an item a row.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from models import losses
from models.textbook import TextbookScorer

USERS, ITEMS = 40, 60
USER_DIM, MODALITIES, DIM = 12, {"image": 16, "text": 16}, 8
PHASES, RATINGS, TESTED = 3, 2_000, 400
EPOCHS, BATCH, LEARNING_RATE = 5, 32, 1e-3


@dataclass(frozen=True, kw_only=True)
class World:
    """Features, the expected rating of every pair, and the noise around it."""

    name: str
    user: Tensor
    """User features, (U, 12)."""
    item: dict[str, Tensor]
    """Item features by modality, (I, 16) each."""
    expected: Tensor
    """Expected rating of every pair, (U, I)."""
    noise: Callable[[int, torch.Generator], Tensor]
    """Draws so many deviations from the expected rating."""
    floor: float
    """Variance of the noise: the least mean squared error that anything can be expected to reach."""
    floor_spread: float
    """Standard deviation of one squared error at the floor."""

    def stray(self, tested: int) -> float:
        """How far chance alone moves the error of a test of this size."""
        return self.floor_spread / math.sqrt(tested)


@dataclass(frozen=True, kw_only=True)
class PhaseResult:
    """What one phase came to."""

    training_mse: list[float]
    """One an epoch."""
    test_mse: float
    examples: list[tuple[int, int, float, float]]
    """A few of the test's ratings: user, item, true, predicted."""


def run(seed: int, console: Console | None = None) -> int:
    """Play both worlds, print what was learned, and return the exit code, 0."""
    out = console or Console()
    out.print(
        f"{USERS} users, {ITEMS} items, {PHASES} phases of {RATINGS} ratings, a random {TESTED} of each for testing;\n"
        "the checkpoint of each phase is saved, and loaded again before the next.\n"
    )
    with one_thread(), tempfile.TemporaryDirectory() as folder:
        for build in (uniform_world, planted_world):
            world = build(seed)
            results = list(learn(world, seed=seed, checkpoint=Path(folder) / f"{world.name}.pt"))
            out.print(_error_table(world, results))
            out.print(_example_table(results[-1]))
            out.print(_conclusion(world, results[-1]) + "\n")
    return 0


def uniform_world(seed: int) -> World:
    """Ratings uniform on [0, 5], whoever rates what: nothing to learn but their mean."""
    user, item = _features(torch.Generator().manual_seed(seed))
    variance = 25 / 12
    return World(
        name="uniform",
        user=user,
        item=item,
        expected=torch.full((USERS, ITEMS), 2.5),
        noise=lambda count, generator: 5 * torch.rand(count, generator=generator) - 2.5,
        floor=variance,
        floor_spread=math.sqrt(2.5**4 / 5 - variance**2),  # the fourth moment is half-width⁴ / 5
    )


def planted_world(seed: int, *, match: float = 0.3, variance: float = 0.5) -> World:
    """rating = [1; user]ᵀ A [1; item] + normal noise of `variance`: bilinear in the features.

    A has rank 2: how generous a user is, how good an item is, and, `match` times as strong, how the two go together.
    """
    generator = torch.Generator().manual_seed(seed)
    user, item = _features(generator)
    both = torch.cat(list(item.values()), dim=1)
    generous_U = _standardised(user @ torch.randn(user.shape[1], generator=generator))
    good_I = _standardised(both @ torch.randn(both.shape[1], generator=generator))
    return World(
        name="planted",
        user=user,
        item=item,
        expected=2.5 + (generous_U.unsqueeze(1) + good_I) / math.sqrt(2) + match * torch.outer(generous_U, good_I),
        noise=lambda count, generator: math.sqrt(variance) * torch.randn(count, generator=generator),
        floor=variance,
        floor_spread=math.sqrt(2) * variance,
    )


def learn(world: World, *, seed: int, checkpoint: Path) -> Iterator[PhaseResult]:
    """Learn the phases one after another, each from the file `checkpoint` that the last one left."""
    generator = torch.Generator().manual_seed(seed + 1)  # apart from the one that drew the world
    for phase in range(PHASES):
        # 1. What the last phase saved is all that passes on to this one.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            scorer = TextbookScorer(USER_DIM, MODALITIES, dim=DIM, fusion="sum")
        optimizer = torch.optim.Adam(scorer.parameters(), lr=LEARNING_RATE)
        if phase > 0:
            saved = torch.load(checkpoint, weights_only=True)
            scorer.load_state_dict(saved["scorer"])
            optimizer.load_state_dict(saved["optimizer"])
        # 2. New ratings, in random order: the first are kept for testing.
        user_N = torch.randint(USERS, (RATINGS,), generator=generator)
        item_N = torch.randint(ITEMS, (RATINGS,), generator=generator)
        pairs_N2 = torch.stack((user_N, item_N), dim=1)
        rating_N = world.expected[user_N, item_N] + world.noise(RATINGS, generator)
        # 3. Learn the others.
        training_mse = []
        for _ in range(EPOCHS):
            squares = 0.0
            order = TESTED + torch.randperm(RATINGS - TESTED, generator=generator)
            for rows in torch.split(order, BATCH):
                loss = losses.mse(predict(scorer, world, pairs_N2[rows]), rating_N[rows])
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
                squares += loss.item() * len(rows)
            training_mse.append(squares / len(order))
        # 4. Save before testing: nothing that is tested may still change.
        torch.save({"scorer": scorer.state_dict(), "optimizer": optimizer.state_dict()}, checkpoint)
        # 5. Test.
        with torch.no_grad():
            predicted = predict(scorer, world, pairs_N2[:TESTED])
        pairs, true = pairs_N2[:4].tolist(), rating_N[:4].tolist()
        yield PhaseResult(
            training_mse=training_mse,
            test_mse=losses.mse(predicted, rating_N[:TESTED]).item(),
            examples=[(u, i, y, p) for (u, i), y, p in zip(pairs, true, predicted[:4].tolist(), strict=True)],
        )


def predict(scorer: TextbookScorer, world: World, pairs_N2: Tensor) -> Tensor:
    """Predicted ratings (N,) of pairs (N, 2)."""
    user_N, item_N = pairs_N2.unbind(dim=1)
    return scorer(world.user[user_N], {name: x[item_N] for name, x in world.item.items()})  # type: ignore[no-any-return]


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread within: matrices this small only wait for each other's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _features(generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
    user = torch.randn(USERS, USER_DIM, generator=generator)
    return user, {name: torch.randn(ITEMS, length, generator=generator) for name, length in MODALITIES.items()}


def _standardised(x: Tensor) -> Tensor:
    return (x - x.mean()) / x.std()


def _error_table(world: World, results: list[PhaseResult]) -> Table:
    floor = f"noise floor {world.floor:.3f} ± {world.stray(TESTED):.3f}"
    table = Table(title=f"{world.name} ratings: mean squared error, {floor}", title_justify="left")
    table.add_column("phase", justify="right")
    for epoch in range(EPOCHS):
        table.add_column(f"epoch {epoch + 1}", justify="right")
    table.add_column("test", justify="right", style="bold")
    for phase, result in enumerate(results, start=1):
        training = [f"{mse:.3f}" for mse in result.training_mse]
        table.add_row(str(phase), *training, f"{result.test_mse:.3f}")
    return table


def _example_table(result: PhaseResult) -> Table:
    table = Table(title="a few of the last test's ratings", title_justify="left")
    for column in ("user", "item", "true", "predicted"):
        table.add_column(column, justify="right")
    for user, item, true, predicted in result.examples:
        table.add_row(str(user), str(item), f"{true:.2f}", f"{predicted:.2f}")
    return table


def _conclusion(world: World, result: PhaseResult) -> str:
    return (
        f"The last test error is {result.test_mse / world.floor:.2f} times the noise floor "
        f"({result.test_mse - world.floor:+.3f});\n"
        f"over {TESTED} ratings chance alone moves it by ± {world.stray(TESTED):.3f}."
    )
