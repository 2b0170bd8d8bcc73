"""The overlay: what a snapshot and everything after it come to, however it was told."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from models.learner import Learner
from models.memory import EventBatch, Memory
from models.overlay import Overlay
from models.past import WINDOWS
from models.scorer import TASTE_SCALES
from models.serving import Snapshot, Vectors
from tests.unit.test_learner import TRAIN, spec_of, world
from tests.unit.test_serving import trained


def later(n: int = 40, *, seed: int = 5) -> EventBatch:
    draw = np.random.default_rng(seed)
    return EventBatch(
        [str(u) for u in draw.integers(0, 15, n)],
        [str(i) for i in draw.integers(0, 34, n)],
        ["skip" if k % 7 == 6 else "view" for k in range(n)],
        draw.random(n).astype(np.float32),
        np.sort(draw.integers(300, 330, n)).astype(np.float64),
    )


def served(**changes: object) -> tuple[Snapshot, Learner]:
    spec = spec_of(**changes)
    learner, memory = trained(spec)
    return Snapshot.build(spec, learner.state_dict(), memory, version=1), learner


def test_nothing_observed_is_the_snapshot_itself() -> None:
    snapshot, _ = served()
    overlay = Overlay(snapshot)
    np.testing.assert_array_equal(overlay.item_vectors(snapshot.item_ids), snapshot.vectors("items"))
    np.testing.assert_allclose(overlay.user_vectors(snapshot.user_ids()), snapshot.vectors("users"), atol=1e-6)
    np.testing.assert_array_equal(overlay.user_vectors(["nobody"])[0], snapshot.default_user)


@pytest.mark.parametrize("size", [1, 3, 40])
def test_vectors_do_not_depend_on_how_events_were_grouped(size: int) -> None:
    snapshot, _ = served()
    events = later()
    whole, pieces = Overlay(snapshot), Overlay(snapshot)
    whole.observe(events)
    for at in range(0, len(events), size):
        pieces.observe(events[at : at + size])
        pieces.item_vectors([events.items[at]])
        pieces.user_vectors([events.users[at]])
    assert whole.all_item_ids == pieces.all_item_ids
    items, users = whole.touched_items(), whole.touched_users()
    np.testing.assert_allclose(whole.item_vectors(items), pieces.item_vectors(items), atol=1e-5)
    np.testing.assert_allclose(whole.user_vectors(users), pieces.user_vectors(users), atol=1e-5)


@pytest.mark.parametrize("at", [0, 20, 40])
def test_vectors_do_not_depend_on_whether_they_were_asked_for_before_an_announcement(at: int) -> None:
    snapshot, _ = served()
    items = [str(i) for i in np.random.default_rng(1).integers(28, 36, 40)]
    events = replace(later(), items=items, times=300 + 86_400 * np.arange(40.0))  # or ages would hardly tell
    asked, unasked = Overlay(snapshot), Overlay(snapshot)
    for overlay in (asked, unasked):
        overlay.observe(events[:at])
        if overlay is asked:
            overlay.all_item_ids  # noqa: B018 - computes what waits
        for item, time in (("30", 100.0), ("31", 1e6), ("32", 2e6), ("36", 1e6), ("3", 1e6)):
            overlay.announce(item, time, {"text": np.ones(5, np.float32)})
        if overlay is asked:
            overlay.all_item_ids  # noqa: B018
        overlay.observe(events[at:])
    ids = [one for one in asked.all_item_ids if one is not None]
    assert set(ids) == {one for one in unasked.all_item_ids if one is not None} > {"30", "36"}
    np.testing.assert_allclose(asked.item_vectors(ids), unasked.item_vectors(ids), atol=1e-5)
    users = asked.touched_users()
    np.testing.assert_allclose(asked.user_vectors(users), unasked.user_vectors(users), atol=1e-5)


def test_only_what_was_touched_changes() -> None:
    snapshot, _ = served()
    overlay = Overlay(snapshot)
    events = later()
    overlay.observe(events)
    untouched = [one for one in snapshot.item_ids if one not in overlay.touched_items()]
    rows = [snapshot.item_row(one) for one in untouched]
    assert untouched
    np.testing.assert_array_equal(overlay.item_vectors(untouched), snapshot.vectors_NV[rows])
    d = snapshot.d
    touched = [one for one in overlay.touched_items() if snapshot.item_row(one) >= 0]
    before = snapshot.vectors_NV[[snapshot.item_row(one) for one in touched]]
    after = overlay.item_vectors(touched)
    np.testing.assert_array_equal(after[:, : d + 1], before[:, : d + 1])
    positive = [events.items[n] for n, action in enumerate(events.actions) if action == "view"]
    moved = [one in positive for one in touched]
    assert ((after[:, d + 1 :] != before[:, d + 1 :]).any(1) == moved).all()


@pytest.fixture
def short_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of age that a few events fill."""
    monkeypatch.setattr("models.past.WINDOW_ENDS", (4, 20, 60, 120))


def told_apart(snapshot: Snapshot) -> Snapshot:
    """The snapshot, in whose scores it matters which window of age a choice is in."""
    snapshot.scales[TASTE_SCALES] = torch.arange(1.0, WINDOWS + 1)
    return snapshot


@pytest.mark.usefixtures("short_windows")
def test_user_vectors_are_those_of_a_snapshot_that_contains_the_events() -> None:
    snapshot, learner = served()
    overlay = Overlay(told_apart(snapshot))
    overlay.observe(later())
    learner.memory.append(later())
    contains = told_apart(Snapshot.build(snapshot.spec, learner.state_dict(), learner.memory, version=2))
    d = snapshot.d
    users = overlay.touched_users()
    np.testing.assert_allclose(overlay.user_vectors(users)[:, :d], contains.user_vectors(users)[:, :d], atol=1e-5)


def vectors_before(snapshot: Snapshot, events: EventBatch) -> list[Vectors]:
    """The users' personal parts of each event as served when everything of earlier times had been observed."""
    overlay, found = Overlay(snapshot), []
    told = 0
    for at in range(len(events)):
        while events.times[told] < events.times[at]:
            overlay.observe(events[told : told + 1])
            told += 1
        found.append(overlay.user_vectors([events.users[at]])[0, : snapshot.d])
    return found


def test_vectors_before_are_what_was_known_before_each_basket() -> None:
    snapshot, _ = served()
    events = later(20)
    at_once = Overlay(snapshot).vectors_before(events)[:, : snapshot.d]
    np.testing.assert_allclose(at_once, vectors_before(snapshot, events), atol=1e-5)


@pytest.mark.usefixtures("short_windows")
def test_vectors_before_have_histories_as_old_as_they_were() -> None:
    snapshot, _ = served()
    told_apart(snapshot)
    events = replace(later(20), times=300 + np.arange(20.0))
    at_once = Overlay(snapshot).vectors_before(events)[:, : snapshot.d]
    np.testing.assert_allclose(at_once, vectors_before(snapshot, events), atol=1e-5)


def test_new_item_is_ranked_by_content_at_once() -> None:
    snapshot, _ = served()
    overlay = Overlay(snapshot)
    overlay.announce("new", 500.0, {"text": np.ones(5, np.float32)}, {"title": "New"})
    vector = overlay.item_vectors(["new"])[0]
    assert np.abs(vector[: snapshot.d]).max() > 0
    assert overlay.attributes("new") == {"title": "New"}
    assert overlay.scores("1").shape == (snapshot.n_items + 1,)
    ids = [one["item_id"] for one in overlay.recommend("1", k=100)]
    assert "new" in ids
    overlay.announce("new", 501.0, {"text": -np.ones(5, np.float32)})
    assert np.abs(overlay.item_vectors(["new"])[0] - vector).max() > 0
    assert overlay.attributes("new") == {}


def test_announcing_a_known_item_again_keeps_its_own_residual() -> None:
    snapshot, learner = served()
    overlay = Overlay(snapshot)
    features = learner.memory.item_features.get(7)
    item = learner.memory.items.ids[7]
    assert item is not None
    overlay.announce(item, 1000.0, features)
    np.testing.assert_allclose(
        overlay.item_vectors([item])[0, : snapshot.d + 1], snapshot.vectors_NV[7, : snapshot.d + 1], atol=1e-5
    )


def test_forgotten_item_is_neither_candidate_nor_history() -> None:
    snapshot, _ = served()
    overlay, without = Overlay(snapshot), Overlay(snapshot)
    events = EventBatch(["fresh"] * 2, ["4", "8"], ["view"] * 2, np.zeros(2, np.float32), np.array([400.0, 401.0]))
    overlay.observe(events)
    overlay.forget_item("8")
    with pytest.raises(KeyError, match="announce it first"):
        overlay.item_vectors(["8"])
    assert "8" not in [one["item_id"] for one in overlay.recommend("fresh", k=100, include_seen=True)]
    assert overlay.item_index("8") is None
    without.observe(events)
    assert np.abs(overlay.user_vectors(["fresh"]) - without.user_vectors(["fresh"])).max() > 0
    overlay.announce("8", 500.0, {"text": np.ones(5, np.float32)})
    assert (overlay.item_index("8") or 0) >= snapshot.n_items


def test_forgotten_user_is_somebody_new() -> None:
    snapshot, _ = served()
    overlay = Overlay(snapshot)
    overlay.observe(EventBatch(["1"], ["4"], ["view"], np.zeros(1, np.float32), np.array([400.0])))
    overlay.forget_user("1")
    np.testing.assert_array_equal(overlay.user_vectors(["1"])[0], snapshot.default_user)
    assert overlay.seen("1").tolist() == []
    overlay.observe(EventBatch(["1"], ["5"], ["view"], np.zeros(1, np.float32), np.array([401.0])))
    assert overlay.seen("1").tolist() == [snapshot.item_row("5")]


def test_user_features_count_from_enrolment() -> None:
    snapshot, _ = served()
    overlay = Overlay(snapshot)
    overlay.enrol("stranger", 500.0, {"age": np.array([3.0, -3.0], np.float32)})
    assert np.abs(overlay.user_vectors(["stranger"])[0] - snapshot.default_user).max() > 0


def test_before_there_is_any_item_users_are_made_of_their_own_features() -> None:
    memory = Memory(spec_of(modalities={}, frames={}), {})
    for number, age in enumerate((1.0, 2.0, 3.0)):
        memory.enrol(f"known {number}", 0.0, {"age": np.full(2, age, np.float32)})
    learner = Learner(memory.spec, TRAIN, memory, seed=0)
    overlay = Overlay(Snapshot.build(memory.spec, learner.state_dict(), memory, version=1))
    for name, age in (("one", -3.0), ("other", 5.0)):
        overlay.enrol(name, 500.0, {"age": np.full(2, age, np.float32)})
    one, other, known = overlay.user_vectors(["one", "other", "known 1"])
    assert np.abs(one - other).max() > 0
    np.testing.assert_array_equal(known, overlay.snapshot.vectors("users")[1])


def test_recommendations_leave_out_what_the_user_had_and_are_in_order() -> None:
    snapshot, learner = served()
    overlay = Overlay(snapshot)
    overlay.observe(EventBatch(["1"], ["28"], ["view"], np.zeros(1, np.float32), np.array([400.0])))
    best = overlay.recommend("1", k=50)
    ids = [one["item_id"] for one in best]
    assert not set(ids) & (learner.memory.user_items("1") | {"28"})
    scores = [one["score"] for one in best]
    assert scores == sorted(scores, reverse=True)
    everything = overlay.recommend("1", k=50, include_seen=True)
    assert len(everything) == snapshot.n_items
    assert [one["item_id"] for one in overlay.recommend("1", k=3)] == ids[:3]


def test_similar_items() -> None:
    snapshot, _ = served()
    overlay = Overlay(snapshot)
    alike = overlay.similar("7", k=3)
    assert alike is not None
    assert len(alike) == 3
    assert "7" not in [one["item_id"] for one in alike]
    assert overlay.similar("nothing", k=3) is None


def test_overlay_of_nothing_bears_everything() -> None:
    spec = spec_of()
    memory = world(spec, 1)
    memory = type(memory)(spec, TRAIN.actions)
    snapshot = Snapshot.build(spec, Learner(spec, TRAIN, memory, 0).state_dict(), memory, version=0)
    overlay = Overlay(snapshot)
    assert overlay.recommend("u", k=5) == []
    overlay.observe(later(5))
    assert len(overlay.recommend("u", k=50)) == len(set(later(5).items))
    assert np.isfinite(overlay.user_vectors(["u", later(5).users[0]])).all()
