"""Newness: what calibration is told of how lately an item was announced, and that served vectors keep up with it."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from models.memory import EventBatch
from models.overlay import Overlay
from models.popularity import COUNTS, NEWNESS, NEWNESS_EVERY, NEWNESS_HALF_LIVES, newness
from models.serving import Snapshot, Vectors
from service.arrivals import Arrival
from service.live import Serving
from streams.events import Interaction, Item
from streams.memory_sink import MemorySink
from tests.unit.test_learner import spec_of, world
from tests.unit.test_overlay import later, served
from tests.unit.test_serving import trained

COEFFICIENTS = np.array([2.0, -1.0, 0.5], np.float32)
TEXT = {"text": np.ones(5, np.float32)}


def with_newness() -> Snapshot:
    """A snapshot for which it matters how new items are."""
    snapshot, _ = served()
    weighed = (*COEFFICIENTS.tolist(), *snapshot.corrections.weighed[COUNTS])
    snapshot.corrections = snapshot.corrections._replace(weighed=weighed)
    return snapshot


def test_newness_halves_in_eight_steps_and_ends() -> None:
    since = np.array([-7, 0, 37, 38, 300, 1_499, 1_500, 3_000, 150_000])
    fast, slow, slowest = newness(since).T
    eighth = 2 ** (-1 / 8)
    np.testing.assert_allclose(fast, [1, 1, 1, eighth, 0.5, 2 ** (-39 / 8), 0, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(slow[[0, 4, 7, 8]], [1, 1, 0.5, 0], rtol=1e-6)
    np.testing.assert_allclose(slowest[[0, 7, 8]], [1, 1, 0], rtol=1e-6)


def test_an_item_is_known_since_it_was_announced_or_touched_whichever_came_first() -> None:
    learner, memory = trained(spec_of())
    log, popularity = memory.view(), learner.popularity
    untold = np.unique(log.item[log.item >= 26])  # `world` announces the others before the first event
    met = np.array([log.time[log.item == row][0] for row in untold])
    assert len(untold)
    np.testing.assert_array_equal(popularity.known[untold], np.searchsorted(log.time, met))
    seen = popularity.first >= 0
    assert bool((popularity.known <= popularity.first)[seen].all())
    assert not popularity.known[:26].any()
    memory.announce("late", float(log.time[100]) + 1e-6, {})
    memory.append(later())
    learner.learn(np.arange(240, 280), replay_ratio=0.0)
    before = int((log.time <= log.time[100]).sum())
    assert learner.popularity.known[memory.items.row("late")] == before


def test_learner_and_snapshot_see_the_same_newness() -> None:
    learner, memory = trained(spec_of())
    memory.announce("late", float(memory.view().time[-1]) + 1, {})
    events = later()
    memory.append(events)
    learner.learn(np.arange(240, 280), replay_ratio=0.0)
    snapshot = Snapshot.build(learner.spec, learner.state_dict(), memory, version=1)
    np.testing.assert_array_equal(snapshot.features_NK[:, NEWNESS], learner.features[:, NEWNESS].numpy())
    since = looked_at(learner.popularity.position) - learner.popularity.known
    np.testing.assert_array_equal(snapshot.features_NK[:, NEWNESS], newness(since))


def looked_at(position: int) -> int:
    """The event as of which newness is, that many having passed."""
    return position - position % NEWNESS_EVERY


def appeal(overlay: Overlay, item_id: str) -> float:
    return float(overlay.item_vectors([item_id])[0, overlay.snapshot.d + 1])


def told(overlay: Overlay, size: int) -> Overlay:
    """Two new items that nobody touches and 200 events of others, so many at once, all computed each time."""
    announcements = {0: "fresh", 100: "fresher"}
    cuts = sorted({*range(0, 200, size), *announcements, 200})
    for start, stop in itertools.pairwise(cuts):
        if start in announcements:
            overlay.announce(announcements[start], 400.0 + start - 0.5, TEXT)
        overlay.observe(clicks(start, stop))
        if size < 200:
            overlay.item_vectors(["fresh"])
    return overlay


def clicks(start: int, stop: int) -> EventBatch:
    events = later(200)
    return replace(events, times=400.0 + np.arange(200.0))[start:stop]


def test_an_untouched_item_is_less_and_less_new() -> None:
    overlay = Overlay(with_newness())
    overlay.announce("fresh", 399.5, TEXT)
    at_once = appeal(overlay, "fresh")
    assert overlay.take_aged() == []
    overlay.observe(clicks(0, 30))
    assert "fresh" not in overlay.take_aged()
    overlay.observe(clicks(30, 100))
    assert "fresh" in overlay.take_aged()
    assert overlay.take_aged() == []
    faded = float(COEFFICIENTS @ (newness(np.array([looked_at(340) - 240]))[0] - 1))
    assert abs(faded) > 0.3
    assert appeal(overlay, "fresh") == pytest.approx(at_once + faded, abs=1e-5)
    overlay.forget_item("fresh")
    overlay.observe(clicks(100, 200))
    aged = overlay.take_aged()
    assert aged
    assert "fresh" not in aged


@pytest.mark.parametrize("size", [1, 7, 50])
def test_newness_does_not_depend_on_how_events_were_grouped(size: int) -> None:
    snapshot = with_newness()
    whole, pieces = told(Overlay(snapshot), 200), told(Overlay(snapshot), size)
    ids = [one for one in whole.all_item_ids if one is not None]
    assert {one for one in pieces.all_item_ids if one is not None} == set(ids) > {"fresh", "fresher"}
    np.testing.assert_allclose(pieces.item_vectors(ids), whole.item_vectors(ids), atol=1e-5)
    fresh, fresher = (appeal(whole, one) for one in ("fresh", "fresher"))
    since = newness(looked_at(440) - np.array([240, 340]))
    assert fresh - fresher == pytest.approx(float(COEFFICIENTS @ (since[0] - since[1])), abs=1e-4)


def test_a_catalogue_that_comes_at_once_waits_for_the_next_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.overlay_items.MOST_AGED", 3)
    overlay = Overlay(with_newness())
    for n in range(4):
        overlay.announce(f"fresh{n}", 399.5, TEXT)
    at_once = appeal(overlay, "fresh0")
    overlay.observe(clicks(0, 50))
    assert overlay.take_aged() == []
    overlay.announce("fresher", 449.5, TEXT)
    overlay.observe(clicks(50, 150))
    assert overlay.take_aged() == ["fresher"]
    assert appeal(overlay, "fresh0") == at_once


def test_where_newness_says_nothing_no_vector_changes_with_time_alone() -> None:
    snapshot, _ = served()
    weighed = (0.0,) * len(NEWNESS_HALF_LIVES) + tuple(snapshot.corrections.weighed[COUNTS])
    snapshot.corrections = snapshot.corrections._replace(weighed=weighed)
    overlay = Overlay(snapshot)
    overlay.announce("fresh", 399.5, TEXT)
    overlay.observe(clicks(0, 100))
    assert overlay.take_aged() == []


def click(n: int, item: str) -> Arrival:
    event = Interaction(user_id="1", item_id=item, action="view", value=1.0, time=400.0 + n, event_id=None)
    return Arrival("interactions", 0, n, 400.0 + n, event)


def stored(sink: MemorySink, item_id: str) -> Vectors:
    (packed,) = sink.read(1, "items", [item_id])
    assert packed is not None
    return np.frombuffer(packed, np.float32)


def test_what_time_alone_changes_is_written_and_written_again_after_redis_was_away() -> None:
    serving, sink = Serving(with_newness()), MemorySink()
    announced = Item(item_id="fresh", time=399.5, features=TEXT, text=None, attributes={}, deleted=False)
    serving.write(sink, serving.observe([Arrival("items", 0, 0, 399.5, announced)]))
    first = stored(sink, "fresh")
    touched = serving.observe([click(n, str(n % 3)) for n in range(100)])
    assert "fresh" not in touched.items
    serving.write(sink, touched)
    aged = stored(sink, "fresh")
    assert not np.array_equal(first, aged)
    np.testing.assert_array_equal(aged, serving.overlay.item_vectors(["fresh"])[0])
    assert "fresh" in serving.touched.items
    elsewhere = MemorySink()
    serving.observe([click(n, str(n % 3)) for n in range(100, 200)])
    serving.write(elsewhere, serving.touched)
    assert not np.array_equal(stored(elsewhere, "fresh"), aged)


def test_an_old_state_says_that_it_lacks_what_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.learner.COLUMNS", ("counts", "last", "first"))
    learner, _ = trained(spec_of())
    with pytest.raises((KeyError, ValueError)):
        learner.check(learner.state_dict())


def test_an_item_that_is_announced_ahead_of_the_events_is_new_when_its_time_comes() -> None:
    learner, memory = trained(spec_of())
    memory.announce("ahead", 420.0, TEXT)
    memory.append(clicks(0, 10))
    learner.learn(np.arange(240, 250), replay_ratio=0.0)
    row = memory.items.row("ahead")
    assert learner.popularity.known[row] == 250
    ahead = Snapshot.build(learner.spec, learner.state_dict(), memory, version=1)
    overlay = Overlay(ahead)
    overlay.observe(clicks(10, 15))
    assert overlay.counts().known[row] == 255  # no event is later yet
    overlay.observe(clicks(15, 60))
    memory.append(clicks(10, 60))
    learner.learn(np.arange(250, 300), replay_ratio=0.0)
    at_last = Snapshot.build(learner.spec, learner.state_dict(), memory, version=2)
    for popularity in (learner.popularity, overlay.counts(), at_last.popularity):
        assert popularity.known[row] == 260


@pytest.mark.parametrize("time", [100.5, 300.0, 390.0])
def test_an_item_that_is_announced_late_is_as_old_as_it_says(time: float) -> None:
    snapshot, learner = served()
    overlay = Overlay(snapshot)
    overlay.observe(clicks(0, 20))
    overlay.announce("late", time, TEXT)
    learner.memory.append(clicks(0, 20))
    learner.memory.announce("late", time, TEXT)
    contains = Snapshot.build(snapshot.spec, learner.state_dict(), learner.memory, version=2)
    known = overlay.counts().known[overlay.item_index("late")]
    assert known == contains.popularity.known[contains.item_row("late")] < 260


def test_an_item_that_expires_after_its_vector_changed_is_written_no_more() -> None:
    snapshot, learner = served()
    snapshot.corrections = with_newness().corrections
    serving, sink = Serving(snapshot), MemorySink()
    serving.write(sink, serving.observe([click(n, "0") for n in range(100)]))
    assert {"4", "6"} <= set(serving.touched.items)
    serving.observe([click(n, "0") for n in range(100, 200)])
    for expired in ("4", "6"):
        learner.memory.forget_item(expired)
    elsewhere = MemorySink()
    serving.write(elsewhere, serving.touched)
    assert "None" not in serving.touched.items
    assert elsewhere.read(1, "items", ["4", "None", "8"])[:2] == [None, None]
    assert elsewhere.read(1, "items", ["8"]) != [None]


def test_events_are_counted_by_their_times_in_whatever_order_they_came() -> None:
    memory = world(spec_of(), 10)
    times = np.r_[1000.0:1100.0, 500.0:600.0, 1100.0:1150.0]
    memory.append(replace(later(250), times=times))
    found = memory.view().position_at(np.array([20.0, 550.0, 1050.0, 2000.0]))
    np.testing.assert_array_equal(found, [0, 60, 160, 260])


def test_a_touched_item_that_is_announced_afterwards_is_as_old_as_it_says() -> None:
    learner, memory = trained(spec_of())
    memory.append(replace(clicks(0, 1), items=["met"]))
    learner.learn(np.arange(240, 241), replay_ratio=0.0)
    row = memory.items.row("met")
    assert row is not None
    assert learner.popularity.known[row] == 240
    memory.announce("met", float(memory.view().time[100]), TEXT)
    memory.append(clicks(1, 9))
    learner.learn(np.arange(241, 249), replay_ratio=0.0)
    assert learner.popularity.known[row] == memory.view().position_at(memory.announced[row : row + 1])[0] <= 100


@pytest.mark.parametrize("known", [-1, 10_000])
def test_a_state_that_knows_items_since_events_that_there_are_not_is_refused(known: int) -> None:
    learner, _ = trained(spec_of())
    state = learner.state_dict()
    state["popularity"]["known"][3] = known
    with pytest.raises(ValueError, match=r"popularity"):
        learner.check(state)
