"""The objective `rating`: the value that a user gives an item.

Shape suffixes: B examples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from models import losses
from models.event_log import LogView
from models.examples import Examples
from models.objective import Ints, Step
from models.pair_objective import Pairs

if TYPE_CHECKING:
    from models.learner import Learner


SPREAD = 0.1
"""Standard deviation of what items have of their own at first, where they are all alike."""
FURTHEST = 4.0
"""An error moves a bias as if it were no more, in standard deviations of values: as in histories, one broken value says
no more than that it is high or low."""


class Values(Pairs):
    """Squared error of the value, in standard deviations of values, lest their unit weigh it.

    Beside another objective what its head says is added to the user's shrunken mean.
    """

    def usable(self, log: LogView, positions: Ints) -> Ints:
        """Events with a value, of any action that counts."""
        known = (log.item[positions] >= 0) & (log.user[positions] >= 0) & (log.weight[positions] != 0)
        return np.asarray(positions[known & np.isfinite(log.value[positions])])

    def of_head(self, examples: Examples, score_B: Tensor) -> Tensor:
        """The user's shrunken mean, and so many standard deviations more."""
        values = self.learner.values
        mean_B = torch.from_numpy(values.shrunken_mean(examples.histories).astype(np.float32)).to(score_B.device)
        return mean_B + values.deviation * score_B

    def loss(self, examples: Examples, score_B: Tensor) -> Tensor:
        """MSE of standardised values."""
        return losses.mse(score_B, self.values(examples)) / self.learner.values.deviation**2

    def values(self, examples: Examples) -> Tensor:
        """The examples' values, (B,), none beyond all others."""
        bounded_B = self.learner.values.bounded(examples.value_B.astype(np.float64))
        return torch.from_numpy(bounded_B.astype(np.float32)).to(self.learner.device)


class Rating(Values):
    """Squared error of what `models.value_regression` foresees.

    Each value is learned from once, when it is new. An item's bias is the shrunken mean of what its values are above
    what was foreseen without it, which would count a replayed value twice; and vectors that met the same pairs again
    learned to foresee them, and trusted histories more than new pairs allow.
    """

    # one value says little: at the full rate the weights followed the noise and did worse than none learned
    shared_rate = 0.1
    residual_rate = 1.0
    drops_ids = False

    def __init__(self, learner: Learner) -> None:
        super().__init__(learner)
        if not learner.spec.modalities:
            # nothing follows from values of items that are all alike, and so nothing would tell them apart
            self.spread = SPREAD

    def alike(self, rows: Tensor) -> Tensor:
        """Co-occurrence, as it was counted before the new events."""
        return self.learner.cooccurrence.values[rows]

    def examples(self, log: LogView, fresh: Ints, replayed: Ints) -> Examples:
        """The new events alone."""
        return super().examples(log, fresh, replayed[:0])

    def settled(self, step: Step, examples: Examples, score_B: Tensor, target_B: Tensor) -> Step:
        """With the errors that move the targets' biases."""
        error_B = ((self.values(examples) - score_B.detach()) / self.learner.values.deviation).clamp(
            -FURTHEST, FURTHEST
        )
        zero_R = torch.zeros_like(step.bias_R.detach())
        step.error_R = zero_R.index_add(0, target_B, error_B)
        step.count_R = zero_R.index_add(0, target_B, torch.ones_like(error_B))
        return step
