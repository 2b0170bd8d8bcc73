"""Whether the scales of a snapshot still hold: seen by what happens after it, and mended where they do not.

When tastes turn, or a feed of old clicks is replayed into production, terms of the score that were worth much mislead
until the next phase fits calibration anew. So some stretches of events are ranked as they come, with the snapshot's
scales and with ones that are fitted on the fly and forget soon. The latter are served only while they rank certainly
better, event by event: a belief about thirty numbers from few events ranks a little worse where nothing has changed.

Shape suffixes: B examples, N candidates (the target first), T terms of a score, V length of published vectors.
"""

from __future__ import annotations

from collections.abc import Collection

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
from models.serving import Snapshot
from models.stretches import Stretch, Stretches
from models.terms import put_terms

Ints = NDArray[np.int64]
Vectors = NDArray[np.float32]
Gains = NDArray[np.float64]

HALF_LIFE = 300.0
"""Events looked at after which what the scales on the fly were fitted on counts half."""
COMPARED = 256.0
"""The same of what the comparison rests on."""
WORTH = 16.0
"""How many events of evidence those on the fly begin with, at the snapshot's: they are for when these mislead."""
AMISS = 2.0
"""Standard errors by which a stretch is amiss: scales on the fly rank so much better, or it is so much worse than those
before."""
CERTAIN = 4.0
"""Standard errors by which the scales on the fly have to rank better before they are served; many, for they are asked
often."""


class LiveCalibration:
    """What is made of the events after a snapshot."""

    def __init__(
        self, snapshot: Snapshot, calibration: Calibration, predecessor: LiveCalibration | None = None
    ) -> None:
        """What the predecessor serves instead of its own snapshot's scales is served on until it ranks no better than
        this one's: a phase's end is not the end of a turn."""
        self._snapshot = snapshot
        self._stretches = Stretches(snapshot)
        self._served = calibration.of_scales(WORTH)
        self._fitted: Calibration = self._served
        self._comparison: Comparison = Comparison()
        if predecessor is not None and predecessor._comparison.moved:
            self._fitted = predecessor._fitted.after(predecessor._served, self._served)
            self._comparison.moved = True

    @property
    def scales(self) -> Tensor | None:
        """What to serve instead of the snapshot's scales, (S,); None while those hold."""
        return self._fitted.scales if self._comparison.moved else None

    def see(self, log: LogView, positions: range, patches: ItemPatches) -> Stretch | None:
        """Returns a stretch for `learn`; see `Stretches.see`."""
        return self._stretches.see(log, positions, patches)

    def learn(
        self,
        stretch: Stretch,
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
        terms_TBN = self._terms(stretch, item_B, torch.from_numpy(learned_BV), readings)
        allowed_BN = self._allowed(item_B, histories, gone)
        length_B = histories.tensors(self._snapshot.values).length_B
        served_B, fitted_B = (
            self._gains(calibration.scores(terms_TBN, length_B), allowed_BN)
            for calibration in (self._served, self._fitted)
        )
        self._comparison.add(served_B, fitted_B)
        if self._comparison.amiss:
            self._stretches.look_on()
        self._fitted = self._fitted.faded(len(item_B), HALF_LIFE).fitted(
            terms_TBN, torch.zeros(len(item_B), dtype=torch.int64), allowed_BN, length_B,
            offset_N=torch.cat((torch.zeros(1), self._stretches.stands_for_N.log())),
        )  # fmt: skip

    def _terms(self, stretch: Stretch, item_B: Ints, user_BV: Tensor, readings: Readings) -> Tensor:
        rows, width = self._stretches.rows, user_BV.shape[1]
        # an item that was chosen twice is to be no fresher than those it competes with
        place_B = np.minimum(np.searchsorted(rows, item_B), len(rows) - 1)
        candidate_B1 = (rows[place_B] == item_B)[:, None]
        target_BV = np.where(candidate_B1, stretch.items_NV[place_B], stretch.target_BV)
        terms_TBN = torch.empty(TERMS, len(item_B), 1 + len(rows))
        for out, items in ((terms_TBN[:, :, 0], target_BV), (terms_TBN[:, :, 1:], stretch.items_NV)):
            item_NV = torch.from_numpy(items)
            put_terms(out, self._snapshot.spec, user_BV, readings, item_NV[:, :width], item_NV[:, width:], None)
        return terms_TBN

    def _allowed(self, item_B: Ints, histories: Histories, gone: Collection[int]) -> Tensor:
        """Whom each event's target competes with: all candidates but itself, what its user had and what is gone."""
        rows = self._stretches.rows
        allowed_BN = np.ones((len(item_B), 1 + len(rows)), bool)
        allowed_BN[:, 1:] = ~np.isin(rows, list(gone))
        for line, (item, had_P) in enumerate(zip(item_B, histories.past_BP, strict=True)):
            allowed_BN[line, 1:] &= ~np.isin(rows, [item, *had_P])
        return torch.from_numpy(allowed_BN)

    def _gains(self, score_BN: Tensor, allowed_BN: Tensor) -> Gains:
        """The gain of each target's rank among all items, of which the candidates tell, (B,)."""
        own_B1, others_BN = score_BN[:, :1], score_BN[:, 1:]
        before_BN = (others_BN > own_B1).float() + 0.5 * (others_BN == own_B1).float()
        rank_B = (before_BN * allowed_BN[:, 1:] * self._stretches.stands_for_N).sum(1)
        return np.where(own_B1.isfinite().squeeze(1).numpy(), gain(rank_B.numpy()), 0.0)


class Comparison:
    """Whether scales on the fly rank better than those served at first, by the gains of both, event by event."""

    def __init__(self) -> None:
        self.moved = False
        """They do: from when it is certain until they no longer do."""
        self.amiss = False
        """The last stretch is not as it should be, or the first: there is nothing to compare it with."""
        self._better = self._square = 0.0
        self._count = self._total = self._squares = 0.0
        """Of events so far, and of their gains as served at first."""

    def add(self, served_B: Gains, fitted_B: Gains) -> None:
        """A stretch."""
        better_B = fitted_B - served_B
        keep = 0.5 ** (len(better_B) / COMPARED)
        self._better = keep * self._better + float(better_B.sum())
        self._square = keep**2 * self._square + float((better_B**2).sum())
        error = self._square**0.5
        self.moved = self._better > (0.0 if self.moved else CERTAIN) * error
        self.amiss = self._count == 0 or self._better > AMISS * error or self._fell(served_B)
        self._count += len(served_B)
        self._total += float(served_B.sum())
        self._squares += float((served_B**2).sum())

    def _fell(self, served_B: Gains) -> bool:
        mean = self._total / self._count
        error = (max(0.0, self._squares / self._count - mean**2) / len(served_B)) ** 0.5
        return bool(served_B.mean() < mean - AMISS * error)
