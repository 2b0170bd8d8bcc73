"""Scales on the fly: served when tastes turn within a phase, and only then."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest

from benchmarks.contender import Contender
from benchmarks.prequential import Past
from benchmarks.stream import Stream
from models.event_log import EventLog
from models.live_calibration import EVERY, IN_A_ROW, STRETCH, LiveCalibration
from models.memory import EventBatch
from models.overlay import Overlay
from models.patches import ItemPatches
from models.ranking import gain
from models.scorer import FOLD_IN_SCALES, TASTE_SCALES
from models.serving import Snapshot
from service.config import Config
from streams.simulator import World
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


@pytest.mark.parametrize("size", [1, 40, 4 * STRETCH])
def test_first_stretches_are_looked_at_then_now_and_then_each_event_once(size: int) -> None:
    snapshot, _ = served()
    assert snapshot.frozen.calibration is not None
    live, log, patches = LiveCalibration(snapshot, snapshot.frozen.calibration), EventLog(), ItemPatches(snapshot)
    batch, looked_at = later(3 * IN_A_ROW * STRETCH), []
    for _ in range(15):
        log.add_user()
    for start in range(0, len(batch), size):
        part = batch[start : start + size]
        appended = log.append(
            user=np.array([int(one) for one in part.users]),
            item=np.array([int(one) % snapshot.n_items for one in part.items]),
            action=np.zeros(len(part), np.int64),
            weight=np.where(np.arange(len(part)) % 7 == 6, 0, 1).astype(np.float32),
            value=part.values,
            time=part.times,
        )
        over = live.see(log.view(shared_tail=True), appended, patches)
        if over is not None:
            assert len(over.positions) == len(over.target_BV)
            looked_at.append(over.positions)
    at = np.concatenate(looked_at)
    assert (np.diff(at) > 0).all()
    assert (log.view().weight[at] > 0).all()
    every_fourth = range(0, IN_A_ROW, 4)  # of a batch of four stretches only the first
    expected = {*(every_fourth if size > STRETCH else range(IN_A_ROW)), *range(IN_A_ROW, 3 * IN_A_ROW, EVERY)}
    assert set((at // STRETCH).tolist()) == expected


def test_an_overlay_that_knows_no_item_looks_at_nothing() -> None:
    snapshot, _ = served()
    overlay = Overlay(snapshot)
    many = later(3 * STRETCH)
    strangers = EventBatch(
        [f"stranger {one}" for one in many.users], [f"thing {one}" for one in many.items], many.actions, many.values,
        many.times,
    )  # fmt: skip
    overlay.observe(strangers)
    overlay.observe(later())
    assert np.isfinite(overlay.user_vectors(overlay.touched_users())).all()
    assert not overlay.recalibrated
