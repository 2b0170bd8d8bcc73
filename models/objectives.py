# ruff: noqa: N815 (shape suffixes)
"""What is learned from examples: which item comes next, the value given, or whether the action was positive.

Each objective says which events it can use, and turns examples into a loss over vectors whose gradients the learner
then spends. Shape suffixes: B examples, R rows of a step, L places of a history, D vector size, N candidates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models import catalogue, losses
from models.event_log import LogView
from models.examples import Examples, seen_before
from models.full_softmax import FullSoftmax
from models.histories import HistoryTensors
from models.sampling import uniform_negatives
from models.scorer import SCALES
from models.spec import Auxiliary

if TYPE_CHECKING:
    from models.learner import Learner

Ints = NDArray[np.int64]

CALIBRATED = 192
"""Most events of a block that the scales are fitted on."""
CALIBRATION_CHUNKS = 4
CALIBRATION_ITEMS = 1_000
"""Most candidates that they are ranked among."""
MLP_NEGATIVES = 256
"""Most negatives of a step where a network scores each pair."""


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


class Objective:
    """What the objectives share: how examples become published vectors."""

    def __init__(self, learner: Learner) -> None:
        self.learner = learner

    def usable(self, log: LogView, positions: Ints) -> Ints:
        """Which of these events are examples."""
        return positions[(log.weight[positions] > 0) & (log.item[positions] >= 0) & (log.user[positions] >= 0)]

    def examples(self, log: LogView, fresh: Ints, replayed: Ints) -> Examples:
        """Those of the new and of the replayed events that are usable."""
        fresh, replayed = self.usable(log, fresh), self.usable(log, replayed)
        return Examples.build(log, self.learner.popularity, fresh, replayed, self.learner.spec.history)

    def calibrate(self, log: LogView, positions: Ints) -> None:
        """Fit the scales on events that are about to be learned; nothing unless it ranks."""

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
        admitted = torch.from_numpy(learner.popularity.first >= 0).to(learner.device)[index]
        shown_R = admitted
        if contents_RD is None:
            contents_RD = learner.contents[index]
        dropout = 0.0 if target_B is None else learner.train.id_dropout
        if target_B is not None:
            contents_RD = learner.content_steps.disturbed(rows, contents_RD, target_B)
        if dropout > 0:
            kept = torch.rand(len(admitted), generator=learner.generator, device=learner.device) >= dropout
            shown_R = admitted & kept
        own = shown_R.unsqueeze(1)
        vectors_RD = (contents_RD + own * learner.residual.values[index]).requires_grad_()
        bias_R = (own * learner.bias.values[index]).squeeze(1).requires_grad_()
        context_RD = (own * learner.context.values[index]).requires_grad_()
        return vectors_RD, bias_R, shown_R, context_RD

    def users(
        self, examples: Examples, history: HistoryTensors, vectors_RD: Tensor, features_RK: Tensor, *, training: bool
    ) -> Tensor:
        """Published user vectors of the examples, (B, V); `history` holds indices into the given rows."""
        learner = self.learner
        profiles = None
        if learner.spec.user_features:
            profiles = catalogue.gather(learner.memory.user_features, examples.user_B, learner.device)
        base = learner.values.shrunken_mean(examples.histories).astype(np.float32)
        # the weights learn unscaled: scales are put on top of them when served, and would only be learned around
        scales = torch.ones(SCALES, device=learner.device)
        return learner.scorer.users(
            vectors_RD[history.item_BL], features_RK[history.item_BL], history, scales, profiles=profiles,
            base_B=torch.from_numpy(base).to(learner.device),
            dropout=learner.train.dropout if training else 0.0, generator=learner.generator if training else None,
        )  # fmt: skip

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
        features = torch.from_numpy(learner.popularity.never_seen(age_s)).to(learner.device)
        content = learner.contents[torch.from_numpy(item).to(learner.device)].requires_grad_()
        vectors = learner.scorer.items(content, content.new_zeros(len(item)), features)
        return torch.from_numpy(numbers).to(learner.device), vectors, content


class Ranking(Objective):
    """Softmax of the next item among all that are announced by then and new to the user, or a sample of them."""

    def examples(self, log: LogView, fresh: Ints, replayed: Ints) -> Examples:
        """Positive events, without repeats unless they are to be learned."""
        fresh, replayed = self.usable(log, fresh), self.usable(log, replayed)
        both = np.concatenate((fresh, replayed))
        seen_BS = seen_before(log, both)
        if not self.learner.train.repeats:
            new = ~(seen_BS == log.item[both][:, None]).any(1)
            fresh, replayed, seen_BS = fresh[new[: len(fresh)]], replayed[new[len(fresh) :]], seen_BS[new]
        return Examples.build(
            log, self.learner.popularity, fresh, replayed, self.learner.spec.history, seen_BS=seen_BS
        )  # fmt: skip

    def forward(self, examples: Examples) -> Step:
        """The whole catalogue where it is small, else in-batch and uniform negatives."""
        learner = self.learner
        device, train = learner.device, learner.train
        everything = len(learner.popularity) <= train.full_softmax_items and learner.spec.head == "dot"
        rows: Tensor | None
        if everything:
            rows, candidates = None, len(learner.popularity)
            history = examples.histories.tensors(learner.values, device)
            target_B = torch.from_numpy(examples.item_B).to(device)
            offset = None
        else:
            lead, offset = self._sample(examples)
            candidates = len(lead)
            rows, target_B, history = self.working_set(examples, lead)
        vectors_RD, bias_R, shown_R, context_RD = self.leaves(rows, target_B)
        features_RK = learner.features if rows is None else learner.features[rows]
        user_BV = self.users(examples, history, vectors_RD + context_RD, features_RK, training=True)
        item_RV = learner.scorer.items(vectors_RD, bias_R, features_RK)
        weight_B = torch.from_numpy(examples.weight_B / max(float(examples.weight_B.sum()), 1e-9)).to(device)
        cold_C, cold_CV, cold_CD = self.cold(examples)
        hidden_from, hidden_BN = self._hidden(examples, rows, candidates)
        hidden_BS = self._own(examples, rows, candidates)
        if learner.spec.head == "dot":
            loss = FullSoftmax.apply(  # type: ignore[no-untyped-call]
                user_BV, item_RV[:candidates], target_B, weight_B, hidden_from, hidden_BN, hidden_BS, cold_C, cold_CV,
                offset,
                examples.fresh, learner.spec.dim + 1,
            )  # fmt: skip
        else:
            score_BN = learner.scorer.matrix(user_BV, item_RV[:candidates])
            if len(cold_C):
                own = learner.scorer.pairs(user_BV[cold_C], cold_CV)
                score_BN = score_BN.index_put((cold_C, target_B[cold_C]), own)
            score_BN = score_BN if offset is None else score_BN + offset
            allowed = torch.ones_like(score_BN, dtype=torch.bool) if hidden_BN is None else ~hidden_BN
            for line, first in enumerate(hidden_from or ()):
                allowed[line, first:] = False
            allowed = allowed.scatter(1, torch.where(hidden_BS >= 0, hidden_BS, target_B.unsqueeze(1)), False)
            loss = losses.softmax_ranking(score_BN, target_B, allowed, weights=weight_B)
        return Step(loss, rows, vectors_RD, bias_R, context_RD, shown_R, target_B[cold_C], cold_CD)

    def _sample(self, examples: Examples) -> tuple[Tensor, Tensor]:
        """Candidates: the batch's targets and uniform negatives; and −log of how often each is expected among them."""
        learner = self.learner
        device = learner.device
        known = np.flatnonzero(
            learner.memory.announced <= examples.time_B[: max(1, examples.fresh)].max(initial=-np.inf)
        )
        known_T = torch.from_numpy(known).to(device)
        target = torch.from_numpy(examples.item_B).to(device)
        most = learner.train.negatives if learner.spec.head == "dot" else min(learner.train.negatives, MLP_NEGATIVES)
        drawn = target[:0] if len(known) == 0 else uniform_negatives(known_T, most, generator=learner.generator)
        lead = torch.unique(torch.cat((target, drawn)))
        counts = learner.popularity.counts[lead.cpu().numpy()][:, -2]
        share = torch.from_numpy(counts / max(1.0, float(learner.popularity.counts[:, -2].sum()))).to(device)
        expected = most / max(1, len(known)) + len(target) * share
        return lead, -torch.log(expected.clamp(1e-9, 1.0))

    def _hidden(
        self, examples: Examples, rows: Tensor | None, candidates: int
    ) -> tuple[list[int] | None, Tensor | None]:
        """Items that were not announced by an example's time: from which on all of them, and a mask (B, N) of others.

        Rows are handed out roughly in the order of announcement, so that the mask is seldom needed.
        """
        announced = self.learner.memory.announced
        announced = announced[:candidates] if rows is None else announced[rows[:candidates].cpu().numpy()]
        time_B = examples.time_B
        if not (announced > time_B.min()).any():
            return None, None
        least = np.minimum.accumulate(announced[::-1])[::-1]  # of each item and all behind it
        hidden_from = np.searchsorted(least, time_B, side="right")
        astray = np.flatnonzero((announced > least) & (announced > time_B.min()))
        if len(astray) == 0:
            return hidden_from.tolist(), None
        hidden = np.zeros((len(time_B), candidates), bool)
        hidden[:, astray] = announced[astray][None, :] > time_B[:, None]
        return hidden_from.tolist(), torch.from_numpy(hidden).to(self.learner.device)

    def _own(self, examples: Examples, rows: Tensor | None, candidates: int) -> Tensor:
        """Places among the candidates of what the user had before, (B, S), -1 where they are none."""
        seen_BS = torch.from_numpy(examples.seen_BS).to(self.learner.device)
        if rows is None:
            return seen_BS
        place = torch.full((len(self.learner.popularity) + 1,), -1, dtype=torch.int64, device=seen_BS.device)
        place[rows[:candidates]] = torch.arange(candidates, device=seen_BS.device)
        return place[seen_BS]  # -1 is the place behind all items, which is -1

    @torch.no_grad()
    def calibrate(self, log: LogView, positions: Ints) -> None:
        """Rank some of these events, weights as they are and popularity as it will be then, and fit the scales."""
        learner = self.learner
        if learner.spec.head != "dot" or (learner.steps == 0 and not len(learner.optimizer.state)):
            return
        learner.calibration.fade(len(positions))
        usable = self.usable(log, positions)
        if len(usable) == 0:
            return
        kept = usable[np.linspace(0, len(usable) - 1, min(CALIBRATED, len(usable))).round().astype(np.int64)]
        popularity, features = learner.popularity.copy(), learner.features.clone()
        # the table's contents are those of the weights that learn, and not of the averages that are in place
        lead = self._calibration_items()
        contents_ND = self._encoded(lead)
        terms: list[Tensor] = []
        targets: list[Tensor] = []
        allowed: list[Tensor] = []
        lengths: list[Tensor] = []
        for chunk in np.array_split(kept, min(CALIBRATION_CHUNKS, len(kept))):
            learner.advance(log, int(chunk[0]), values=False)
            examples = self.examples(log, chunk, chunk[:0])
            if not len(examples):
                continue
            out = self._terms(examples, lead, contents_ND)
            for part, value in zip((terms, targets, allowed, lengths), out, strict=True):
                part.append(value)
        learner.popularity, learner.features = popularity, features
        if not targets:
            return
        learner.calibration.fit(
            torch.cat(terms), torch.cat(targets), torch.cat(allowed), torch.cat(lengths), weight=len(usable) / len(kept)
        )  # fmt: skip

    def _calibration_items(self) -> Tensor:
        """All items, or a uniform sample of many."""
        learner = self.learner
        items = len(learner.popularity)
        if items <= CALIBRATION_ITEMS:
            return torch.arange(items, device=learner.device)
        return torch.randperm(items, generator=learner.generator, device=learner.device)[:CALIBRATION_ITEMS]

    def _encoded(self, rows: Tensor) -> Tensor:
        learner = self.learner
        return catalogue.encode(learner.scorer, learner.memory.item_features, rows.cpu().numpy(), learner.device)

    def _terms(self, examples: Examples, lead: Tensor, contents_ND: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Unscaled terms of the scores, targets, allowed candidates and length buckets, over the items `lead`."""
        learner = self.learner
        items = len(learner.popularity)
        target = torch.from_numpy(examples.item_B).to(learner.device)
        # one column a target of its own, so that the sample stays uniform
        rows, target_B, history = self.working_set(examples)
        both = torch.cat((lead, rows))
        contents = torch.cat((contents_ND, self._encoded(rows)))
        vectors, bias, _, context = self.leaves(both, contents_RD=contents)
        features = learner.features[both]
        n = len(lead)
        history = replace(history, item_BL=history.item_BL + n)
        user_BV = self.users(examples, history, vectors + context, features, training=False)
        item_RV = learner.scorer.items(vectors, bias, features)
        d = learner.spec.dim
        own_BV = item_RV[target_B + n]

        def terms(u: Tensor, v: Tensor, pattern: str) -> Tensor:
            return torch.stack(
                (
                    torch.einsum(pattern, u[:, :d], v[:, :d]),
                    torch.einsum(pattern, u[:, d : d + 1], v[:, d : d + 1]),
                    torch.einsum(pattern, u[:, d + 1 :], v[:, d + 1 :]),
                ),
                dim=-1,
            )

        sampled_BNT = terms(user_BV, item_RV[:n], "bv,nv->bn")
        own_BT = terms(user_BV, own_BV, "bv,bv->b")
        all_BNT = torch.cat((own_BT.unsqueeze(1), sampled_BNT), dim=1)
        announced = learner.memory.announced[lead.cpu().numpy()]
        allowed = torch.from_numpy(announced[None, :] <= examples.time_B[:, None]).to(learner.device)
        allowed &= lead != target.unsqueeze(1)
        place = torch.full((items + 1,), n, dtype=torch.int64, device=learner.device)
        place[lead] = torch.arange(n, device=learner.device)
        seen_BS = place[torch.from_numpy(examples.seen_BS).to(learner.device)]
        allowed &= ~torch.zeros(len(target), n + 1, dtype=torch.bool).scatter(1, seen_BS, True)[:, :n]
        allowed = torch.cat((torch.ones_like(allowed[:, :1]), allowed), dim=1)
        return all_BNT, torch.zeros(len(target), dtype=torch.int64), allowed, history.length_B


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
        user_BV = self.users(examples, history, vectors_RD + context_RD, features_RK, training=True)
        item_RV = learner.scorer.items(vectors_RD, bias_R, features_RK)
        user_BV, item_BV = self.told(examples, user_BV, item_RV[target_B])
        if self.head is None:
            score_B = learner.scorer.pairs(user_BV, item_BV)
        else:
            score_B = self.base(examples) + self.head(user_BV[:, : learner.spec.dim], item_BV[:, : learner.spec.dim])
        return Step(self.loss(examples, score_B), rows, vectors_RD, bias_R, context_RD, shown_R)

    def base(self, examples: Examples) -> Tensor:
        """What an auxiliary head's scores are added to, (B,)."""
        return torch.zeros(len(examples), device=self.learner.device)

    def told(self, examples: Examples, user_BV: Tensor, item_BV: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """The vectors without what would give the answer away: counts say nothing about values."""
        return user_BV, item_BV

    def loss(self, examples: Examples, score_B: Tensor) -> Tensor:
        """The loss of these scores."""
        raise NotImplementedError


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


OBJECTIVES: dict[str, Callable[[Learner], Objective]] = {"ranking": Ranking, "rating": Rating, "click": Click}
"""Objectives by the name that `[model] objective` gives them."""

AUXILIARY: dict[Auxiliary, Callable[[Learner, nn.Module], Objective]] = {"rating": Rating, "click": Click}
"""Those that can be learned beside another, by the name that `[train] auxiliary` gives them."""
