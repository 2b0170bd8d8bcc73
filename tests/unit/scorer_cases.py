"""Every fusion × objective × head, for the tests that hold for all of them."""

from __future__ import annotations

from itertools import product
from typing import Any, get_args, get_type_hints

from models.fusion import FUSIONS
from models.learner import Learner
from models.objectives import OBJECTIVES
from models.serving import Snapshot
from models.spec import ModelSpec

Case = tuple[str, Any, Any]
"""Fusion, objective, head."""

HEADS = get_args(get_type_hints(ModelSpec)["head"])
CASES = list(product(sorted(FUSIONS), sorted(OBJECTIVES), HEADS))
ONE_FUSION = [case for case in CASES if case[0] == "gated"]
ACTIONS = {"default": 1.0, "skip": -1.0}


def case_id(case: Case) -> str:
    return "-".join(case)


def snapshot_of(learner: Learner) -> Snapshot:
    return Snapshot.build(learner.spec, learner.state_dict(), learner.memory, version=1)
