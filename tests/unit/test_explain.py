"""Explanations: the parts add up to the score, and the credit goes where the signal is."""

from __future__ import annotations

import json
from functools import cache
from itertools import permutations, product
from typing import Any

import numpy as np
import pytest

from models.explain import credits, explain
from models.fusion import FUSIONS
from models.learner import Learner
from models.memory import EventBatch, Memory
from models.objectives import OBJECTIVES
from models.overlay import Overlay
from models.past import PAST
from models.serving import Snapshot
from models.spec import ModelSpec, TrainSpec
from tests.unit.test_learner import spec_of
from tests.unit.test_overlay import later
from tests.unit.test_serving import trained

CLOSE = 1e-5
KINDS = [*product(OBJECTIVES, ("dot", "mlp"), ("gated",)), *product(("ranking",), ("dot", "mlp"), FUSIONS)]
PLAIN = {"sum", "mean", "weighted", "gated", "attention", "concat"}
"""Fusions that only add."""


@cache
def snapshot_of(changes: str) -> Snapshot:
    spec = spec_of(**json.loads(changes))
    learner, memory = trained(spec)
    return Snapshot.build(spec, learner.state_dict(), memory, version=3)


def served(**changes: object) -> Overlay:
    return Overlay(snapshot_of(json.dumps(changes)))


def why(overlay: Overlay, user: str, item: str) -> dict[str, Any]:
    found = explain(overlay, user, item)
    assert found is not None
    return found


def by_item(found: dict[str, Any]) -> float:
    item = found["item"]
    return float(sum(item["modalities"].values()) + sum(v for v in item.values() if isinstance(v, float)))


def by_user(found: dict[str, Any]) -> float:
    user = found["user"]
    return float(sum(one["score"] for one in user["history"]) + sum(v for v in user.values() if isinstance(v, float)))


@pytest.mark.parametrize(("objective", "head", "fusion"), dict.fromkeys(KINDS))
def test_parts_add_up_to_the_score(objective: str, head: str, fusion: str) -> None:
    overlay = served(objective=objective, head=head, fusion=fusion)
    # "1" has features; "0" is an item without content, "7" with one frame, "8" with text and one frame
    for user, item in product(("1", "5"), ("0", "7", "8", "28")):
        found = why(overlay, user, item)
        score = float(overlay.scores(user)[overlay.item_index(item) or 0])
        assert found["score"] == pytest.approx(score, abs=CLOSE)
        assert by_item(found) == pytest.approx(score, abs=CLOSE)
        assert by_user(found) == pytest.approx(score, abs=CLOSE)
        features, _ = overlay.content_of(overlay.item_index(item) or 0)
        assert found["item"]["modalities"].keys() == features.keys()


@pytest.mark.parametrize("fusion", FUSIONS)
def test_nothing_is_left_of_a_plain_dot_product(fusion: str) -> None:
    """A constant of `concat` apart, whatever the fusion: its own weights, or credits that add up."""
    overlay = served(fusion=fusion)
    item = why(overlay, "1", "7")["item"]
    assert item["credit"] == ("weights" if fusion in PLAIN else "shapley")
    if fusion == "concat":
        bias = overlay.snapshot.scorer.fusion.project.bias.numpy()  # type: ignore[union-attr, operator]
        user = overlay.user_vectors(["1"])[0, : overlay.snapshot.d]
        assert item["rest"] == pytest.approx(float(user @ bias), abs=CLOSE)
    else:
        assert abs(item["rest"]) < CLOSE


def test_every_term_is_its_own() -> None:
    overlay = served(objective="rating")
    snapshot, row = overlay.snapshot, overlay.snapshot.item_row("7")
    user, item = overlay.user_vectors(["1"])[0], overlay.item_vectors(["7"])[0]
    d = snapshot.d
    parts = why(overlay, "1", "7")["item"]
    assert parts["id"] == pytest.approx(float(user[:d] @ snapshot.residual[row]), abs=CLOSE)
    assert parts["bias"] == pytest.approx(float(user[d] * snapshot.bias[row]), abs=CLOSE)
    assert parts["base"] == pytest.approx(float(user[-1]), abs=CLOSE)
    counted = parts["popularity"] + parts["taste"] + parts["cooccurrence"]
    assert counted == pytest.approx(float(user[d + 1 : -1] @ item[d + 1 : -1]), abs=CLOSE)
    together = snapshot.alike_NK[row]
    assert parts["cooccurrence"] == pytest.approx(float(user[-1 - len(together) : -1] @ together), abs=CLOSE)
    assert parts["cooccurrence"] != 0
    assert parts["popularity"] == pytest.approx(float(user[d + 1] * item[d + 1]), abs=CLOSE)


def test_every_term_of_a_ranking_is_its_own() -> None:
    overlay = served()
    snapshot, row = overlay.snapshot, overlay.snapshot.item_row("7")
    user, spec = overlay.user_vectors(["1"])[0], overlay.snapshot.spec
    sizes = [spec.likeness_dim, spec.vintage_dim, spec.cooccurrence_dim, spec.factors_dim]
    _, *mine = np.split(user[-sum(sizes) :], np.cumsum(sizes)[:-1])
    _, *its = np.split(snapshot.alike_NK[row], np.cumsum(sizes)[:-1])
    assert snapshot.popularity.first[row] >= 0  # untouched ones are scaled
    parts = why(overlay, "1", "7")["item"]
    for name, left, right in zip(("vintage", "cooccurrence", "factors"), mine, its, strict=True):
        assert parts[name] == pytest.approx(float(left @ right), abs=CLOSE)
        assert (parts[name] != 0) == (name != "vintage")  # all of this world was announced at once


@pytest.mark.parametrize("head", ["dot", "mlp"])
def test_a_part_of_the_history_is_what_the_user_vector_loses_without_it(head: str) -> None:
    overlay = served(head=head)
    overlay.observe(later())
    found = why(overlay, "3", "7")
    events = found["user"]["history"]
    assert len(events) == overlay.snapshot.spec.history
    assert [one["time"] for one in events] == sorted((one["time"] for one in events), reverse=True)
    item = overlay.item_vectors(["7"])
    past = overlay.history("3")[0].past_BP[0].tolist()
    alone = [event for event in events if past.count(overlay.item_index(event["item_id"])) == 1]
    assert len(alone) > 1
    for event in alone:  # a forgotten item is masked wherever it stands in a history
        without = served(head=head)
        without.observe(later())
        without.forget_item(event["item_id"])
        lost = found["score"] - float(overlay.snapshot.scores(without.user_vectors(["3"]), item)[0, 0])
        assert event["score"] == pytest.approx(lost, abs=CLOSE)
    assert any(abs(event["score"]) > 1e-3 for event in events)
    assert abs(found["user"]["earlier"]) > 1e-3


def test_a_history_longer_than_what_is_averaged_is_explained_to_its_end() -> None:
    overlay = served(history=PAST + 20)
    events = later(PAST + 30)
    overlay.observe(EventBatch(["busy"] * len(events), events.items, events.actions, events.values, events.times))
    found = why(overlay, "busy", "7")
    assert len(found["user"]["history"]) == PAST + 20
    assert by_user(found) == pytest.approx(found["score"], abs=CLOSE)


def test_who_did_no_more_than_is_read_did_nothing_earlier() -> None:
    overlay = served()
    events = later(overlay.snapshot.spec.history)
    overlay.observe(EventBatch(["new"] * len(events), events.items, events.actions, events.values, events.times))
    found = why(overlay, "new", "7")["user"]
    assert len(found["history"]) == len(events)
    assert found["earlier"] == pytest.approx(0.0, abs=CLOSE)


def test_features_and_what_anyone_would_get() -> None:
    overlay = served()
    item = overlay.item_vectors(["7"])
    scores = overlay.snapshot.scores
    found = why(overlay, "1", "7")["user"]
    assert found["anyone"] == pytest.approx(float(scores(overlay.snapshot.default_user[None], item)[0, 0]), abs=CLOSE)
    before = why(overlay, "1", "7")["score"]
    overlay.enrol("1", 500.0, {})
    assert found["features"] == pytest.approx(before - why(overlay, "1", "7")["score"], abs=CLOSE)
    assert abs(found["features"]) > 1e-3
    stranger = why(overlay, "a stranger", "7")
    assert stranger["score"] == stranger["user"]["anyone"]
    assert stranger["user"]["history"] == []
    assert abs(stranger["user"]["rest"]) < CLOSE
    assert "features" not in why(served(user_features={}), "1", "7")["user"]


def test_what_came_after_the_snapshot_is_in_it() -> None:
    overlay = served()
    overlay.announce("new", 500.0, {"text": np.ones(5, np.float32)}, {"title": "New"})
    overlay.observe(EventBatch(["late"], ["new"], ["view"], np.array([2.5], np.float32), np.array([501.0])))
    found = why(overlay, "late", "new")
    assert (found["version"], found["attributes"]) == (3, {"title": "New"})
    assert found["item"]["modalities"].keys() == {"text"}
    assert found["item"]["id"] == found["item"]["bias"] == 0.0
    (event,) = found["user"]["history"]
    expected = {"item_id": "new", "action": "view", "value": 2.5, "time": 501.0, "attributes": {"title": "New"}}
    assert {name: event[name] for name in expected} == expected
    assert explain(overlay, "late", "nothing") is None


def test_a_model_without_modalities_has_ids_alone() -> None:
    for head in ("dot", "mlp"):
        overlay = served(modalities={}, frames={}, user_features={}, head=head)
        found = why(overlay, "1", "7")
        assert found["item"]["modalities"] == {}
        assert by_item(found) == pytest.approx(found["score"], abs=CLOSE)
        assert found["item"]["id"] != 0.0


def test_credits_are_shapley_values_for_up_to_three_players() -> None:
    draw = np.random.default_rng(0)
    for players in (1, 2, 3):
        worth = draw.normal(size=2**players)
        code = 2 ** np.arange(players)
        mine = credits(lambda c, code=code, worth=worth: worth[c @ code], players)  # type: ignore[misc]
        exact = np.zeros(players)
        orders = list(permutations(range(players)))
        for order in orders:
            for k, player in enumerate(order):
                exact[player] += worth[code[list(order[: k + 1])].sum()] - worth[code[list(order[:k])].sum()]
        np.testing.assert_allclose(mine, exact / len(orders))


def test_credits_of_many_players_add_up_and_are_exact_where_players_only_add() -> None:
    gain = np.random.default_rng(1).normal(size=7)
    np.testing.assert_allclose(credits(lambda c: c @ gain + 3, 7), gain)
    pairs = credits(lambda c: np.asarray((c @ gain) ** 2), 7)
    assert pairs.sum() == pytest.approx(gain.sum() ** 2)
    assert credits(lambda c: np.zeros(len(c)), 0).shape == (0,)


def halves(fusion: str, head: str) -> tuple[Memory, Learner]:
    """Items of two halves that only `said` tells apart, `noise` saying nothing; users stay in theirs, and what is asked
    about has never been touched."""
    spec = ModelSpec(dim=8, history=4, fusion=fusion, head=head, modalities={"noise": 4, "said": 4})  # type: ignore[arg-type]
    draw = np.random.default_rng(2)
    memory = Memory(spec, {"default": 1.0})
    for item in range(24):
        side = np.array([1.0, -1.0, 1.0, -1.0]) * (1 if item % 2 else -1)
        features = {"noise": draw.normal(size=4), "said": side + 0.1 * draw.normal(size=4)}
        name = f"cold {item}" if item >= 20 else str(item)
        memory.announce(name, 0.0, {key: vector.astype(np.float32) for key, vector in features.items()})
    users = draw.integers(0, 20, 600)
    items = draw.integers(0, 10, 600) * 2 + users % 2
    memory.append(
        EventBatch(
            [str(u) for u in users], [str(i) for i in items], ["view"] * 600,
            np.full(600, np.nan, np.float32), np.arange(1, 601).astype(np.float64),
        )
    )  # fmt: skip
    learner = Learner(spec, TrainSpec(batch=64, repeats=True), memory, seed=0)
    for _ in range(4):
        learner.learn(np.arange(600), replay_ratio=0.0)
    return memory, learner


@pytest.mark.parametrize(("fusion", "head"), [*((name, "dot") for name in FUSIONS), ("gated", "mlp")])
def test_the_modality_that_carries_the_signal_gets_the_credit(fusion: str, head: str) -> None:
    memory, learner = halves(fusion, head)
    overlay = Overlay(Snapshot.build(learner.spec, learner.state_dict(), memory, version=1))
    for user in ("0", "1", "2", "3"):
        same, other = (f"cold {20 + (int(user) + n) % 2}" for n in (0, 1))
        mine, theirs = (why(overlay, user, item)["item"]["modalities"] for item in (same, other))
        gap = {name: mine[name] - theirs[name] for name in mine}
        # what sets the right item apart from the wrong one is said by the modality that says it
        assert gap["said"] > 0
        assert gap["said"] > abs(gap["noise"])
