"""What may change in `[model]` between runs: modalities and user features come and go, the rest is refused.

A checkpoint of other modalities is carried over when it is read; on disk it stays as it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from models.carry_over import carry_over, same_inputs
from models.spec import ModelSpec, TrainSpec
from service.config import Config, config_digest, shadow_of
from service.errors import StateError

TABLES = ("modalities", "frames", "user_features")
"""Whose keys may come and go; what both sides have must agree."""


def plain_spec(spec: ModelSpec | TrainSpec) -> dict[str, Any]:
    """A table of the configuration as plain JSON values, for the manifest."""
    return {name: dict(value) if isinstance(value, Mapping) else value for name, value in asdict(spec).items()}


def settings(config: Config) -> dict[str, Any]:
    """What a manifest says of the configuration."""
    spec: dict[str, Any] = {"model": plain_spec(config.model), "train": plain_spec(config.train)}
    if (shadow := shadow_of(config)) is not None:
        spec["shadow"] = {"model": plain_spec(shadow.model), "train": plain_spec(shadow.train)}
    return {"config_digest": config_digest(config), "spec": spec}


def check_fits(config: Config, spec: Mapping[str, Any]) -> None:
    """Raises StateError if a checkpoint's `spec` has weights that `[model]` has no use for."""
    saved = spec.get("model", {})
    wanted = plain_spec(config.model)
    for name, value in wanted.items():
        if name in saved and name not in TABLES and saved[name] != value:
            raise _refused(f"] {name} is {value}, but the checkpoint was learned with {saved[name]}")
    for name in TABLES:
        theirs = saved.get(name, {})
        # frames say what their modality is: they cannot come and go without it
        owners = "modalities" if name == "frames" else name
        for key in wanted[owners]:
            mine, other = wanted[name].get(key), theirs.get(key)
            if key in saved.get(owners, {}) and mine != other:
                learned = "without it" if other is None else f"with {other}"
                shown = "not there" if mine is None else mine
                raise _refused(f".{name}] {key} is {shown}, but the checkpoint was learned {learned}")


def _refused(difference: str) -> StateError:
    return StateError(
        f"[model{difference}.",
        hint="Set it back, or start with another state_dir and `replay` what is to be learned again. "
        "Modalities and user features may be added and removed, but not changed.",
    )


def has_other_inputs(config: Config, spec: Mapping[str, Any]) -> bool:
    """Whether a checkpoint of this `spec` reads other modalities or user features than `[model]` says."""
    return not same_inputs(_saved(config, spec), config.model)


def carried_over(config: Config, state: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
    """A trainer's state, saved under `spec`, for the model that `[model]` describes.

    Raises StateError where `check_fits` does.
    """
    check_fits(config, spec)
    return {**state, "learner": carry_over(state["learner"], _saved(config, spec), config.model, seed=config.seed)}


def shadow_in_place(config: Config, state: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any] | None:
    """A trainer's state with its shadow's weights as the main learner's, for a `[model]` that the main learner's do
    not fit and the shadow's do; None otherwise. What was judged of the old ones is left out."""
    if "shadow" not in state or "shadow" not in spec or _fits(config, spec) or not _fits(config, spec["shadow"]):
        return None
    kept = {name: value for name, value in state.items() if name != "shadow"}
    return carried_over(config, {**kept, "learner": state["shadow"]["learner"], "pooled": []}, spec["shadow"])


def _fits(config: Config, spec: Mapping[str, Any]) -> bool:
    try:
        check_fits(config, spec)
    except StateError:
        return False
    return True


def _saved(config: Config, spec: Mapping[str, Any]) -> ModelSpec:
    saved = spec.get("model", {})
    return replace(config.model, **{name: saved[name] for name in TABLES if name in saved})
