"""Snapshots: a plain dot product of what is published is the model's own score, of any moment and any weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from torch import Tensor

from models import catalogue
from models.learner import Learner
from models.memory import SEGMENTS, EventBatch, Memory
from models.serving import Snapshot
from models.spec import ModelSpec, TrainSpec
from tests.unit.test_learner import ACTIONS, TRAIN, spec_of, world


def trained(spec: ModelSpec, events: int = 240) -> tuple[Learner, Memory]:
    memory = world(spec, events)
    learner = Learner(spec, TRAIN, memory, seed=1)
    learner.learn(np.arange(events), replay_ratio=1.0)
    return learner, memory


@pytest.mark.parametrize("objective", ["ranking", "rating", "click"])
def test_dot_product_of_published_vectors_is_the_score(objective: str) -> None:
    spec = spec_of(objective=objective)
    learner, memory = trained(spec)
    snapshot = Snapshot.build(spec, learner.state_dict(), memory, version=4)
    users, items = snapshot.user_vectors(snapshot.user_ids()), snapshot.vectors("items")
    assert users.dtype == items.dtype == np.float32
    assert users.shape == (12, snapshot.dim)
    assert items.shape == (len(snapshot.item_ids), snapshot.dim)
    d = snapshot.d
    own = users[:, :d].astype(np.float64) @ items[:, :d].T.astype(np.float64)
    extras = users[:, d:].astype(np.float64) @ items[:, d:].T.astype(np.float64)
    np.testing.assert_allclose(snapshot.scores(users, items), own + extras, atol=1e-5)
    assert snapshot.head_layers() == []


def test_head_layers_reproduce_the_score_of_the_mlp_head() -> None:
    spec = spec_of(head="mlp")
    learner, memory = trained(spec)
    snapshot = Snapshot.build(spec, learner.state_dict(), memory, version=4)
    users, items = snapshot.user_vectors(["1", "2"]), snapshot.vectors("items")[:3]
    (w1, b1), (w2, b2) = snapshot.head_layers()
    d = snapshot.d
    for user, line in zip(users, snapshot.scores(users, items), strict=True):
        for item, score in zip(items, line, strict=True):
            inner = np.maximum(w1 @ np.concatenate((user[:d], item[:d])) + b1, 0)
            assert abs(float((w2 @ inner + b2)[0] + user[d:] @ item[d:]) - float(score)) < 1e-5


def test_rating_of_anyone_unknown_starts_at_the_mean_of_all() -> None:
    spec = spec_of(objective="rating")
    learner, memory = trained(spec)
    snapshot = Snapshot.build(spec, learner.state_dict(), memory, version=1)
    log = memory.view()
    assert snapshot.default_user[-1] == pytest.approx(np.nanmean(log.value), abs=1e-4)
    assert snapshot.user_vectors(["1"])[0, -1] != snapshot.default_user[-1]


def test_snapshot_does_not_change_when_memory_and_weights_do() -> None:
    spec = spec_of()
    learner, memory = trained(spec)
    snapshot = Snapshot.build(spec, learner.state_dict(), memory, version=1)
    items, users, ids = snapshot.vectors("items").copy(), snapshot.user_vectors(["1", "2"]), snapshot.user_ids()
    memory.append(EventBatch(["1", "new"], ["7", "other"], ["view"] * 2, np.zeros(2, np.float32), np.array([1e3, 2e3])))
    memory.announce("3", 5e3, {"text": np.zeros(5, np.float32)})
    memory.enrol("1", 5e3, {"age": np.zeros(2, np.float32)})
    learner.learn(np.arange(240, 242), replay_ratio=5.0)
    np.testing.assert_array_equal(snapshot.vectors("items"), items)
    np.testing.assert_array_equal(snapshot.user_vectors(["1", "2"]), users)
    assert snapshot.user_ids() == ids
    np.testing.assert_array_equal(snapshot.user_vectors(["new"])[0], snapshot.default_user)


def test_snapshot_of_restored_memory_and_state_scores_the_same() -> None:
    spec = spec_of()
    learner, memory = trained(spec)
    snapshot = Snapshot.build(spec, learner.state_dict(), memory, version=1)
    drained = memory.drain()
    restored = Memory.restore(spec, ACTIONS, {name: [drained[name]] for name in SEGMENTS})
    again = Snapshot.build(spec, learner.state_dict(), restored, version=1)
    np.testing.assert_array_equal(snapshot.check_scores(), again.check_scores())
    np.testing.assert_array_equal(snapshot.vectors("users"), again.vectors("users"))


def test_rollback_serves_items_that_the_old_weights_never_met_by_content() -> None:
    spec = spec_of()
    learner, memory = trained(spec)
    state = learner.state_dict()
    memory.announce("late", 300.0, {"text": np.ones(5, np.float32)})
    memory.append(
        EventBatch(
            ["1"] * 3, ["late", "x", "late"], ["view"] * 3, np.zeros(3, np.float32), np.array([400.0, 401.0, 402.0])
        )
    )
    snapshot = Snapshot.build(spec, state, memory, version=9)
    late, unknown = snapshot.item_row("late"), snapshot.item_row("x")
    assert np.abs(snapshot.vectors_NV[late, : snapshot.d]).max() > 0
    assert not snapshot.vectors_NV[unknown, : snapshot.d].any()
    assert not snapshot.residual[[late, unknown]].any()
    assert snapshot.popularity.first[unknown] == 241


def test_chunks_cover_everything_once() -> None:
    spec = spec_of()
    learner, memory = trained(spec)
    memory.forget_item("6")
    memory.forget_user("2")
    snapshot = Snapshot.build(spec, learner.state_dict(), memory, version=1)
    ids, vectors = zip(*snapshot.items_in_chunks(7), strict=True)
    assert [one for part in ids for one in part] == snapshot.item_ids
    assert "6" not in snapshot.item_ids
    np.testing.assert_array_equal(np.concatenate(vectors), snapshot.vectors("items"))
    ids, vectors = zip(*snapshot.users_in_chunks(size=5), strict=True)
    assert [one for part in ids for one in part] == snapshot.user_ids()
    assert "2" not in snapshot.user_ids()
    np.testing.assert_allclose(np.concatenate(vectors), snapshot.vectors("users"), atol=1e-6)


def test_active_users_are_those_of_the_last_days() -> None:
    spec = spec_of(modalities={}, frames={}, user_features={})
    memory = Memory(spec, ACTIONS)
    day = 86_400.0
    memory.append(
        EventBatch(["old", "new"], ["a", "a"], ["view"] * 2, np.zeros(2, np.float32), np.array([0, 10 * day]))
    )
    memory.enrol("idle", 0.0, {})
    snapshot = Snapshot.build(spec, Learner(spec, TrainSpec(), memory, 0).state_dict(), memory, version=1)
    assert snapshot.user_ids(active_days=2) == ["new"]
    assert snapshot.user_ids() == ["old", "new", "idle"]


def test_empty_memory_gives_an_empty_snapshot() -> None:
    spec = spec_of()
    memory = Memory(spec, ACTIONS)
    snapshot = Snapshot.build(spec, Learner(spec, TRAIN, memory, 0).state_dict(), memory, version=0)
    assert (snapshot.item_ids, snapshot.user_ids(), snapshot.event_time) == ([], [], None)
    assert snapshot.default_user.shape == (snapshot.dim,)
    assert snapshot.vectors("users").shape == (0, snapshot.dim)


def test_what_is_taken_from_an_earlier_snapshot_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.serving.ENCODED", 8)
    spec = spec_of()
    learner, memory = trained(spec)
    state = learner.state_dict()
    earlier = Snapshot.build(spec, state, memory, version=1)
    encoded: list[int] = []

    def counting(*args: Any) -> Tensor:
        encoded.extend(args[2].tolist())
        return encode(*args)

    encode = catalogue.encode
    monkeypatch.setattr("models.catalogue.encode", counting)
    memory.announce("new", 700.0, {"text": np.ones(5, np.float32)})
    memory.announce("9", 700.0, {"text": np.ones(5, np.float32)})
    now = Snapshot.build(spec, state, memory, version=1, like=earlier)
    assert now.scorer is earlier.scorer
    changed = now.item_row("9")
    assert sorted(encoded) == [
        *range(changed // 8 * 8, changed // 8 * 8 + 8),
        *range((now.n_items - 1) // 8 * 8, now.n_items),
    ]
    afresh = Snapshot.build(spec, state, memory, version=1)
    np.testing.assert_array_equal(now.vectors_NV, afresh.vectors_NV)
    learner.learn(np.arange(240), replay_ratio=1.0)
    other = Snapshot.build(spec, learner.state_dict(), memory, version=2, like=afresh)
    assert other.scorer is not afresh.scorer
    assert not np.array_equal(other.contents_ND, afresh.contents_ND)
