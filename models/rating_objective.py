"""The objective `rating`: the value that a user gives an item.

Shape suffixes: B examples.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from models import losses
from models.event_log import LogView
from models.examples import Examples
from models.objective import Ints
from models.pair_objective import Pairs


class Rating(Pairs):
    """Squared error of the value; the user's vector carries their shrunken mean."""

    def usable(self, log: LogView, positions: Ints) -> Ints:
        """Events with a value, of any action that counts."""
        known = (log.item[positions] >= 0) & (log.user[positions] >= 0) & (log.weight[positions] != 0)
        return np.asarray(positions[known & np.isfinite(log.value[positions])])

    def base(self, examples: Examples) -> Tensor:
        """The user's shrunken mean."""
        base = self.learner.values.shrunken_mean(examples.histories).astype(np.float32)
        return torch.from_numpy(base).to(self.learner.device)

    def loss(self, examples: Examples, score_B: Tensor) -> Tensor:
        """MSE."""
        return losses.mse(score_B, torch.from_numpy(examples.value_B).to(score_B.device))
