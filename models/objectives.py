"""What is learned, by name: which item comes next, the value given, or whether the action was positive."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import nn

from models.click_objective import Click
from models.objective import Objective
from models.ranking_objective import Ranking
from models.rating_objective import Rating, Values
from models.spec import Auxiliary

if TYPE_CHECKING:
    from models.learner import Learner

OBJECTIVES: dict[str, type[Objective]] = {"ranking": Ranking, "rating": Rating, "click": Click}
"""Objectives by the name that `[model] objective` gives them."""

AUXILIARY: dict[Auxiliary, Callable[[Learner, nn.Module], Objective]] = {"rating": Values, "click": Click}
"""Those that can be learned beside another, by the name that `[train] auxiliary` gives them."""
