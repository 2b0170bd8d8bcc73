"""How near Headwater comes to the best possible ranking in simulated worlds whose laws change: the oracle knows them.

    python -m benchmarks.laws [steady] [appeal] [regime] [releases] [--seeds 0 1 2]

Four worlds, all with the default configuration and the same phases of 5,000 events; of each phase a sample is ranked,
by Headwater and by the oracle, from the same candidates. Figures are Headwater's NDCG@20 over the oracle's.

- `steady`: nothing drifts, fades or arrives; the mean of the last four phases. Beside it stands what can be reached: an
  ideal observer is told all about the items and the law of choice, and has to infer no more than tastes, from the same
  events.
- `appeal`: all items' appeal is drawn anew at once; how many phases it takes to be back at 90% of the level before.
- `regime`: all tastes turn from A to B and back; the first phase back in A relative to the level A had.
- `releases`: items and users arrive all the time, items fade within days, and tastes differ little; the mean of the
  last four phases, beside that of decayed popularity with the half-life that is best in hindsight, and the recall of
  items that nobody had touched.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from benchmarks.baselines import DecayedPopularity
from benchmarks.contender import NEVER, make
from benchmarks.outcome import Outcome
from benchmarks.prequential import Entrant, Past, evaluate
from benchmarks.stream import Stream
from models.ranking import ndcg_at_k
from service.config import Config
from streams.simulator import Simulator, World

PHASE = 5_000
WARM = 4
"""Phases that are learned as one, and not measured."""
RANKED, RANKED_BY_IDEAL = 0.5, 0.1
"""Share of the events that is ranked; and beside the ideal observer, who infers a taste anew for each."""
STEADY = 4
"""Phases whose mean is the level before a change, or at the end."""
PHASES = 20
CHANGE = 12
"""The phase, from 0, that begins with a change; under `regime` there is a second one after `STEADY` phases of B."""
GOALS = {"steady": 0.85, "appeal": 3.0, "regime": 0.95}
LAWS = (*GOALS, "releases")
HALF_LIVES = (100, 250, 500, 1_000)
"""Of decayed popularity, in events."""
K = 20
NEWTON_STEPS = 8
ROUNDING = 1e-9
"""Items that are left after all others were met may be so unlikely that nothing of them is left of a difference."""


def world(law: str, seed: int, *, events: int = PHASES * PHASE) -> World:
    """The world of a law: still, but for what the law changes; one of releases is never still."""
    if law == "releases":
        return World(
            seed=seed + 1, events=events, items=200, arrival_rate=15.0, fade=2_500.0, appeal=2.0,
            users=4_000, user_arrival_rate=60.0, activity=1.2, taste=0.2, drift=0.1,
        )  # fmt: skip
    still: dict[str, Any] = {"drift": 0.0, "fade": 1e9, "arrival_rate": 0.0, "user_arrival_rate": 0.0}
    at = CHANGE * PHASE
    changes: dict[str, dict[str, Any]] = {
        "steady": {},
        "appeal": {"appeal_changes": (at,)},
        "regime": {"regime_switches": (at, at + STEADY * PHASE)},
    }
    return World(seed=seed + 1, events=events, **still, **changes[law])


class OracleEntrant:
    """Ranks by the true utilities."""

    def __init__(self, past: Past, simulator: Simulator) -> None:
        run = simulator.run()
        self._simulator = simulator
        self._users = np.array(list(dict.fromkeys(run.user.tolist())))
        self._items = np.array(list(dict.fromkeys(run.item.tolist())))
        if (len(self._users), len(self._items)) != (past.nu, past.ni):
            raise ValueError("The stream is not this world's.")

    def event(self, j: int) -> None:
        """It knows already."""

    def train(self, a: int, b: int) -> None:
        """It knows already."""

    def row(self, u: int, history: list[int], t: float) -> NDArray[np.float64]:  # noqa: ARG002
        """True utilities, (I,)."""
        event = self._simulator.world.event_at(t)
        known = self._simulator.oracle.utilities(event, self._users[[u]])[0]
        out = np.full(len(self._items), NEVER)
        there = self._items < len(known)
        out[there] = known[self._items[there]]
        return out


class IdealObserver(OracleEntrant):
    """Ranks by true utilities but for the taste, which is the likeliest after what its user chose.

    The posterior of θ under the law of choice, softmax over the items that a user has not met lately, and its Gaussian
    prior; by Newton's method. What it leaves unread: skips, and that purchases are of the better matches.
    """

    def __init__(self, past: Past, simulator: Simulator) -> None:
        super().__init__(past, simulator)
        self._past = past
        self._latent_ID = simulator.world.taste * simulator.catalogue.latent.astype(np.float64)

    def row(self, u: int, history: list[int], t: float) -> NDArray[np.float64]:  # noqa: ARG002
        """Expected utilities, (I,)."""
        z_ID, appeal_I = self._latent_ID, self._simulator.catalogue.appeal(self._simulator.world.event_at(t))
        size, met = z_ID.shape[1], self._items[self._past.i[history]]
        chosen_L = self._past.positive[history]
        moments_IM = np.concatenate((np.ones((len(z_ID), 1)), z_ID, _squares(z_ID)), axis=1)
        taste_D, sum_D = np.zeros(size), z_ID[met[chosen_L]].sum(0)
        for _ in range(NEWTON_STEPS):
            utility_I = z_ID @ taste_D + appeal_I
            weighted_IM = np.exp(utility_I - utility_I.max())[:, None] * moments_IM
            # of the items that could be met at each event: all but those of the events just before
            gone_LM = np.cumsum(np.concatenate((np.zeros((1, moments_IM.shape[1])), weighted_IM[met]))[:-1], axis=0)
            back = self._simulator.world.no_repeat
            gone_LM[back:] -= gone_LM[: max(0, len(met) - back)].copy()
            free_LM = (weighted_IM.sum(0) - gone_LM)[chosen_L]
            mean_LM = free_LM[:, 1:] / np.maximum(free_LM[:, :1], ROUNDING * weighted_IM[:, 0].sum())
            mean_LD, square_LS = mean_LM[:, :size], mean_LM[:, size:]
            spread_DD = (square_LS - _squares(mean_LD)).sum(0).reshape(size, size)
            # a unit vector's coordinates vary by 1 / D
            gradient_D = sum_D - mean_LD.sum(0) - size * taste_D
            taste_D += np.linalg.solve(spread_DD + size * np.eye(size), gradient_D)
        return np.asarray((z_ID @ taste_D + appeal_I)[self._items])


def _squares(x_ND: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each row's products of two coordinates, (N, D · D)."""
    return (x_ND[:, :, None] * x_ND[:, None, :]).reshape(len(x_ND), x_ND.shape[1] ** 2)


class Run:
    """A world's stream, through which entrants go one after another, and the oracle once for each share ranked."""

    def __init__(self, law: str, seed: int) -> None:
        self.simulator = Simulator(world(law, seed))
        self._stream = Stream.of_world(self.simulator.world)
        self._best: dict[float, list[float]] = {}

    def walk(self, entrant: Callable[[Past], Entrant], ranked: float = RANKED) -> Outcome:
        """What an entrant comes to in the measured phases."""
        return evaluate(self._stream, entrant, warm=WARM / PHASES, phases=PHASES - WARM, k=K, ranked_share=ranked)

    def relative(self, found: Outcome, ranked: float = RANKED) -> list[float]:
        """NDCG@20 over the oracle's on the same events, of each measured phase."""
        if ranked not in self._best:
            self._best[ranked] = by_phase(self.walk(lambda past: OracleEntrant(past, self.simulator), ranked))
        return [one / best for one, best in zip(by_phase(found), self._best[ranked], strict=True)]


def by_phase(found: Outcome) -> list[float]:
    """NDCG@20 of each measured phase."""
    rank, phase = np.array(found.rank), np.array(found.phase)
    return [ndcg_at_k(rank[phase == number], K) for number in range(1, phase.max() + 1)]


def measured(law: str, seed: int) -> dict[str, Any]:
    """A law's figure, and what stands beside it."""
    run = Run(law, seed)
    ours = run.walk(lambda past: make(past, Config(seed=seed)))
    shares = run.relative(ours)
    line: dict[str, Any] = {"figure": figure(law, shares)}
    if law == "steady":
        ideal = run.walk(lambda past: IdealObserver(past, run.simulator), RANKED_BY_IDEAL)
        line["ideal"] = figure(law, run.relative(ideal, RANKED_BY_IDEAL))
    if law == "releases":
        decayed = [run.walk(partial(DecayedPopularity, half_life=half_life)) for half_life in HALF_LIVES]
        line["best_decayed"] = max(figure(law, run.relative(one)) for one in decayed)
        line["cold_recall"] = ours.figures()["cold_recall"]
    return line | {"share_of_oracle": shares}


def figure(law: str, shares: Sequence[float]) -> float:
    """What the law is judged by; of `appeal` the number of phases, infinite where the level is never reached again."""
    change = CHANGE - WARM
    before = float(np.mean(shares[change - STEADY : change]))
    if law in ("steady", "releases"):
        return float(np.mean(shares[-STEADY:]))
    if law == "appeal":
        back = [number for number, share in enumerate(shares[change:], 1) if share >= 0.9 * before]
        return float(back[0]) if back else float("inf")
    return shares[change + STEADY] / before


def main() -> None:
    """Run the laws, print a line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("laws", nargs="*", default=list(LAWS), help="which of them; all unless named")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    unknown = set(args.laws) - set(LAWS)
    if unknown:
        parser.error(f"There is no law {sorted(unknown)[0]!r}; there are {', '.join(LAWS)}.")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    for law in args.laws:
        for seed in args.seeds:
            line = {"law": law, "seed": seed, "goal": GOALS.get(law)} | measured(law, seed)
            rounded = json.loads(json.dumps(line), parse_float=lambda text: round(float(text), 3))
            print(json.dumps(rounded), flush=True)


if __name__ == "__main__":
    main()
