# ruff: noqa: N815 (shape suffixes)
"""The objective `ranking`: which item a user takes next, and how far each term of the score is to be trusted in it.

Shape suffixes: B examples, R rows of a step, D vector size, V length of published vectors, N candidates, T terms of a
score, P items that a user had.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from models import catalogue, likeness, losses
from models.calibration import TERMS, Calibration
from models.event_log import LogView
from models.examples import Examples
from models.fold_in import FoldIn
from models.full_softmax import FullSoftmax
from models.objective import Ints, Objective, Step
from models.past import KNOWN
from models.popularity import nearest_half_life
from models.readings import Readings
from models.sampling import sampled_candidates, uniform_negatives
from models.terms import put_terms
from models.vintage import knots_of, vintages

CALIBRATION_CHUNK = 128
"""Events of a block between two looks at popularity while they are ranked."""
CALIBRATION_SAMPLE = 256
"""Most items that they are ranked among: of a larger catalogue so many, half of which are drawn by how often they are
chosen."""
FRESH_HALF_LIFE = 1_000.0
"""Of the counts, in events, by which it is guessed what new events are of."""
MLP_NEGATIVES = 256
"""Most negatives of a step where a network scores each pair."""


class Ranking(Objective):
    """Softmax of the next item among all that are announced by then and new to the user, or a sample of them."""

    @property
    def batch(self) -> int:
        """More where a sample of negatives is shared."""
        train = self.learner.train
        return train.batch if self._everything or self.learner.spec.head != "dot" else train.sampled_batch

    @property
    def _everything(self) -> bool:
        """Whether the whole catalogue is small enough to be ranked in each step."""
        learner = self.learner
        return len(learner.popularity) <= learner.train.full_softmax_items and learner.spec.head == "dot"

    def examples(self, log: LogView, fresh: Ints, replayed: Ints) -> Examples:
        """Positive events, without repeats unless they are to be learned."""
        return self._wanted(super().examples(log, fresh, replayed))

    def _wanted(self, examples: Examples) -> Examples:
        if self.learner.train.repeats:
            return examples
        return examples.where(~(examples.seen_BP == examples.item_B[:, None]).any(1))

    def forward(self, examples: Examples) -> Step:
        """The whole catalogue where it is small, else in-batch and uniform negatives."""
        learner = self.learner
        device = learner.device
        rows: Tensor | None
        if self._everything:
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
        hidden_BP = self._own(examples, rows, candidates)
        if learner.spec.head == "dot":
            loss = FullSoftmax.apply(  # type: ignore[no-untyped-call]
                user_BV, item_RV[:candidates], target_B, weight_B, hidden_from, hidden_BN, hidden_BP, cold_C, cold_CV,
                offset,
                examples.fresh, learner.spec.dim + 1,
            )  # fmt: skip
        else:
            # today's counts know of what is replayed
            fresh, lead_NV = examples.fresh, item_RV[:candidates]
            user_BV = torch.cat((user_BV[:fresh], self._counts_fixed(user_BV[fresh:])))
            score_BN = torch.cat((
                learner.scorer.matrix(user_BV[:fresh], lead_NV),
                learner.scorer.matrix(user_BV[fresh:], self._counts_fixed(lead_NV)),
            ))  # fmt: skip
            if len(cold_C):
                cold_CV = torch.where((cold_C < fresh).unsqueeze(1), cold_CV, self._counts_fixed(cold_CV))
                own = learner.scorer.pairs(user_BV[cold_C], cold_CV)
                score_BN = score_BN.index_put((cold_C, target_B[cold_C]), own)
            score_BN = score_BN if offset is None else score_BN + offset
            allowed = torch.ones_like(score_BN, dtype=torch.bool) if hidden_BN is None else ~hidden_BN
            for line, first in enumerate(hidden_from or ()):
                allowed[line, first:] = False
            allowed = allowed.scatter(1, torch.where(hidden_BP >= 0, hidden_BP, target_B.unsqueeze(1)), False)
            loss = losses.softmax_ranking(score_BN, target_B, allowed, weights=weight_B)
        return Step(loss, rows, vectors_RD, bias_R, context_RD, shown_R, target_B[cold_C], cold_CD)

    def _counts_fixed(self, x_NV: Tensor) -> Tensor:
        """Published vectors whose popularity part takes no gradient."""
        split = self.learner.spec.dim + 1
        return torch.cat((x_NV[:, :split], x_NV[:, split:].detach()), dim=1)

    def _sample(self, examples: Examples) -> tuple[Tensor, Tensor]:
        """Candidates: the batch's targets and uniform negatives; and −log of how likely each is among them (the log-Q
        of Bengio & Senécal, "Adaptive importance sampling to accelerate training of a neural probabilistic language
        model", 2008): new events are of what is chosen now, replayed ones of what was when they happened."""
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
        there_N = np.isfinite(learner.memory.announced)
        expected_N = np.full(len(learner.popularity), most / max(1, len(known)))
        for half_life, targets, favoured in (
            (FRESH_HALF_LIFE, examples.fresh, 0.0),
            (learner.train.replay_half_life, len(examples) - examples.fresh, learner.train.replay_rare),
        ):
            count_N = np.where(there_N, learner.popularity.counts_now(nearest_half_life(half_life)), 0)
            count_N = count_N * np.maximum(learner.popularity.counts[:, -1], 1) ** -favoured
            expected_N += targets / max(1e-9, float(count_N.sum())) * count_N
        expected = torch.from_numpy(expected_N[lead.cpu().numpy()]).float().to(device)
        # how likely an item is among them at all, however often: draws are nearly independent
        return lead, -torch.log(-torch.expm1(-expected.clamp(min=1e-9)))

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
        """Places among the candidates of what the user had before, (B, P), -1 where they are none."""
        seen_BP = torch.from_numpy(examples.seen_BP).to(self.learner.device)
        if rows is None:
            return seen_BP
        place = torch.full((len(self.learner.popularity) + 1,), -1, dtype=torch.int64, device=seen_BP.device)
        place[rows[:candidates]] = torch.arange(candidates, device=seen_BP.device)
        return place[seen_BP]  # -1 is the place behind all items, which is -1

    @torch.no_grad()
    def calibration_by(self, log: LogView, positions: Ints) -> Callable[[], Calibration]:
        """What fits the scales on these events, weights as they are and popularity as it will be then."""
        learner = self.learner
        if learner.spec.head != "dot" or (learner.steps == 0 and not len(learner.optimizer.state)):
            return super().calibration_by(log, positions)
        faded = learner.calibration.faded(len(positions))
        usable, nothing = self.usable(log, positions), positions[:0]
        examples = self._wanted(
            Examples.build(log, learner.popularity, usable, nothing, learner.spec.events_read, known=KNOWN)
        )
        if not len(examples):
            return lambda: faded
        popularity, features = learner.popularity.copy(), learner.features.clone()
        lead, chance_N = self._calibration_items()
        terms = self._terms(log, examples, lead)
        learner.popularity, learner.features = popularity, features
        # the target comes first, and stands for itself
        offset_N = torch.cat((chance_N.new_zeros(1), -chance_N.log()))

        @torch.no_grad()
        def fitted() -> Calibration:
            return faded.fitted(*terms(), offset_N=offset_N)

        return fitted

    def _calibration_items(self) -> tuple[Tensor, Tensor]:
        """All items, or a sample of many, and how likely each of them was to be in it.

        Most of what a target competes with is chosen often, and most of what is new is not.
        """
        learner = self.learner
        items = len(learner.popularity)
        if items <= CALIBRATION_SAMPLE:
            return torch.arange(items, device=learner.device), torch.ones(items, device=learner.device)
        there_N = torch.from_numpy(np.isfinite(learner.memory.announced)).to(learner.device)
        return sampled_candidates(there_N, learner.cooccurrence.recent, CALIBRATION_SAMPLE, learner.generator)

    def _moments(self, log: LogView, examples: Examples) -> Iterator[slice]:
        """The examples a chunk at a time, popularity being as of the first of each."""
        _, starts = np.unique(examples.position_B // CALIBRATION_CHUNK, return_index=True)
        for start, stop in pairwise([*starts.tolist(), len(examples)]):
            self.learner.advance(log, int(examples.position_B[start]), values=False)
            yield slice(start, stop)

    def _told(self, *parts: Ints) -> Callable[[Ints], Tensor]:
        """Looks up what was told of any of these rows, -1 for none: their likeness and their vintage."""
        learner, size = self.learner, self.learner.spec.vintage_dim
        known_R = np.unique(np.concatenate([part.ravel() for part in parts]))
        known_R = known_R[known_R >= 0]
        announced = learner.memory.announced
        vintage_RK = torch.from_numpy(vintages(announced[known_R], knots_of(announced, size), size)).to(learner.device)
        likeness_RK = catalogue.likeness(learner.scorer, learner.memory.item_features, known_R, learner.device)
        told_RK = torch.cat((likeness_RK, vintage_RK), dim=1)
        return lambda rows: told_RK[torch.from_numpy(np.searchsorted(known_R, rows)).to(learner.device)]

    def _terms(
        self, log: LogView, examples: Examples, lead: Tensor
    ) -> Callable[[], tuple[Tensor, Tensor, Tensor, Tensor]]:
        """What makes unscaled terms of the scores, targets, allowed candidates and length buckets, over the items
        `lead` and, first, the target.

        What the weights say is asked for at once, for they are about to change; the rest, most of it, later.
        """
        learner = self.learner
        scorer, spec = learner.scorer, learner.spec
        together, factors = learner.cooccurrence, learner.factors
        # one column a target of its own, whatever was drawn
        rows, target_B, history = self.working_set(examples)
        both, n = torch.cat((lead, rows)), len(lead)
        own_B = target_B + n
        # the table's contents are those of the weights that learn, and not of the averages that are in place
        contents = catalogue.encode(scorer, learner.memory.item_features, both.cpu().numpy(), learner.device)
        told = self._told(lead.cpu().numpy(), examples.item_B, examples.histories.past_BP[:, : likeness.EVENTS])
        # as in all of the past that the tower reads, contents are the table's
        learned_ND = torch.addcmul(learner.contents, learner.admitted().unsqueeze(1), learner.residual.values)

        moments: list[_Moment] = []
        read, features = [], []
        for part in self._moments(log, examples):
            vectors, bias, _, context = self.leaves(both, contents_RD=contents)
            features.append(learner.features[both])
            read.append(vectors + context)
            history.item_BL[part] += n + len(both) * len(moments)
            own = own_B[part]
            lead_NV, own_BV = (
                scorer.items(vectors[at], bias[at], features[-1][at]) for at in (slice(n), own)
            )  # fmt: skip
            moments.append(_Moment(part, lead_NV, features[-1][:n], own_BV, features[-1][own]))
        user_BV = self.users(examples, history, torch.cat(read), torch.cat(features), training=False)
        allowed_BN = self._allowed(examples, lead)

        def terms() -> tuple[Tensor, Tensor, Tensor, Tensor]:
            alike_NK, alike_BK = (
                torch.cat((told(one.cpu().numpy()), together.values[one], factors.mean[one]), dim=1)
                for one in (lead, both[own_B])
            )
            taste = FoldIn(learned_ND, together.recent)
            terms_TBN = user_BV.new_empty(TERMS, len(examples), n + 1)
            for moment in moments:  # and not all at once: what they chose lately is gathered
                part = moment.part
                readings = Readings.of(
                    examples.histories.rows(part),
                    lambda past: past.mean_of(told(past.row_E)),
                    lambda past: past.mean(together.values),
                    lambda past: past.mean(learned_ND),
                    likeness_dim=spec.likeness_dim, factors=factors.reading, folded=together.fold_in(), taste=taste,
                )  # fmt: skip
                out_TB, out_TBN = terms_TBN[:, part, 0], terms_TBN[:, part, 1:]
                put_terms(out_TB, spec, user_BV[part], readings, moment.own_BV, alike_BK[part], moment.own_features_BK)
                put_terms(out_TBN, spec, user_BV[part], readings, moment.lead_NV, alike_NK, moment.lead_features_NK)
            return terms_TBN, torch.zeros(len(examples), dtype=torch.int64), allowed_BN, history.length_B

        return terms

    def _allowed(self, examples: Examples, lead: Tensor) -> Tensor:
        """Whether each of the items `lead` is a candidate of each example beside its target, which comes first."""
        learner = self.learner
        items, n = len(learner.popularity), len(lead)
        target_B = torch.from_numpy(examples.item_B).to(learner.device)
        announced = learner.memory.announced[lead.cpu().numpy()]
        allowed = torch.from_numpy(announced[None, :] <= examples.time_B[:, None]).to(learner.device)
        allowed &= lead != target_B.unsqueeze(1)
        place = torch.full((items + 1,), n, dtype=torch.int64, device=learner.device)
        place[lead] = torch.arange(n, device=learner.device)
        seen_BP = place[torch.from_numpy(examples.seen_BP).to(learner.device)]
        mine = torch.zeros(len(target_B), n + 1, dtype=torch.bool, device=learner.device).scatter(1, seen_BP, True)
        allowed &= ~mine[:, :n]
        return torch.cat((torch.ones_like(allowed[:, :1]), allowed), dim=1)


class _Moment(NamedTuple):
    """Examples that are ranked with popularity as of the first of them."""

    part: slice
    lead_NV: Tensor
    """Published vectors of the candidates …"""
    lead_features_NK: Tensor
    own_BV: Tensor
    """… and of each example's target."""
    own_features_BK: Tensor
