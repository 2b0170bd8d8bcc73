# ruff: noqa: N815 (shape suffixes)
"""Whether the scales of a snapshot still hold: seen by what happens after it, and mended where they do not.

When tastes turn, or a feed of old clicks is replayed into production, terms of the score that were worth much mislead
until the next phase fits calibration anew. So some stretches of events are ranked as they come, with the snapshot's
scales and with ones that are fitted on the fly and forget soon. The latter are served only while they rank certainly
better, event by event: a belief about thirty numbers from few events ranks a little worse where nothing has changed.
Stretches are looked at after a snapshot, now and then afterwards, and one after another where something seems amiss.

Shape suffixes: B examples, N candidates (the target first), T terms of a score, V length of published vectors.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.calibration import TERMS, Calibration
from models.event_log import LogView
from models.histories import Histories
from models.patches import ItemPatches
from models.ranking import gain
from models.readings import Readings
from models.sampling import sampled_candidates
from models.serving import Snapshot
from models.terms import put_terms

Ints = NDArray[np.int64]
Vectors = NDArray[np.float32]

STRETCH = 64
"""Events that are looked at together; of many that come at once, as after a restart, no more."""
IN_A_ROW = 8
"""Stretches that are looked at right after the snapshot, and after anything that seems amiss …"""
EVERY = 8
"""… and otherwise one of so many."""
ODD, BAD = 1.5, 2.0
"""Amiss is, in standard errors: scales on the fly that rank so much better,
a stretch that is so much worse than those before."""
HALF_LIFE = 300.0
"""Events looked at after which what the scales on the fly were fitted on counts half."""
COMPARED = 256.0
"""The same of what the comparison rests on."""
CERTAIN = 4.0
"""Standard errors by which the scales on the fly have to rank better before they are served; many, for they are asked
often."""
CANDIDATES = 256
"""Most items that events are ranked among, half of which are drawn by how often they are chosen."""


class Seen(NamedTuple):
    """A stretch of events, whose users are still to be looked up."""

    positions: Ints
    target_BV: Vectors
    """What their items were just before …"""
    items_NV: Vectors
    """… and the candidates before the first of them."""

    def where(self, kept_B: NDArray[np.bool_]) -> Seen:
        """Those that the mask keeps."""
        return Seen(self.positions[kept_B], self.target_BV[kept_B], self.items_NV)


class LiveCalibration:
    """What is made of the events after a snapshot."""

    def __init__(self, snapshot: Snapshot, calibration: Calibration) -> None:
        self._snapshot = snapshot
        self._served = calibration.of_scales(HALF_LIFE)
        self._fitted = self._served
        self._better = self._square = 0.0
        self._gains = np.zeros(3)
        """How many events were looked at, the sum of their gains as served at first, and of their squares."""
        self._in_a_row = IN_A_ROW
        """Stretches that are still to be looked at without a pause."""
        self._pause = 0
        """Events that pass before the next one is looked at."""
        self._moved = False
        self._rows, self._stands_for_N = _candidates(snapshot)
        self._seen: list[Seen] = []
        """Parts of the stretch that is being looked at."""

    @property
    def scales(self) -> Tensor | None:
        """What to serve instead of the snapshot's scales, (S,); None while those hold."""
        return self._fitted.scales if self._moved else None

    def see(self, log: LogView, positions: range, patches: ItemPatches) -> Seen | None:
        """Events that have just happened and that no item's popularity has in it yet; `log` is that of what came after
        the snapshot. Returns a stretch that is complete, for `learn`."""
        at = np.arange(positions.start, positions.stop)
        at = at[(log.weight[at] > 0) & (log.item[at] >= 0) & (log.user[at] >= 0)]
        paused = min(self._pause, len(at))
        self._pause -= paused
        room = STRETCH - sum(len(part.positions) for part in self._seen)
        at, rest = at[paused : paused + room], at[paused + room :]
        if not len(at) or not len(self._rows):
            return None
        self._look_at(at, log, patches)
        if len(at) < room:
            return None
        all_at, all_targets, (items_NV, *_) = zip(*self._seen, strict=True)
        self._seen.clear()
        self._in_a_row = max(0, self._in_a_row - 1)
        if not self._in_a_row:
            self._pause = max(0, (EVERY - 1) * STRETCH - len(rest))
        elif 0 < len(rest) < STRETCH:
            self._look_at(rest, log, patches)
        return Seen(np.concatenate(all_at), np.concatenate(all_targets), items_NV)

    def _look_at(self, at: Ints, log: LogView, patches: ItemPatches) -> None:
        items_NV = self._seen[0].items_NV if self._seen else patches.published(self._rows)
        self._seen.append(Seen(at, patches.published(log.item[at].astype(np.int64)), items_NV))

    def learn(
        self,
        seen: Seen,
        item_B: Ints,
        histories: Histories,
        learned_BV: Vectors,
        readings: Readings,
        *,
        gone: Collection[int] = (),
    ) -> None:
        """Ranks these events with both scales, then fits those on the fly to them.

        `histories` are those before each event, from which `learned_BV` is what the weights alone make of the users.
        The rows `gone` are no candidates any more.
        """
        snapshot, width = self._snapshot, learned_BV.shape[1]
        user_BV, items_NV = torch.from_numpy(learned_BV), torch.from_numpy(seen.items_NV)
        # an item that was chosen twice is to be no fresher than those it competes with
        place_B = np.minimum(np.searchsorted(self._rows, item_B), len(self._rows) - 1)
        candidate_B1 = (self._rows[place_B] == item_B)[:, None]
        target_BV = torch.from_numpy(np.where(candidate_B1, seen.items_NV[place_B], seen.target_BV))
        terms_TBN = torch.empty(TERMS, len(item_B), 1 + len(self._rows))
        for out, item_NV in ((terms_TBN[:, :, 0], target_BV), (terms_TBN[:, :, 1:], items_NV)):
            put_terms(out, snapshot.spec, user_BV, readings, item_NV[:, :width], item_NV[:, width:], None)
        allowed_BN = np.ones(terms_TBN.shape[1:], bool)
        for line, (item, had_P) in enumerate(zip(item_B, histories.past_BP, strict=True)):
            allowed_BN[line, 1:] = ~np.isin(self._rows, [item, *had_P, *gone])
        allowed, length_B = torch.from_numpy(allowed_BN), histories.tensors(snapshot.values).length_B
        gain_B = self._gain(self._served, terms_TBN, allowed, length_B)
        better_B = self._gain(self._fitted, terms_TBN, allowed, length_B) - gain_B
        keep = 0.5 ** (len(item_B) / COMPARED)
        self._better = keep * self._better + float(better_B.sum())
        self._square = keep**2 * self._square + float((better_B**2).sum())
        # once they are served, until they are no better any more
        self._moved = self._better > (0.0 if self._moved else CERTAIN) * self._square**0.5
        if self._better > ODD * self._square**0.5 or self._is_bad(gain_B):
            self._in_a_row, self._pause = IN_A_ROW, 0
        self._gains += len(gain_B), gain_B.sum(), (gain_B**2).sum()
        self._fitted = self._fitted.faded(len(item_B), HALF_LIFE).fitted(
            terms_TBN, torch.zeros(len(item_B), dtype=torch.int64), allowed, length_B,
            offset_N=torch.cat((torch.zeros(1), self._stands_for_N.log())),
        )  # fmt: skip

    def _is_bad(self, gain_B: NDArray[np.float64]) -> bool:
        count, total, squares = self._gains
        if not count:
            return False
        error = max(0.0, (squares / count - (total / count) ** 2) / len(gain_B)) ** 0.5
        return bool(gain_B.mean() < total / count - BAD * error)

    def _gain(
        self, calibration: Calibration, terms_TBN: Tensor, allowed_BN: Tensor, length_B: Tensor
    ) -> NDArray[np.float64]:
        """The gain of each target's rank among all items, of which the candidates tell, (B,)."""
        score_BN = calibration.scores(terms_TBN, length_B)
        own_B1, others_BN = score_BN[:, :1], score_BN[:, 1:]
        before_BN = (others_BN > own_B1).float() + 0.5 * (others_BN == own_B1).float()
        rank_B = (before_BN * allowed_BN[:, 1:] * self._stands_for_N).sum(1)
        return np.where(own_B1.isfinite().squeeze(1).numpy(), gain(rank_B.numpy()), 0.0)


def _candidates(snapshot: Snapshot) -> tuple[Ints, Tensor]:
    """Rows, all items or a sample, the same for the same snapshot; and how many items each stands for."""
    there_N = torch.from_numpy(np.isfinite(snapshot.announced))
    recent_N = torch.zeros(len(there_N), dtype=torch.float64)
    recent_N[: len(snapshot.frozen.recent_M)] = snapshot.frozen.recent_M
    rows, chance_N = sampled_candidates(there_N, recent_N, CANDIDATES, torch.Generator().manual_seed(0))
    return rows.numpy(), (1 / chance_N).float()
