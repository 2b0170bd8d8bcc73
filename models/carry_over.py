"""A learner's state carried over to a model with other modalities or user features.

What both models have goes on as it was, optimizer state included; what is new starts as in a fresh model. An item or
user that has none of the added features keeps its vector: the fusion masks what is missing.
"""

from __future__ import annotations

import copy
import itertools
from typing import Any

import torch

from models.scorer import Scorer
from models.spec import ModelSpec

WIDENED = "tower.inner.weight"
"""Its last columns read the user's features, and are not there where a model has none."""


def same_inputs(one: ModelSpec, other: ModelSpec) -> bool:
    """Whether two models read the same modalities and user features, in the same order."""
    return list(one.modalities.items()) == list(other.modalities.items()) and list(one.user_features.items()) == list(
        other.user_features.items()
    )


def carry_over(state: dict[str, Any], saved: ModelSpec, spec: ModelSpec, *, seed: int) -> dict[str, Any]:
    """The learner's `state` of a `saved` model, for one with other modalities or user features.

    `state` itself where they are the same; it is never changed. What is new is drawn from `seed`. Raises `RuntimeError`
    where the two models differ in more than that.
    """
    if same_inputs(saved, spec):
        return state
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        old, new = Scorer(saved), Scorer(spec)
    old.load_state_dict(state["scorer"])
    before, after = old.state_dict(), new.state_dict()
    kept = {
        name
        for name in after
        if name in before and before[name].shape == after[name].shape and not name.startswith("fusion.")
    }
    new.load_state_dict({**after, **{name: before[name] for name in kept}})
    if WIDENED not in kept:
        with torch.no_grad():
            columns = min(before[WIDENED].shape[1], after[WIDENED].shape[1])
            new.tower.inner.weight[:, :columns] = old.tower.inner.weight[:, :columns]
    if old.fusion is not None and new.fusion is not None:
        places = {name: place for place, name in enumerate(saved.modalities)}
        pairs = [(at, places[name]) for at, name in enumerate(spec.modalities) if name in places]
        kept |= {f"fusion.{name}" for name in new.fusion.carry_over(old.fusion, pairs)}
    scorer = {name: value.detach().clone() for name, value in new.state_dict().items()}
    # what was not kept as it was has no other weights to learn on from than the served ones
    before = state["learning"]
    learning = {
        name: before[name] if name in kept and not name.startswith("fusion.") else scorer[name]
        for name, _ in new.named_parameters()
    }
    return {
        **state,
        "scorer": scorer,
        "learning": learning,
        "optimizer": _optimizer(state["optimizer"], old, new, kept),
    }


def _optimizer(state: dict[str, Any], old: Scorer, new: Scorer, kept: set[str]) -> dict[str, Any]:
    """AdamW knows parameters by their places; those that were not kept whole start with no moments."""
    places = {name: place for place, (name, _) in enumerate(old.named_parameters())}
    moments = {
        at: copy.deepcopy(state["state"][places[name]])
        for at, (name, _) in enumerate(new.named_parameters())
        if name in kept and places[name] in state["state"]
    }
    places_left = itertools.count()
    groups = [
        {**group, "params": list(itertools.islice(places_left, len(parameters)))}
        for group, parameters in zip(state["param_groups"], new.parameter_groups(), strict=True)
    ]
    return {"state": moments, "param_groups": groups}
