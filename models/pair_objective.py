"""What objectives of one pair of user and item at a time share: each example's own item is scored, and no other.

Shape suffixes: B examples, R rows of a step, D vector size, K popularity features, V length of published vectors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from models.examples import Examples
from models.objective import Objective, Step

if TYPE_CHECKING:
    from models.learner import Learner


class Pairs(Objective):
    """Objectives of one pair of user and item at a time.

    The score is the model's own, or, where they are auxiliary, that of a `head` of their own.
    """

    def __init__(self, learner: Learner, head: nn.Module | None = None) -> None:
        super().__init__(learner)
        self.head = head

    def forward(self, examples: Examples) -> Step:
        """Score each example's own item."""
        learner = self.learner
        rows, target_B, history = self.working_set(examples)
        vectors_RD, bias_R, shown_R, context_RD = self.leaves(rows, target_B)
        features_RK = learner.features[rows]
        item_RV = learner.scorer.items(vectors_RD, bias_R, features_RK, alike_NK=self.alike(rows))
        context = vectors_RD + context_RD
        user_BV = self.users(examples, history, context, features_RK, item_RV=item_RV, training=True)
        user_BV, item_BV = self.told(examples, user_BV, item_RV[target_B])
        if self.head is None:
            score_B = learner.scorer.pairs(user_BV, item_BV)
        else:
            score_B = self.head(user_BV[:, : learner.spec.dim], item_BV[:, : learner.spec.dim])
            score_B = self.of_head(examples, score_B)
        step = Step(self.loss(examples, score_B), rows, vectors_RD, bias_R, context_RD, shown_R)
        return self.settled(step, examples, score_B, target_B)

    def alike(self, rows: Tensor) -> Tensor | None:  # noqa: ARG002
        """What else is told of items, (R, K), where scores are made of it."""
        return None

    def settled(self, step: Step, examples: Examples, score_B: Tensor, target_B: Tensor) -> Step:  # noqa: ARG002
        """The step with what else the scores of the targets (places among its rows) tell; it may be changed."""
        return step

    def of_head(self, examples: Examples, score_B: Tensor) -> Tensor:  # noqa: ARG002
        """What an auxiliary head's scores come to, (B,)."""
        return score_B

    def told(self, examples: Examples, user_BV: Tensor, item_BV: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """The vectors without what would give the answer away: counts say nothing about values."""
        return user_BV, item_BV

    def loss(self, examples: Examples, score_B: Tensor) -> Tensor:
        """The loss of these scores."""
        raise NotImplementedError
