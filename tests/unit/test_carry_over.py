"""Modalities and user features that come and go: what is kept, to the bit, and that the rest learns from there."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from models.carry_over import carry_over
from models.fusion import FUSIONS
from models.learner import Learner
from models.memory import EventBatch, Memory
from models.scorer import observed
from models.serving import Snapshot
from models.spec import ModelSpec, TrainSpec

ACTIONS = {"default": 1.0}
TRAIN = TrainSpec(batch=32, learning_rate=1e-2, actions=ACTIONS)
TEXT = ModelSpec(dim=8, history=4, modalities={"text": 3, "audio": 2}, user_features={"age": 2})
WIDER = replace(TEXT, modalities={"image": 4, "audio": 2, "text": 3}, user_features={"age": 2, "city": 3})


def features(item: int, spec: ModelSpec) -> dict[str, Any]:
    """Text, audio or both; never an image."""
    rng = np.random.default_rng(item)
    all_of_it = {"text": rng.normal(size=3).astype(np.float32), "audio": rng.normal(size=2).astype(np.float32)}
    kept = [("text", "audio"), ("text",), ("audio",)][item % 3]
    return {name: all_of_it[name] for name in kept if name in spec.modalities}


def world(spec: ModelSpec) -> Memory:
    memory = Memory(spec, ACTIONS)
    for item in range(12):
        memory.announce(f"i{item}", 900.0, features(item, spec))
    if "age" in spec.user_features:
        memory.enrol("u0", 900.0, {"age": np.ones(2, np.float32)})
    rng = np.random.default_rng(0)
    users, items = ([f"{kind}{n}" for n in rng.integers(high, size=80)] for kind, high in (("u", 6), ("i", 12)))
    memory.append(EventBatch(users, items, ["view"] * 80, np.full(80, np.nan, np.float32), 1e3 + np.arange(80.0)))
    return memory


def learned(spec: ModelSpec) -> Learner:
    learner = Learner(spec, TRAIN, world(spec), 0)
    learner.learn(np.arange(60), replay_ratio=1.0)
    return learner


def go_on(state: dict[str, Any], spec: ModelSpec) -> Learner:
    learner = Learner(spec, TRAIN, world(spec), 5)
    learner.load_state_dict(state)
    return learner


@pytest.mark.parametrize("fusion", sorted(FUSIONS))
def test_what_has_none_of_the_added_features_keeps_its_vector(fusion: str) -> None:
    before, after = replace(TEXT, fusion=fusion), replace(WIDER, fusion=fusion)
    first = learned(before)
    state = carry_over(first.state_dict(), before, after, seed=1)
    served = [
        Snapshot.build(spec, one, world(spec), version=1)
        for spec, one in ((before, first.state_dict()), (after, state))
    ]
    for kind in ("items", "users"):
        np.testing.assert_allclose(served[0].vectors(kind), served[1].vectors(kind), atol=1e-5)


@pytest.mark.parametrize("fusion", sorted(FUSIONS))
def test_back_again_nothing_of_what_stayed_has_changed(fusion: str) -> None:
    before, after = replace(TEXT, fusion=fusion), replace(WIDER, fusion=fusion)
    state = learned(before).state_dict()
    kept = copy.deepcopy(state["scorer"])
    there = carry_over(state, before, after, seed=1)
    back = carry_over(there, after, before, seed=2)
    assert all(torch.equal(value, back["scorer"][name]) for name, value in kept.items())
    assert all(torch.equal(value, state["scorer"][name]) for name, value in kept.items())


def test_moments_stay_with_their_parameters_and_what_is_new_has_none() -> None:
    first = learned(TEXT)
    state = carry_over(first.state_dict(), TEXT, WIDER, seed=1)
    second = go_on(state, WIDER)
    mine, theirs = (dict(learner.scorer.named_parameters()) for learner in (first, second))
    for name, parameter in theirs.items():
        moments = second.optimizer.state.get(parameter)
        if name.startswith(("encoders.image.", "profiles.city.", "fusion.gate.")):
            assert not moments, name
        else:
            assert torch.equal(moments["exp_avg_sq"], first.optimizer.state[mine[name]]["exp_avg_sq"]), name  # type: ignore[index]
    for name in ("residual", "bias", "popularity", "calibration", "generator", "steps"):
        assert state[name] is not None
        assert repr(state[name]) == repr(first.state_dict()[name])


def test_an_added_modality_is_learned_once_items_are_announced_with_it() -> None:
    state = carry_over(learned(TEXT).state_dict(), TEXT, WIDER, seed=1)
    learner = go_on(state, WIDER)
    fresh = copy.deepcopy(learner.scorer.encoders["image"].state_dict())
    learner.learn(np.arange(60, 70), replay_ratio=1.0)
    assert observed(learner.scorer.encoders["image"]) == 0
    for item in range(0, 12, 2):
        image = np.random.default_rng(item).normal(3, 2, size=4).astype(np.float32)
        learner.memory.announce(f"i{item}", 1e3, {**features(item, WIDER), "image": image})
    assert learner.learn(np.arange(70, 80), replay_ratio=1.0).finite
    assert observed(learner.scorer.encoders["image"]) == 6, "items that were known before are seen too"
    moved = {
        name for name, value in learner.scorer.encoders["image"].state_dict().items() if (value != fresh[name]).any()
    }
    assert moved == set(fresh)


@pytest.mark.parametrize(
    "spec",
    [
        replace(TEXT, modalities={"image": 4}),
        replace(TEXT, modalities={"text": 3}, user_features={}),
        replace(TEXT, modalities={}, user_features={"city": 3}),
    ],
    ids=["all others", "fewer", "none"],
)
def test_learning_goes_on_from_what_is_left(spec: ModelSpec) -> None:
    first = learned(TEXT)
    state = carry_over(first.state_dict(), TEXT, spec, seed=1)
    learner = go_on(state, spec)
    assert torch.equal(learner.residual.values, first.residual.values)
    assert torch.equal(learner.scorer.tower.key.weight, first.scorer.tower.key.weight)
    assert torch.equal(learner.scorer.tower.outer.weight, first.scorer.tower.outer.weight)
    assert learner.learn(np.arange(60, 80), replay_ratio=1.0).finite
    again = carry_over(first.state_dict(), TEXT, spec, seed=1)
    assert all(torch.equal(value, again["scorer"][name]) for name, value in state["scorer"].items())
