# ruff: noqa: N815 (shape suffixes)
"""Which of the events after a snapshot are looked at, and what they and their competitors were just before.

Ranking events as they come costs more than serving them does, so that a stretch of them is looked at now and then, and
the next one at once only where something seems amiss.

Shape suffixes: B events, N candidates, V length of published vectors.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.event_log import LogView
from models.patches import ItemPatches
from models.sampling import sampled_candidates
from models.serving import Snapshot

Ints = NDArray[np.int64]
Vectors = NDArray[np.float32]

STRETCH = 64
"""Events that are looked at together; of many that come at once, as after a restart, no more."""
EVERY = 8
"""One stretch of so many is looked at."""
CANDIDATES = 256
"""Most items that events are ranked among, half of which are drawn by how often they are chosen."""


class Stretch(NamedTuple):
    """Events whose users are still to be looked up."""

    positions: Ints
    target_BV: Vectors
    """What their items were just before …"""
    items_NV: Vectors
    """… and the candidates before the first of them."""

    def where(self, kept_B: NDArray[np.bool_]) -> Stretch:
        """Those that the mask keeps."""
        return Stretch(self.positions[kept_B], self.target_BV[kept_B], self.items_NV)


class Stretches:
    """Stretches of the events after a snapshot, as they come."""

    def __init__(self, snapshot: Snapshot) -> None:
        there_N = torch.from_numpy(np.isfinite(snapshot.announced))
        recent_N = torch.zeros(len(there_N), dtype=torch.float64)
        recent_N[: len(snapshot.frozen.recent_M)] = snapshot.frozen.recent_M
        # the same for the same snapshot
        rows, chance_N = sampled_candidates(there_N, recent_N, CANDIDATES, torch.Generator().manual_seed(0))
        self.rows: Ints = rows.numpy()
        """Item rows of the candidates, all items or a sample, (N,) …"""
        self.stands_for_N: Tensor = (1 / chance_N).float()
        """… and how many items each stands for."""
        self._pause = 0
        """Events that pass before the next one is looked at."""
        self._parts: list[Stretch] = []
        """Of the stretch that is being looked at."""
        self._begun: list[Stretch] = []
        """What came with the end of the last stretch: the next one begins with it if it is looked at at once."""

    def see(self, log: LogView, positions: range, patches: ItemPatches) -> Stretch | None:
        """Events that have just happened and that no item's popularity has in it yet; `log` is that of what came after
        the snapshot. Returns a stretch that is complete, one a call at most."""
        at = np.arange(positions.start, positions.stop)
        at = at[(log.weight[at] > 0) & (log.item[at] >= 0) & (log.user[at] >= 0)]
        paused = min(self._pause, len(at))
        self._pause -= paused
        room = STRETCH - sum(len(part.positions) for part in self._parts)
        at, rest = at[paused : paused + room], at[paused + room :]
        if not len(at) or not len(self.rows):
            return None
        self._parts.append(self._look_at(at, log, patches))
        if len(at) < room:
            return None
        all_at, all_targets, (items_NV, *_) = zip(*self._parts, strict=True)
        self._parts.clear()
        self._begun = [self._look_at(rest, log, patches)] if 0 < len(rest) < STRETCH else []
        self._pause = max(0, (EVERY - 1) * STRETCH - len(rest))
        return Stretch(np.concatenate(all_at), np.concatenate(all_targets), items_NV)

    def _look_at(self, at: Ints, log: LogView, patches: ItemPatches) -> Stretch:
        items_NV = self._parts[0].items_NV if self._parts else patches.published(self.rows)
        return Stretch(at, patches.published(log.item[at].astype(np.int64)), items_NV)

    def look_on(self) -> None:
        """Right after a stretch is complete: look at the next one at once."""
        self._pause, self._parts = 0, self._begun
