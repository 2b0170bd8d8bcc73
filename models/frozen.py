"""A learner's state made ready to be served: all of a snapshot that depends on the weights alone.

Shape suffixes: M items that the weights know, D vector size, K sizes of co-occurrence and factors.
"""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from models.calibration import Calibration
from models.factor_reading import FactorReading
from models.fold_in import FoldIn
from models.histories import ValueScale
from models.learner import popularity_from
from models.scorer import AS_LEARNED, Scorer, neutral_scales
from models.spec import ModelSpec

Vectors = NDArray[np.float32]
M = TypeVar("M", bound=nn.Module)


class Frozen:
    """The weights of one moment. Nothing in it changes."""

    def __init__(self, spec: ModelSpec, state: dict[str, Any], like: Frozen | None = None) -> None:
        """Of a learner's state, whose tensors it keeps; parts that are those of `like` too are shared with it."""
        self.spec = spec
        self.scorer = _scorer(spec, state["scorer"], like)
        self.values = ValueScale(**state["values"])
        ranks = spec.objective == "ranking" and spec.head == "dot"
        calibration = Calibration.from_state(state["calibration"])
        self.calibration = calibration if ranks else None
        """None where none is put on the scores."""
        self.scales = calibration.scales if ranks else neutral_scales()
        self.corrections = calibration.corrections if ranks else AS_LEARNED
        self.popularity = popularity_from(state)
        """As of the last event that was learned."""
        self.popularity.grow(len(state["bias"]["values"]))
        # rows that these weights never met, for they were first touched later, stay zero: content alone
        met_M = self.popularity.first[: len(state["bias"]["values"])] >= 0
        self.residual_MD: Vectors = state["residual"]["values"].numpy() * met_M[:, None]
        self.context_MD: Vectors = state["context"]["values"].numpy() * met_M[:, None]
        self.bias_M: Vectors = state["bias"]["values"].numpy()[:, 0] * met_M
        stored, factors = state["cooccurrence"], state["factors"]
        self.recent_M: torch.Tensor = stored["recent"]
        """How often each item was chosen lately."""
        self.chosen_MK: Vectors = torch.cat((stored["values"], factors["mean"]), dim=1).numpy()
        """Co-occurrence and factors."""
        self.factors = FactorReading(factors["mean"], factors["precision"], factors["counts"])
        self.folded: FoldIn | None = None
        """The reading of co-occurrence; none where ratings are learned, which have no such terms."""
        if spec.objective != "rating":
            self.folded = FoldIn.of(stored["values"], self.recent_M, like.folded if like else None)


def _scorer(spec: ModelSpec, stored: dict[str, torch.Tensor], like: Frozen | None) -> Scorer:
    """The scorer for inference on the CPU; that of `like` where it is the same."""
    if like is None or like.spec != spec:
        with torch.random.fork_rng(devices=[]):
            scorer = Scorer(spec)
    else:
        known = like.scorer.state_dict()
        if known.keys() == stored.keys() and all(torch.equal(value, stored[name]) for name, value in known.items()):
            return like.scorer
        scorer = _twin(like.scorer)
    scorer.load_state_dict(stored, assign=True)
    return scorer.eval().requires_grad_(False)


def _twin(module: M) -> M:
    """A module with the same tensors and parts like its own, any of which can be replaced; quicker than initialising
    what will be."""
    twin = copy.copy(module)
    twin._parameters, twin._buffers = dict(module._parameters), dict(module._buffers)
    twin._modules = {name: part and _twin(part) for name, part in module._modules.items()}
    return twin
