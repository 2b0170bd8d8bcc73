"""Scales on the fly: served when tastes turn within a phase, and only then."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from benchmarks.contender import Contender
from benchmarks.prequential import Past
from benchmarks.stream import Stream
from models.calibration import Calibration
from models.event_log import EventLog
from models.learner import Learner
from models.live_calibration import AMISS, CERTAIN, Comparison, LiveCalibration
from models.memory import EventBatch, Memory
from models.overlay import Overlay
from models.patches import ItemPatches
from models.ranking import gain
from models.scorer import FOLD_IN_SCALES, POPULARITY_SCALE, TASTE_SCALES
from models.serving import Snapshot, Vectors
from models.stretches import EVERY, STRETCH, Stretch, Stretches
from service.config import Config
from streams.simulator import World
from tests.unit.test_learner import TRAIN, spec_of
from tests.unit.test_overlay import later, served

LEARNED, AFTER, CHUNK = 6_000, 1_600, 32


class After(NamedTuple):
    snapshot: Snapshot
    events: list[EventBatch]


def what_follows(*, turned: bool) -> After:
    """A snapshot of a small still world, and what happens next: more of the same, or all tastes turn."""
    world = World(
        seed=3, events=LEARNED + AFTER, regime_switches=(LEARNED,) if turned else (), items=300, users=150,
        drift=0.0, fade=1e9, arrival_rate=0.0, user_arrival_rate=0.0,
    )  # fmt: skip
    stream = Stream.of_world(world)
    past = Past(stream)
    contender = Contender(past, Config())
    for start in range(0, LEARNED, 2_000):
        for position in range(start, start + 2_000):
            past.announce(float(stream.t[position]))
            past.reveal(position)
        contender.train(start, start + 2_000)
    for position in range(LEARNED, LEARNED + AFTER):
        past.announce(float(stream.t[position]))
        past.reveal(position)
    chunks = range(LEARNED, LEARNED + AFTER, CHUNK)
    return After(contender.overlay.snapshot, [contender._batch(at, at + CHUNK) for at in chunks])


@pytest.fixture(scope="module", params=[True, False], ids=["turned", "still"])
def after(request: pytest.FixtureRequest) -> After:
    return what_follows(turned=request.param)


def gains(overlay: Overlay, events: list[EventBatch]) -> Iterator[float]:
    """Each event's gain, ranked by what is served just before."""
    for batch in events:
        items_NV, rows = overlay.published_vectors(), [overlay.item_index(one) for one in batch.items]
        for row, scores in zip(rows, overlay.vectors_before(batch) @ items_NV.T, strict=True):
            if row is not None:
                yield float(gain((scores > scores[row]).sum()))


def test_scales_on_the_fly_are_served_where_they_rank_better(
    after: After, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = Overlay(after.snapshot)
    mended = list(gains(live, after.events))
    with monkeypatch.context() as patch:
        patch.setattr(after.snapshot.frozen, "calibration", None)
        fixed = list(gains(Overlay(after.snapshot), after.events))
    assert len(mended) == len(fixed)
    if "turned" in request.node.name:
        assert live.recalibrated
        half = len(mended) // 2
        assert np.mean(mended[half:]) > 1.3 * np.mean(fixed[half:])
    else:
        assert not live.recalibrated
        assert mended == fixed


def test_a_term_that_misleads_is_trusted_less(after: After, request: pytest.FixtureRequest) -> None:
    live = Overlay(after.snapshot)
    for batch in after.events:
        live.vectors_before(batch)
    if "turned" in request.node.name:
        assert live._live is not None
        assert live._live.scales is not None
        for scales in (FOLD_IN_SCALES, TASTE_SCALES):
            assert live._live.scales[scales][1:].sum() < after.snapshot.scales[scales][1:].sum()


def test_what_replaces_a_snapshot_serves_its_scales_on_the_fly_on(after: After, request: pytest.FixtureRequest) -> None:
    turned, first = "turned" in request.node.name, Overlay(after.snapshot)
    for batch in after.events:
        first.vectors_before(batch)
    second, anew = Overlay(after.snapshot, first), Overlay(after.snapshot)
    users = after.events[0].users
    assert second.recalibrated == turned
    assert np.array_equal(second.user_vectors(users), anew.user_vectors(users)) == (not turned)


def looked_at(batch: EventBatch, size: int, *, amiss: bool) -> list[list[int]]:
    """The positions of each stretch that is looked at, of a stream of which every seventh event is a skip."""
    snapshot, _ = served()
    stretches, log, patches = Stretches(snapshot), EventLog(), ItemPatches(snapshot)
    found = []
    for _ in range(15):
        log.add_user()
    for start in range(0, len(batch), size):
        part = batch[start : start + size]
        appended = log.append(
            user=np.array([int(one) for one in part.users]),
            item=np.array([int(one) % snapshot.n_items for one in part.items]),
            action=np.zeros(len(part), np.int64),
            weight=np.where(np.arange(start, start + len(part)) % 7 == 6, 0, 1).astype(np.float32),
            value=part.values,
            time=part.times,
        )
        over = stretches.see(log.view(shared_tail=True), appended, patches)
        if over is not None:
            assert len(over.positions) == len(over.target_BV)
            found.append(over.positions.tolist())
            if amiss:
                stretches.look_on()
    return found


@pytest.mark.parametrize("size", [1, 30])
def test_one_stretch_of_eight_is_looked_at(size: int) -> None:
    chosen = [at for at in range(32 * STRETCH) if at % 7 != 6]
    found = looked_at(later(32 * STRETCH), size, amiss=False)
    assert found == [chosen[at : at + STRETCH] for at in range(0, len(chosen), EVERY * STRETCH)]


@pytest.mark.parametrize("size", [1, 30])
def test_while_something_is_amiss_one_stretch_after_another_is_looked_at(size: int) -> None:
    chosen = [at for at in range(16 * STRETCH) if at % 7 != 6]
    found = looked_at(later(16 * STRETCH), size, amiss=True)
    stretches = [chosen[at : at + STRETCH] for at in range(0, len(chosen), STRETCH)]
    assert found == stretches[: len(found)]
    assert len(found) >= len(stretches) - 1


def test_of_large_polls_one_stretch_is_looked_at() -> None:
    found = looked_at(later(16 * 300), 300, amiss=True)
    assert [at[0] // 300 for at in found] == list(range(16))
    assert all(len(at) == STRETCH for at in found)


def test_the_first_stretch_is_amiss_for_there_is_nothing_to_compare_it_with() -> None:
    comparison = Comparison()
    comparison.add(np.ones(STRETCH), np.ones(STRETCH))
    assert comparison.amiss
    comparison.add(np.ones(STRETCH), np.ones(STRETCH))
    assert not comparison.amiss


def test_a_stretch_that_is_much_worse_than_those_before_is_amiss() -> None:
    rng = np.random.default_rng(0)
    comparison = Comparison()
    for _ in range(20):
        gains_B = rng.random(STRETCH)
        comparison.add(gains_B, gains_B)
    error = (1 / 12 / STRETCH) ** 0.5
    for worse, amiss in ((0.5 * AMISS * error, False), (2 * AMISS * error, True)):
        gains_B = np.linspace(0, 1, STRETCH) - worse
        comparison.add(gains_B, gains_B)
        assert comparison.amiss == amiss


def test_scales_on_the_fly_are_served_from_when_that_is_certain_until_they_are_no_better() -> None:
    comparison = Comparison()
    few_B, many_B = (np.where(np.arange(STRETCH) <= count, 1.0, 0.0) for count in (int(AMISS**2), int(CERTAIN**2)))
    comparison.add(np.zeros(STRETCH), few_B)
    assert (comparison.amiss, comparison.moved) == (True, False)
    moved = []
    for share in (0.0, 0.3, 1.0, 1.0):  # of the gains, by the scales served at first
        comparison.add(share * many_B, (1 - share) * many_B)
        moved.append(comparison.moved)
    assert moved == [True, True, True, False]


def test_scales_that_were_taken_over_are_served_until_they_rank_no_better() -> None:
    comparison = Comparison()
    comparison.moved = True
    comparison.add(np.zeros(STRETCH), np.full(STRETCH, 0.1))
    assert comparison.moved
    comparison.add(np.full(STRETCH, 0.3), np.zeros(STRETCH))
    assert not comparison.moved


def test_how_far_the_scale_of_popularity_has_moved_goes_on_for_it_is_the_unit_of_corrections() -> None:
    served, now = Calibration(), Calibration()
    served.mean[POPULARITY_SCALE], now.mean[POPULARITY_SCALE] = 1.0, 0.1
    fitted = Calibration(served.mean.clone(), torch.eye(len(served.mean), dtype=torch.float64))
    fitted.mean[POPULARITY_SCALE] = 1.5
    after = fitted.after(served, now)
    assert float(after.scales[POPULARITY_SCALE]) == pytest.approx(0.15)
    # as sure of it, relative to its size
    assert float(after.evidence[POPULARITY_SCALE, POPULARITY_SCALE]) == pytest.approx(100.0)
    others = [place for place in range(len(served.mean)) if place != POPULARITY_SCALE]
    assert torch.equal(after.mean[others], fitted.mean[others])


def test_items_that_came_with_their_first_event_are_looked_at_as_they_are_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    snapshot, _ = served()
    seen: list[Vectors] = []
    learn = LiveCalibration.learn

    def spy(self: LiveCalibration, of: Stretch, *args: Any, **kwargs: Any) -> None:
        seen.append(of.target_BV)
        learn(self, of, *args, **kwargs)

    monkeypatch.setattr(LiveCalibration, "learn", spy)
    overlay = Overlay(snapshot)
    overlay.announce("new", 300.0, {"text": np.ones(5, np.float32)})
    before = Overlay(snapshot)
    before.announce("new", 300.0, {"text": np.ones(5, np.float32)})
    many = [f"stranger {number}" for number in range(STRETCH)]
    overlay.observe(
        EventBatch(many, ["new"] * STRETCH, ["view"] * STRETCH, np.ones(STRETCH, np.float32), np.full(STRETCH, 301.0))
    )
    overlay.user_vectors([many[0]])
    np.testing.assert_array_equal(seen[0], np.repeat(before.item_vectors(["new"]), STRETCH, axis=0))


def test_what_is_forgotten_before_a_stretch_is_over_is_left_out() -> None:
    overlay = Overlay(served()[0])
    overlay.observe(later(STRETCH // 2))
    overlay.user_vectors(["1"])
    overlay.forget_item(later().items[0])
    overlay.forget_user(later().users[1])
    overlay.observe(later(2 * STRETCH, seed=6))
    assert np.isfinite(overlay.user_vectors(overlay.touched_users())).all()
    assert not overlay.recalibrated


@pytest.mark.parametrize("changes", [{"objective": "rating"}, {"objective": "click"}, {"head": "mlp"}])
def test_where_no_scales_are_fitted_none_are_fitted_on_the_fly(changes: dict[str, str]) -> None:
    overlay = Overlay(served(**changes)[0])
    overlay.observe(later(2 * STRETCH))
    assert overlay._live is None
    assert np.isfinite(overlay.user_vectors(overlay.touched_users())).all()


def test_an_empty_catalogue_has_nothing_to_rank() -> None:
    memory = Memory(spec_of(), {})
    overlay = Overlay(
        Snapshot.build(memory.spec, Learner(memory.spec, TRAIN, memory, 1).state_dict(), memory, version=0)
    )
    overlay.observe(later(2 * STRETCH))
    assert np.isfinite(overlay.user_vectors(overlay.touched_users())).all()
    assert not overlay.recalibrated
