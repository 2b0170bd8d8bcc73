"""The objective `ranking`: which item a user takes next, and how far each term of the score is to be trusted in it.

Shape suffixes: B examples, R rows of a step, D vector size, V length of published vectors, N candidates, T terms of a
score, P items that a user had.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from models import catalogue, cooccurrence, fold_in, likeness, losses
from models.event_log import LogView
from models.examples import Examples
from models.full_softmax import FullSoftmax
from models.objective import Ints, Objective, Step
from models.popularity import NEVER_SEEN
from models.sampling import uniform_negatives

CALIBRATED = 3 / 16
"""Share of a block's events that the scales are fitted on …"""
FEWEST_CALIBRATED = 64
"""… but so many at least."""
CALIBRATION_CHUNK = 256
"""Events between two looks at popularity while they are ranked."""
CALIBRATION_ITEMS = 1_000
"""Most candidates that they are ranked among."""
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
        examples = super().examples(log, fresh, replayed)
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
            score_BN = learner.scorer.matrix(user_BV, item_RV[:candidates])
            if len(cold_C):
                own = learner.scorer.pairs(user_BV[cold_C], cold_CV)
                score_BN = score_BN.index_put((cold_C, target_B[cold_C]), own)
            score_BN = score_BN if offset is None else score_BN + offset
            allowed = torch.ones_like(score_BN, dtype=torch.bool) if hidden_BN is None else ~hidden_BN
            for line, first in enumerate(hidden_from or ()):
                allowed[line, first:] = False
            allowed = allowed.scatter(1, torch.where(hidden_BP >= 0, hidden_BP, target_B.unsqueeze(1)), False)
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
        """Places among the candidates of what the user had before, (B, P), -1 where they are none."""
        seen_BP = torch.from_numpy(examples.seen_BP).to(self.learner.device)
        if rows is None:
            return seen_BP
        place = torch.full((len(self.learner.popularity) + 1,), -1, dtype=torch.int64, device=seen_BP.device)
        place[rows[:candidates]] = torch.arange(candidates, device=seen_BP.device)
        return place[seen_BP]  # -1 is the place behind all items, which is -1

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
        count = min(len(usable), max(FEWEST_CALIBRATED, round(CALIBRATED * len(usable))))
        kept = usable[np.linspace(0, len(usable) - 1, count).round().astype(np.int64)]
        popularity, features = learner.popularity.copy(), learner.features.clone()
        lead, known = self._calibration_items(), self._known_items()
        terms: list[Tensor] = []
        targets: list[Tensor] = []
        allowed: list[Tensor] = []
        lengths: list[Tensor] = []
        for chunk in np.array_split(kept, min(len(kept), -(-len(positions) // CALIBRATION_CHUNK))):
            learner.advance(log, int(chunk[0]), values=False)
            examples = self.examples(log, chunk, chunk[:0])
            if not len(examples):
                continue
            out = self._terms(examples, lead, known)
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

    def _known_items(self) -> tuple[catalogue.Once, catalogue.Once]:
        """Contents (R, D) of items, and what they are like: likeness and co-occurrence (R, K)."""
        learner = self.learner
        scorer, table, device = learner.scorer, learner.memory.item_features, learner.device

        def alike(rows: Ints) -> Tensor:
            together_RK = learner.cooccurrence.values[torch.from_numpy(rows).to(device)]
            return torch.cat((catalogue.likeness(scorer, table, rows, device), together_RK), dim=1)

        # the table's contents are those of the weights that learn, and not of the averages that are in place
        return (
            catalogue.Once(lambda rows: catalogue.encode(scorer, table, rows, device), len(learner.popularity), device),
            catalogue.Once(alike, len(learner.popularity), device),
        )

    def _liked(self, examples: Examples, alike: catalogue.Once) -> tuple[Tensor, Tensor, Tensor]:
        """The mean likeness and co-occurrence (B, K each) of what the examples' users chose last, and what they chose
        beyond what was to be expected (`models.fold_in`)."""
        learner, liked, chosen = self.learner, examples.histories.liked(), examples.histories.chosen()
        liked_BK = liked.mean_of(alike[torch.from_numpy(liked.row_E).to(learner.device)])
        like_BK, together_BK = liked_BK.tensor_split((learner.spec.likeness_dim,), dim=1)
        chosen_BK = chosen.mean(learner.cooccurrence.values)
        return like_BK, together_BK, learner.cooccurrence.fold_in()(chosen_BK, chosen.counts_B)

    def _terms(
        self, examples: Examples, lead: Tensor, known: tuple[catalogue.Once, catalogue.Once]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Unscaled terms of the scores, targets, allowed candidates and length buckets, over the items `lead`."""
        learner = self.learner
        items = len(learner.popularity)
        target = torch.from_numpy(examples.item_B).to(learner.device)
        # one column a target of its own, so that the sample stays uniform
        rows, target_B, history = self.working_set(examples)
        both = torch.cat((lead, rows))
        contents, alike = (table[both] for table in known)
        vectors, bias, _, context = self.leaves(both, contents_RD=contents)
        features = learner.features[both]
        n = len(lead)
        history = replace(history, item_BL=history.item_BL + n)
        user_BV = self.users(examples, history, vectors + context, features, training=False)
        item_RV = learner.scorer.items(vectors, bias, features)
        d = learner.spec.dim
        own_BV = item_RV[target_B + n]
        like_BK, together_BK, beyond_BK = self._liked(examples, known[1])
        own_BK = alike[target_B + n]
        columns = (learner.spec.likeness_dim,)

        def terms(u: Tensor, v: Tensor, alike: Tensor, untouched: Tensor, pattern: str) -> Tensor:
            personal = torch.einsum(pattern, u[:, :d], v[:, :d])
            bias = torch.einsum(pattern, u[:, d : d + 1], v[:, d : d + 1])
            popularity = torch.einsum(pattern, u[:, d + 1 :], v[:, d + 1 :])
            outline, chosen_by = alike.tensor_split(columns, dim=1)
            like = likeness.WEIGHT * torch.einsum(pattern, like_BK, outline)
            together = cooccurrence.WEIGHT * torch.einsum(pattern, together_BK, chosen_by)
            beyond = fold_in.WEIGHT * torch.einsum(pattern, beyond_BK, chosen_by)
            parts = (personal, bias, popularity, like, together, beyond, untouched.expand_as(personal))
            return torch.stack(parts, dim=1)

        untouched = features[:, NEVER_SEEN]
        sampled_BTN = terms(user_BV, item_RV[:n], alike[:n], untouched[:n], "bv,nv->bn")
        own_BT = terms(user_BV, own_BV, own_BK, untouched[target_B + n], "bv,bv->b")
        all_BTN = torch.cat((own_BT.unsqueeze(2), sampled_BTN), dim=2)
        announced = learner.memory.announced[lead.cpu().numpy()]
        allowed = torch.from_numpy(announced[None, :] <= examples.time_B[:, None]).to(learner.device)
        allowed &= lead != target.unsqueeze(1)
        place = torch.full((items + 1,), n, dtype=torch.int64, device=learner.device)
        place[lead] = torch.arange(n, device=learner.device)
        seen_BP = place[torch.from_numpy(examples.seen_BP).to(learner.device)]
        allowed &= ~torch.zeros(len(target), n + 1, dtype=torch.bool).scatter(1, seen_BP, True)[:, :n]
        allowed = torch.cat((torch.ones_like(allowed[:, :1]), allowed), dim=1)
        return all_BTN, torch.zeros(len(target), dtype=torch.int64), allowed, history.length_B
