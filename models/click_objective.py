"""The objective `click`: whether an action was positive.

Shape suffixes: B examples, C those whose item was cold, V length of published vectors.
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


class Click(Pairs):
    """Cross entropy of whether the action was positive."""

    def usable(self, log: LogView, positions: Ints) -> Ints:
        """Events of any action that counts."""
        known = (log.item[positions] >= 0) & (log.user[positions] >= 0)
        return np.asarray(positions[known & (log.weight[positions] != 0)])

    def told(self, examples: Examples, user_BV: Tensor, item_BV: Tensor) -> tuple[Tensor, Tensor]:
        """Only a positive admits an item and is counted, so a replayed example is scored as cold where it was, and
        leaves the popularity part alone."""
        cold_C, cold_CV, _ = self.cold(examples, examples.fresh)
        item_BV = item_BV.index_put((cold_C,), cold_CV)
        counts_V = torch.arange(item_BV.shape[1], device=item_BV.device) > self.learner.spec.dim
        fixed_BV = counts_V & (torch.arange(len(item_BV), device=item_BV.device) >= examples.fresh).unsqueeze(1)
        return torch.where(fixed_BV, user_BV.detach(), user_BV), torch.where(fixed_BV, item_BV.detach(), item_BV)

    def loss(self, examples: Examples, score_B: Tensor) -> Tensor:
        """BCE, weighted by the size of the action's weight."""
        weight_B = torch.from_numpy(examples.weight_B).to(score_B.device)
        return losses.bce(score_B, (weight_B > 0).float(), weights=weight_B.abs())
