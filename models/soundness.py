"""Whether a learner's stored state can be one: the same names, shapes and types as this model's, and finite numbers.

A digest tells that a file is the one that was written; this tells content that no learner ever wrote, should somebody
have made the digests right. Everything here raises `ValueError` with one sentence that says where.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from models.calibration import Calibration
from models.popularity import HALF_LIVES

DECISIVE = ("betas", "eps", "amsgrad", "maximize", "capturable", "differentiable")
"""Settings of an optimizer that no configuration changes, and that decide what a step is."""


def check_learner(
    state: Mapping[str, Any],
    *,
    scorer: Mapping[str, Tensor],
    parameters: Mapping[str, Tensor],
    optimizer: Mapping[str, Any],
    dim: int,
    cooccurrence_dim: int,
    factors_dim: int,
    items: int,
    events: int,
) -> None:
    """A learner's state, for a model of these tensors, over a memory of so many item rows and events."""
    check_tensors(state["scorer"], scorer, "scorer")
    check_tensors(state["learning"], parameters, "learning")
    _check_optimizer(state["optimizer"], optimizer, list(parameters.values()))
    known = len(dense(state["bias"]["values"], "bias"))
    for name, width in (("residual", dim), ("context", dim), ("bias", 1)):
        like = {"values": (known, width), "learning": (known, width), "power": (known,)}
        _check_shapes(state[name], like, torch.float32, name)
        not_negative(state[name]["power"], f"{name} power")
    _check_cooccurrence(state["cooccurrence"], known, cooccurrence_dim)
    _check_factors(state["factors"], known, factors_dim)
    _check_popularity(state["popularity"], events)
    if known > items or len(state["popularity"]["last"]) > items:
        raise ValueError(f"The state has rows of {known} items, of {items} there are.")
    check_tensors(state["calibration"], Calibration().state(), "calibration")
    values = state["values"]
    if not all(type(value) in (int, float) and math.isfinite(value) for value in values.values()):
        raise ValueError("The state's values are not finite.")
    whole(state["steps"], "steps")
    if dense(state["generator"], "generator").dtype != torch.uint8:
        raise ValueError("The state's generator is not bytes.")
    finite(state.get("auxiliary", {}), "auxiliary")


def check_tensors(found: Mapping[str, Any], like: Mapping[str, Tensor], where: str) -> None:
    """Tensors of the same names, shapes and types as `like`, and finite."""
    if set(found) != set(like):
        odd = sorted(map(str, set(found) ^ set(like)))[0]
        raise ValueError(f"The state's {where} does not have the model's tensors: {odd}.")
    for name, one in like.items():
        tensor = dense(found[name], f"{where} {name}")
        if tensor.shape != one.shape or tensor.dtype != one.dtype:
            raise ValueError(f"The state's {where} {name} is {tensor.dtype} of shape {tuple(tensor.shape)}.")


def check_pooled(pooled: Sequence[Mapping[str, Any]]) -> None:
    """The judge's windows: `sums` and `counts` of one length."""
    for window in pooled:
        if set(window) != {"sums", "counts"}:
            raise ValueError("A window of the judge has other parts than sums and counts.")
        lengths = {len(dense(one, "pooled")) for one in window.values()}
        if len(lengths) != 1 or any(one.dtype != torch.float64 or one.ndim != 1 for one in window.values()):
            raise ValueError("A window of the judge has parts of different lengths.")


def dense(value: Any, where: str) -> Tensor:
    """`value`, if it is an ordinary tensor on the CPU whose numbers are finite."""
    if type(value) is not Tensor or value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
        raise ValueError(f"The state's {where} is not a plain tensor.")
    tensor: Tensor = value
    if tensor.is_complex() or not bool(tensor.isfinite().all()):
        raise ValueError(f"The state's {where} is not finite.")
    return tensor


def whole(value: Any, where: str, *, most: int = 2**62) -> int:
    """`value`, if it is a whole number from 0 to `most`."""
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"The state's {where} is not a whole number from 0 to {most}.")
    return value


def finite(value: Any, where: str) -> None:
    """Everything in plain containers: finite numbers, and plain tensors of them."""
    if isinstance(value, Tensor):
        dense(value, where)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            finite(inner, f"{where} {key}")
    elif isinstance(value, list | tuple):
        for inner in value:
            finite(inner, where)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"The state's {where} is not finite.")


def not_negative(tensor: Tensor, where: str) -> None:
    """No number below 0."""
    if bool((tensor < 0).any()):
        raise ValueError(f"The state's {where} is negative somewhere.")


def _check_shapes(
    found: Mapping[str, Any], like: Mapping[str, tuple[int, ...]], dtype: torch.dtype, where: str
) -> None:
    check_tensors(found, {name: torch.empty(shape, dtype=dtype, device="meta") for name, shape in like.items()}, where)


def _check_cooccurrence(found: Mapping[str, Any], rows: int, dim: int) -> None:
    like = {
        "values": torch.empty(rows, dim, device="meta"),
        "counts": torch.empty(rows, dtype=torch.float64, device="meta"),
        "recent": torch.empty(rows, dtype=torch.float64, device="meta"),
    }
    check_tensors(found, like, "cooccurrence")
    not_negative(found["counts"], "cooccurrence counts")
    not_negative(found["recent"], "cooccurrence counts")


def _check_factors(found: Mapping[str, Any], rows: int, dim: int) -> None:
    like = {name: torch.empty(rows, dim, device="meta") for name in ("mean", "precision")}
    counts = torch.empty(rows, dtype=torch.float64, device="meta")
    check_tensors(found, {**like, "variance": torch.empty(dim, device="meta"), "counts": counts}, "factors")
    not_negative(found["counts"], "factors counts")
    for name in ("precision", "variance"):
        if not bool((found[name] > 0).all()):
            raise ValueError(f"The state's factors {name} is not above 0 everywhere.")


def _check_popularity(found: Mapping[str, Any], events: int) -> None:
    position = whole(found["position"], "position", most=events)
    tensors = {name: value for name, value in found.items() if name != "position"}
    rows = len(dense(tensors["last"], "popularity last"))
    _check_shapes({"counts": tensors.pop("counts")}, {"counts": (rows, len(HALF_LIVES))}, torch.float32, "popularity")
    _check_shapes(tensors, dict.fromkeys(("last", "first", "known"), (rows,)), torch.int64, "popularity")
    not_negative(found["counts"], "popularity counts")
    not_negative(found["known"], "popularity known")
    last, first, known = found["last"], found["first"], found["known"]
    there = (first >= -1) & (first <= last) & (last < position) & (known <= torch.where(first < 0, events, first))
    if rows and not bool(there.all()):
        raise ValueError("The state's popularity knows events that there are not.")


def _check_optimizer(found: Mapping[str, Any], like: Mapping[str, Any], parameters: list[Tensor]) -> None:
    groups = found["param_groups"]
    if [group["params"] for group in groups] != [group["params"] for group in like["param_groups"]]:
        raise ValueError("The state's optimizer has other parameters than the model.")
    for group, wanted in zip(groups, like["param_groups"], strict=True):
        for name in DECISIVE:
            if name in group and _other(group[name], wanted[name]):
                raise ValueError(f"The state's optimizer has a {name} that is never used.")
        finite(group, "optimizer")
        if any(not isinstance(group.get(name), bool | None) for name in ("fused", "foreach")):
            raise ValueError("The state's optimizer is set to something that there is not.")
    # a group has its parameters' places, and these count through the model's parameters
    for place, moments in found["state"].items():
        if type(place) is not int or not 0 <= place < len(parameters):
            raise ValueError("The state's optimizer has moments of no parameter.")
        like_moments = dict.fromkeys(("exp_avg", "exp_avg_sq"), tuple(parameters[place].shape))
        _check_shapes(moments, {"step": (), **like_moments}, torch.float32, "optimizer")
        not_negative(moments["step"], "optimizer step")
        not_negative(moments["exp_avg_sq"], "optimizer exp_avg_sq")


def _other(found: Any, wanted: Any) -> bool:
    if isinstance(found, list | tuple) and isinstance(wanted, list | tuple):
        return list(found) != list(wanted)
    return type(found) is not type(wanted) or found != wanted
