"""Distillation: what is served scores replayed examples, and what learns keeps near to that.

Shape suffixes: B examples, R rows of a step, C candidates, N items, V length of published vectors.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from models import catalogue
from models.event_log import LogView
from models.examples import Examples
from models.objective import Ints, Objective, Step
from models.scorer import neutral_scales

if TYPE_CHECKING:
    from models.histories import HistoryTensors
    from models.learner import Learner


class Teacher:
    """The weights that a learner serves (its averages), as they are now; they never change."""

    def __init__(self, learner: Learner) -> None:
        self._learner = learner
        with learner.averages.in_place():
            self.scorer = copy.deepcopy(learner.scorer).eval().requires_grad_(False)
            admitted_N1 = _admitted(learner)
            self._bias_N = (learner.bias.values * admitted_N1).squeeze(1)
            own_ND, context_ND = (table.values * admitted_N1 for table in (learner.residual, learner.context))
        rows = torch.arange(len(learner.popularity)).numpy()
        contents_ND = catalogue.encode(self.scorer, learner.memory.item_features, rows, learner.device)
        self._vectors_ND = contents_ND + own_ND
        self._read_ND = self._vectors_ND + context_ND

    @torch.no_grad()
    def vectors(
        self, examples: Examples, rows: Tensor, history: HistoryTensors, features_RK: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Its vectors of the examples' users (B, V) and of these rows' items (R, V); `history` holds places among the
        rows."""
        learner, scorer = self._learner, self.scorer
        item_RV = scorer.items(self._vectors_ND[rows], self._bias_N[rows], features_RK)
        profiles = None
        if learner.spec.user_features:
            profiles = catalogue.gather(learner.memory.user_features, examples.user_B, learner.device)
        user_BV = scorer.users(
            self._read_ND[rows][history.item_BL], features_RK[history.item_BL],
            examples.histories.past().mean(self._read_ND), history, neutral_scales(learner.device),
            profiles=profiles, items_BLV=None if scorer.regression is None else item_RV[history.item_BL],
        )  # fmt: skip
        return user_BV, item_RV


class Distillation(Objective):
    """Keeps near to the teacher's scores of replayed examples, so that a phase does not undo what is not in it.

    For a ranking −Σ_c q_c log(p_c / q_c) over the items of the step's targets, with q and p the softmax of teacher and
    learner; otherwise the squared difference of the target's two scores, of values in their standard deviations. Li &
    Hoiem, "Learning without forgetting", ECCV 2016, on stored examples instead of new ones, as Rebuffi et al., "iCaRL",
    CVPR 2017.
    """

    def __init__(self, learner: Learner) -> None:
        super().__init__(learner)
        self._teacher: Teacher | None = None

    def begin(self) -> None:
        """The weights that are served now teach until the next call; those of no step at all teach nothing."""
        self._teacher = Teacher(self.learner) if self.learner.steps else None

    def examples(self, log: LogView, fresh: Ints, replayed: Ints) -> Examples:
        """Replayed events alone."""
        return super().examples(log, fresh[:0], replayed[:0] if self._teacher is None else replayed)

    def forward(self, examples: Examples) -> Step:
        """How far the learner's scores are from the teacher's, with nothing dropped."""
        assert self._teacher is not None
        learner = self.learner
        rows, target_B, history = self.working_set(examples)
        vectors_RD, bias_R, shown_R, context_RD = self.leaves(rows)
        features_RK = learner.features[rows]
        item_RV = learner.scorer.items(vectors_RD, bias_R, features_RK)
        user_BV = self.users(
            examples, history, vectors_RD + context_RD, features_RK, item_RV=item_RV, training=False
        )  # fmt: skip
        taught_BV, taught_RV = self._teacher.vectors(examples, rows, history, features_RK)
        if learner.spec.objective == "ranking":
            chosen_C = torch.unique(target_B)
            score_BC = learner.scorer.matrix(user_BV, item_RV[chosen_C])
            taught_BC = self._teacher.scorer.matrix(taught_BV, taught_RV[chosen_C])
            loss = functional.kl_div(
                score_BC.log_softmax(1), taught_BC.log_softmax(1), reduction="batchmean", log_target=True
            )
        else:
            score_B = learner.scorer.pairs(user_BV, item_RV[target_B])
            taught_B = self._teacher.scorer.pairs(taught_BV, taught_RV[target_B])
            unit = learner.values.deviation if learner.spec.objective == "rating" else 1.0
            loss = functional.mse_loss(score_B, taught_B) / unit**2
        return Step(loss, rows, vectors_RD, bias_R, context_RD, shown_R)


def _admitted(learner: Learner) -> Tensor:
    return torch.from_numpy(learner.popularity.first >= 0).to(learner.device).unsqueeze(1)
