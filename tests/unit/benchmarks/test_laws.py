"""What the laws are judged by, from shares of the oracle; and an oracle that no one can better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks import laws
from benchmarks.baselines import DecayedPopularity
from benchmarks.prequential import Past, evaluate
from benchmarks.stream import Stream
from models.ranking import ndcg_at_k
from streams.simulator import Simulator, World

BEFORE = [0.5] * (laws.CHANGE - laws.WARM)


@pytest.mark.parametrize(
    ("law", "after", "figure"),
    [
        ("steady", [0.6, 0.7, 0.7, 0.8, 0.8, 0.9], 0.8),
        ("appeal", [0.2, 0.4, 0.449, 0.451, 0.5], 4),
        ("appeal", [0.2, 0.3], float("inf")),
        ("regime", [0.1] * laws.STEADY + [0.4, 0.5], 0.8),
        ("releases", [0.6, 0.7, 0.7, 0.8, 0.8, 0.9], 0.8),
    ],
)
def test_figures(law: str, after: Sequence[float], figure: float) -> None:
    assert laws.figure(law, [*BEFORE, *after]) == pytest.approx(figure)


def test_changes_come_where_phases_begin() -> None:
    assert laws.world("steady", 0).appeal_changes == laws.world("steady", 0).regime_switches == ()
    assert [at % laws.PHASE for at in laws.world("regime", 0).regime_switches] == [0, 0]
    assert laws.world("appeal", 0).seed != laws.world("appeal", 1).seed


def test_the_oracle_ranks_by_what_was_chosen_by() -> None:
    world: World = replace(laws.world("steady", 0), users=30, items=60, events=600, noise=0.0, no_repeat=20)
    simulator = Simulator(world)
    stream = Stream.of_world(world)
    found = evaluate(stream, lambda past: laws.OracleEntrant(past, simulator), phases=4)
    by_chance = sum(ndcg_at_k(np.array([float(place)]), laws.K) for place in range(60)) / 60
    assert found.figures()["ndcg"] > 2 * by_chance


def test_the_ideal_observer_comes_to_know_tastes() -> None:
    world: World = replace(laws.world("steady", 0), users=20, items=400, events=3_000, noise=0.0, no_repeat=200)
    simulator = Simulator(world)
    stream = Stream.of_world(world)
    found = [
        evaluate(stream, lambda past, one=one: one(past, simulator), phases=4, ranked_share=0.5).figures()["ndcg"]  # type: ignore[misc]
        for one in (AppealAlone, laws.IdealObserver, laws.OracleEntrant)
    ]
    assert found == sorted(found)
    # who took all items for free at every choice would come to two thirds
    assert found[1] > 0.9 * found[2]


def test_of_somebody_who_chose_nothing_yet_the_ideal_observer_knows_appeal_alone() -> None:
    world: World = replace(laws.world("steady", 0), users=20, items=40, events=200, no_repeat=20)
    simulator = Simulator(world)
    past = Past(Stream.of_world(world))
    ideal, appeal = laws.IdealObserver(past, simulator), AppealAlone(past, simulator)
    np.testing.assert_allclose(ideal.row(0, [], world.start), appeal.row(0, [], world.start))
    skipped = np.flatnonzero(~past.positive)[:1].tolist()
    assert len(skipped) == 1
    np.testing.assert_allclose(ideal.row(0, skipped, world.start), appeal.row(0, [], world.start))


class AppealAlone(laws.OracleEntrant):
    def row(self, u: int, history: list[int], t: float) -> NDArray[np.float64]:
        return np.asarray(self._simulator.catalogue.appeal(0)[self._items], np.float64)


def test_releases_are_measured_beside_decayed_popularity(monkeypatch: pytest.MonkeyPatch) -> None:
    small = replace(laws.world("releases", 0), users=30, items=60, events=1_000, no_repeat=20)
    monkeypatch.setattr(laws, "world", lambda law, seed: small)
    monkeypatch.setattr(laws, "make", lambda past, config: DecayedPopularity(past, half_life=500))
    found = laws.measured("releases", 0)
    assert found["figure"] <= found["best_decayed"]
    assert found["figure"] > 0.3
    assert len(found["share_of_oracle"]) == laws.PHASES - laws.WARM
