"""How near Headwater comes to the best possible ranking in simulated worlds whose laws change: the oracle knows them.

    python -m benchmarks.laws [steady] [appeal] [regime] [--seeds 0 1 2]

Three worlds, all with the default configuration and the same phases of 5,000 events; of each phase a sample is ranked,
by Headwater and by the oracle, from the same candidates. Figures are Headwater's NDCG@20 over the oracle's.

- `steady`: nothing drifts, fades or arrives; the mean of the last four phases. Beside it stands what can be reached: an
  ideal observer is told all about the items and the law of choice, and has to infer no more than tastes, from the same
  events.
- `appeal`: all items' appeal is drawn anew at once; how many phases it takes to be back at 90% of the level before.
- `regime`: all tastes turn from A to B and back; the first phase back in A relative to the level A had.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from benchmarks.contender import NEVER, make
from benchmarks.prequential import Past, evaluate
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
K = 20
NEWTON_STEPS = 8
ROUNDING = 1e-9
"""Items that are left after all others were met may be so unlikely that nothing of them is left of a difference."""


def world(law: str, seed: int, *, events: int = PHASES * PHASE) -> World:
    """The world of a law: still, but for what the law changes."""
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
    return (x_ND[:, :, None] * x_ND[:, None, :]).reshape(len(x_ND), -1)


def relative(law: str, seed: int, *, ideal: bool = False) -> list[float]:
    """Headwater's NDCG@20 over the oracle's, of each measured phase; or the ideal observer's."""
    simulator = Simulator(world(law, seed))
    stream = Stream.of_world(simulator.world)
    by_phase, ranked = [], RANKED_BY_IDEAL if ideal else RANKED
    first = (lambda past: IdealObserver(past, simulator)) if ideal else (lambda past: make(past, Config(seed=seed)))
    for entrant in (first, lambda past: OracleEntrant(past, simulator)):
        found = evaluate(stream, entrant, warm=WARM / PHASES, phases=PHASES - WARM, k=K, ranked_share=ranked)
        rank, phase = np.array(found.rank), np.array(found.phase)
        by_phase.append([ndcg_at_k(rank[phase == number], K) for number in range(1, phase.max() + 1)])
    return [ours / best for ours, best in zip(*by_phase, strict=True)]


def figure(law: str, shares: Sequence[float]) -> float:
    """What the law is judged by; of `appeal` the number of phases, infinite where the level is never reached again."""
    change = CHANGE - WARM
    before = float(np.mean(shares[change - STEADY : change]))
    if law == "steady":
        return float(np.mean(shares[-STEADY:]))
    if law == "appeal":
        back = [number for number, share in enumerate(shares[change:], 1) if share >= 0.9 * before]
        return float(back[0]) if back else float("inf")
    return shares[change + STEADY] / before


def main() -> None:
    """Run the laws, print a line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("laws", nargs="*", default=list(GOALS), help="which of them; all unless named")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    unknown = set(args.laws) - set(GOALS)
    if unknown:
        parser.error(f"There is no law {sorted(unknown)[0]!r}; there are {', '.join(GOALS)}.")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    for law in args.laws:
        for seed in args.seeds:
            shares = relative(law, seed)
            line = {"law": law, "seed": seed, "figure": round(figure(law, shares), 3), "goal": GOALS[law]}
            if law == "steady":
                line["ideal"] = round(figure(law, relative(law, seed, ideal=True)), 3)
            print(json.dumps(line | {"share_of_oracle": [round(share, 3) for share in shares]}), flush=True)


if __name__ == "__main__":
    main()
