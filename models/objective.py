# ruff: noqa: N815 (shape suffixes)
"""What every objective is: which events are its examples, and a loss over vectors whose gradients the learner spends.

Shape suffixes: B examples, R rows of a step, L places of a history, D vector size, V length of published vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models import catalogue
from models.calibration import Calibration
from models.event_log import LogView
from models.examples import Examples
from models.histories import HistoryTensors
from models.scorer import SCALES

if TYPE_CHECKING:
    from models.learner import Learner

Ints = NDArray[np.int64]


@dataclass
class Step:
    """The forward pass of one step: its loss, and the leaves whose gradients belong to item rows."""

    loss: Tensor
    rows: Tensor | None
    """Item rows of the leaves; None: all, in order."""
    vectors_RD: Tensor
    bias_R: Tensor
    context_RD: Tensor
    """What an item adds to its vector in a history."""
    shown_R: Tensor
    """Where residual, context and bias were part of the vector: admitted, and not dropped."""
    cold_C: Tensor | None = None
    """Places among the rows of targets that nobody had touched then …"""
    cold_CD: Tensor | None = None
    """… and their contents, as leaves: all that they were, so the encoders learn from them what becomes of such items,
    and not only that the untouched are what nobody took."""
    error_R: Tensor | None = None
    """Sums of new errors of each row, in the scores' units, which its bias is a shrunken mean of …"""
    count_R: Tensor | None = None
    """… and how many they are. None: biases learn by gradient, as the rest does."""

    def content_gradient(self) -> Tensor | None:
        """The gradient of the rows' contents, (R, D), once the loss went backward; None where it met no item."""
        gradient_RD = self.vectors_RD.grad
        if gradient_RD is None or self.cold_C is None or self.cold_CD is None or self.cold_CD.grad is None:
            return gradient_RD
        return gradient_RD.index_add(0, self.cold_C, self.cold_CD.grad)


FEW_EVENTS = 20.0
"""After so many events an item's own part is hidden half as often as at first: by then more is known than its content
tells."""


class Objective:
    """What the objectives share: how examples become published vectors."""

    shared_rate = 1.0
    """The shared weights' learning rate, relative to the configured one."""
    residual_rate = 10.0
    """How much larger an item's own first steps are than those of the shared weights: few examples are about it."""
    spread = 0.0
    """Standard deviation of what an item has of its own at first."""
    drops_ids = True
    """Whether what an item has of its own is hidden from some steps."""

    def __init__(self, learner: Learner) -> None:
        self.learner = learner

    @property
    def batch(self) -> int:
        """Examples in one step."""
        return self.learner.train.batch

    def usable(self, log: LogView, positions: Ints) -> Ints:
        """Which of these events are examples."""
        return positions[(log.weight[positions] > 0) & (log.item[positions] >= 0) & (log.user[positions] >= 0)]

    def examples(self, log: LogView, fresh: Ints, replayed: Ints) -> Examples:
        """Those of the new and of the replayed events that are usable."""
        fresh, replayed = self.usable(log, fresh), self.usable(log, replayed)
        return Examples.build(log, self.learner.popularity, fresh, replayed, self.learner.spec.events_read)

    def calibration_by(self, log: LogView, positions: Ints) -> Callable[[], Calibration]:  # noqa: ARG002
        """What fits the scales on events that are about to be learned: it stays as it is unless it ranks.

        Weights are asked for what they say before this returns; what is returned reads nothing that steps alter.
        """
        calibration = self.learner.calibration
        return lambda: calibration

    def forward(self, examples: Examples) -> Step:
        """The loss of one step."""
        raise NotImplementedError

    # -- pieces

    def leaves(
        self, rows: Tensor | None, target_B: Tensor | None = None, *, contents_RD: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Item vectors (R, D) and biases (R,) as leaves, where the item's own part is in them, and context (R, D).

        With dropout where `target_B` is given: the places among the rows of what is learned. Contents are those of the
        learner's table unless they are given.
        """
        learner = self.learner
        index = slice(None) if rows is None else rows
        admitted = learner.admitted()[index]
        shown_R = admitted
        if contents_RD is None:
            contents_RD = learner.contents[index]
        dropout = 0.0 if target_B is None or not self.drops_ids else learner.train.id_dropout
        if target_B is not None:
            contents_RD = learner.content_steps.disturbed(rows, contents_RD, target_B)
        if dropout > 0:
            had_R = torch.from_numpy(learner.popularity.counts[:, -1]).to(learner.device)[index]
            hidden_R = dropout * FEW_EVENTS / (FEW_EVENTS + had_R)
            kept = torch.rand(len(admitted), generator=learner.generator, device=learner.device) >= hidden_R
            shown_R = admitted & kept
        own = shown_R.unsqueeze(1)
        vectors_RD = torch.addcmul(contents_RD, own, learner.residual.values[index]).requires_grad_()
        bias_R = (own * learner.bias.values[index]).squeeze(1).requires_grad_()
        context_RD = (own * learner.context.values[index]).requires_grad_()
        return vectors_RD, bias_R, shown_R, context_RD

    def users(
        self,
        examples: Examples,
        history: HistoryTensors,
        vectors_RD: Tensor,
        features_RK: Tensor,
        *,
        item_RV: Tensor | None = None,
        training: bool,
    ) -> Tensor:
        """Published user vectors of the examples, (B, V); `history` holds indices into the given rows.

        `item_RV`, their published vectors, are needed where the model is one of ratings.
        """
        learner = self.learner
        profiles = None
        if learner.spec.user_features:
            profiles = catalogue.gather(learner.memory.user_features, examples.user_B, learner.device)
        # the weights learn unscaled: scales are put on top of them when served, and would only be learned around
        scales = torch.ones(SCALES, device=learner.device)
        return learner.scorer.users(
            vectors_RD[history.item_BL], features_RK[history.item_BL], self._past(examples), history, scales,
            profiles=profiles,
            items_BLV=None if learner.scorer.regression is None or item_RV is None else item_RV[history.item_BL],
            dropout=learner.train.dropout if training else 0.0, generator=learner.generator if training else None,
        )  # fmt: skip

    @torch.no_grad()
    def _past(self, examples: Examples) -> Tensor:
        """The decayed means (B, D) of what the examples' users had chosen by then, of vectors with nothing dropped.

        Contents are the table's, in calibration too, where all others are of the averages: that measures the same.
        """
        learner = self.learner
        own_ND = torch.add(learner.residual.values, learner.context.values).mul_(learner.admitted().unsqueeze(1))
        return examples.histories.past().mean(own_ND.add_(learner.contents))

    def working_set(self, examples: Examples, extra: Tensor | None = None) -> tuple[Tensor, Tensor, HistoryTensors]:
        """Rows that a step reads; the targets' and the histories' places among them. `extra` rows come first."""
        device = self.learner.device
        history = examples.histories.tensors(self.learner.values, device)
        target_B = torch.from_numpy(examples.item_B).to(device)
        parts = [target_B, history.item_BL.flatten()]
        lead = extra if extra is not None else target_B[:0]
        rest = torch.unique(torch.cat(parts))
        rest = rest[~torch.isin(rest, lead)]
        rows = torch.cat((lead, rest))
        place = torch.empty(int(rows.max()) + 1, dtype=torch.int64, device=device)
        place[rows] = torch.arange(len(rows), device=device)
        return rows, place[target_B], replace(history, item_BL=place[history.item_BL])

    def cold(self, examples: Examples, start: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Examples from `start` on whose target was cold then, the vectors that it had, and its contents as leaves."""
        learner = self.learner
        numbers = start + np.flatnonzero(examples.cold_B[start:])
        item = examples.item_B[numbers]
        age_s = examples.time_B[numbers] - learner.memory.announced[item]
        since = examples.position_B[numbers] - learner.popularity.known[item]
        features = torch.from_numpy(learner.popularity.never_seen(age_s, since)).to(learner.device)
        content = learner.contents[torch.from_numpy(item).to(learner.device)].requires_grad_()
        vectors = learner.scorer.items(content, content.new_zeros(len(item)), features)
        return torch.from_numpy(numbers).to(learner.device), vectors, content
