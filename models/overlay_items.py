"""The items of an overlay: those of its snapshot and those that came since, as they are now.

Rows go on where the snapshot's end. A new content is only noted, and encoded with all others when `encode` is called.

Shape suffixes: N items, R rows, K popularity features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models import catalogue
from models.event_log import EventLog
from models.features import FeatureTable
from models.patches import ItemPatches
from models.popularity import NEW_FOR, NEWNESS, NEWNESS_EVERY, NEWNESS_HALF_LIVES, Popularity
from models.serving import Snapshot

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Vectors = NDArray[np.float32]

MOST_AGED = 1_000
"""Items whose vectors may change at once with time alone."""


class OverlayItems:
    """Item rows, their ids, contents and popularity."""

    def __init__(self, snapshot: Snapshot, log: EventLog) -> None:
        """`log` will hold what comes after the snapshot."""
        self._snapshot = snapshot
        self._log = log
        self.patches = ItemPatches(snapshot)
        """Their vectors."""
        self.gone = {row for row, one in enumerate(snapshot.items.ids[: snapshot.n_items]) if one is None}
        """Rows whose id was forgotten."""
        self._new: dict[str, int] = {}
        self._new_ids: list[str] = []
        self._contents = FeatureTable(snapshot.spec.modalities, snapshot.spec.frames)
        self._attributes: dict[int, dict[str, Any]] = {}
        self._announced: dict[int, float] = {}
        self._popularity: Popularity | None = None
        self._stale: dict[int, None] = {}
        """Rows whose content is still to be encoded."""
        self._latest: dict[int, None] = {}
        """Rows that were announced after all that was counted: more may turn out to have been before."""
        self._aged: dict[int, None] = {}
        """Rows whose vectors changed with time alone, and that nobody was told of."""

    def __len__(self) -> int:
        """Item rows there are."""
        return self._snapshot.n_items + len(self._new_ids)

    @property
    def ids(self) -> list[str | None]:
        """Id of each row; None where it is gone."""
        snapshot = self._snapshot
        ids = [*snapshot.items.ids[: snapshot.n_items], *self._new_ids]
        for row in self.gone:
            ids[row] = None
        return ids

    def find(self, item_id: str) -> int:
        """The row of an item, -1 where it is unknown or gone."""
        row = self._new.get(item_id, -1)
        if row < 0:
            row = self._snapshot.item_row(item_id)
        return -1 if row in self.gone else row

    def row(self, item_id: str) -> int:
        """The row of an item, a new one where it is unknown or gone."""
        row = self.find(item_id)
        if row < 0:
            row = self._new[item_id] = len(self)
            self._new_ids.append(item_id)
            self._latest[row] = None
            self.patches.add_row()
        return row

    def announce(
        self, item_id: str, time: float, features: Mapping[str, Vectors], attributes: Mapping[str, Any] | None
    ) -> None:
        """An item is new, or has new content."""
        row = self.row(item_id)
        self._contents.put(row, features)
        self._attributes[row] = dict(attributes or {})
        if time < self._when_announced(row):
            self._latest[row] = None
        self._announced[row] = min(self._when_announced(row), time)
        self._stale[row] = None

    def forget(self, item_id: str) -> None:
        """An item is gone."""
        row = self.find(item_id)
        if row >= 0:
            self.gone.add(row)
            self._new.pop(item_id, None)

    def attributes(self, item_id: str) -> dict[str, Any]:
        """What was announced with an item; empty where nothing was."""
        row = self.find(item_id)
        return self._attributes.get(row, self._snapshot.attributes(item_id)) if row >= 0 else {}

    def content(self, row: int) -> dict[str, Vectors]:
        """Its features by modality."""
        table = self._contents if row in self._attributes else self._snapshot.item_features
        return table.get(row)

    def announced(self) -> Floats:
        """When each row was announced or first mentioned, (N,)."""
        times = np.concatenate((self._snapshot.announced, np.full(len(self._new_ids), np.inf)))
        for row, time in self._announced.items():
            times[row] = time
        return times

    @property
    def popularity(self) -> Popularity:
        """As of what was counted; rows beyond the items are nobody's."""
        if self._popularity is None:
            self._popularity = self._snapshot.popularity.copy()
            to_come = (self._popularity.first < 0) & (self._popularity.known >= self._popularity.position)
            rows = np.flatnonzero(to_come[: self._snapshot.n_items] & np.isfinite(self._snapshot.announced))
            self._latest |= dict.fromkeys(rows.tolist())
        if len(self._popularity) < len(self):
            self._popularity.grow(len(self) + len(self) // 8)
        return self._popularity

    def meet(self, rows: Ints, times: Floats) -> None:
        """New items among these are there since they were met, told of or not, if that is before the time that was
        told."""
        earlier: dict[int, float] = {}
        for row, time in zip(rows.tolist(), times.tolist(), strict=True):
            if row >= self._snapshot.n_items and time < self._when_announced(row):
                self._announced[row] = earlier[row] = time
                self._latest[row] = None
        self._stale.update(dict.fromkeys(row for row in earlier if row in self._attributes))
        untold = {row: time for row, time in earlier.items() if row not in self._attributes}
        if untold:
            size = (len(untold), self._snapshot.d), (len(untold), self._snapshot.spec.likeness_dim)
            contents, likeness = (np.zeros(shape, np.float32) for shape in size)
            announced = np.fromiter(untold.values(), np.float64)
            new = np.fromiter(untold, np.int64)
            self.patches.set_content(new, contents, self._snapshot.told(likeness, announced))
            self._refresh(new, np.full(len(new), times.max()))

    def count(self, positions: range) -> None:
        """Popularity of the items of these events, and newness of all, as of the last of them."""
        log = self._log.view(shared_tail=True)
        span = slice(positions.start, positions.stop)
        touched = self.popularity.advance(log.item[span], log.weight[span] > 0)
        self._refresh(touched, self._touched_at(touched), self._aged_since(positions.start))

    def take_aged(self) -> list[str]:
        """Ids of items whose vectors changed with time alone since this was last asked."""
        old, rows = self._snapshot.n_items, [row for row in self._aged if row not in self.gone]
        self._aged.clear()
        ids = [self._snapshot.items.ids[row] if row < old else self._new_ids[row - old] for row in rows]
        return [one for one in ids if one is not None]  # what has expired meanwhile is gone from the vocabulary

    def encode(self) -> None:
        """New contents become vectors. All that happened is counted."""
        if not self._stale:
            return
        snapshot, rows = self._snapshot, np.fromiter(self._stale, np.int64)
        self._stale.clear()
        contents, likeness = (
            make(snapshot.scorer, self._contents, rows, "cpu").numpy()
            for make in (catalogue.encode, catalogue.likeness)
        )
        announced = np.array([self._announced[row] for row in rows.tolist()])
        self.patches.set_content(rows, contents, snapshot.told(likeness, announced))
        untouched = np.maximum(announced, -np.inf if snapshot.event_time is None else snapshot.event_time)
        touched = self._touched_at(rows)
        self._refresh(rows, np.where(np.isfinite(touched), touched, untouched))

    def _when_announced(self, row: int) -> float:
        known = row < self._snapshot.n_items
        return self._announced.get(row, float(self._snapshot.announced[row]) if known else np.inf)

    def _touched_at(self, rows: Ints) -> Floats:
        """When these rows were last touched since the snapshot, (R,); -inf where they were not."""
        popularity, log = self.popularity, self._log.view(shared_tail=True)
        position = popularity.last[rows] - (popularity.position - len(log))
        time_R = np.full(len(rows), -np.inf)
        time_R[position >= 0] = log.time[position[position >= 0]]
        return time_R

    def _aged_since(self, start: int) -> Ints:
        """Rows that are less new than their vectors say, looked for once in a while of the events from `start` on."""
        popularity, log = self.popularity, self._log.view(shared_tail=True)
        earlier = popularity.position - len(log) + start
        looked = popularity.position // NEWNESS_EVERY == earlier // NEWNESS_EVERY
        if looked or not any(self._snapshot.corrections.weighed[NEWNESS]):
            return np.empty(0, np.int64)
        self._place()
        young = np.flatnonzero(popularity.known[: len(self)] > popularity.position - NEW_FOR * NEWNESS_HALF_LIVES[-1])
        rows: Ints = young[(self.patches.features(young, NEWNESS) != popularity.newness(young)).any(1)]
        if len(rows) > MOST_AGED:
            # the youngest; a whole catalogue that came at once waits for the next version: it is all of one age
            known = popularity.known[rows]
            rows = rows[known > np.partition(known, -MOST_AGED - 1)[-MOST_AGED - 1]]
        return rows

    def _place(self) -> None:
        """The latest items are known since as many events as were before they were announced."""
        popularity, log = self.popularity, self._log.view(shared_tail=True)
        if not self._latest:
            return
        rows = np.array([row for row in self._latest if row not in self.gone], np.int64)
        announced = np.array([self._when_announced(row) for row in rows.tolist()])
        known, first = self._snapshot.log.position_at(announced) + log.position_at(announced), popularity.first[rows]
        popularity.known[rows] = np.where(first < 0, known, np.minimum(known, first))
        to_come = (first < 0) & (known >= popularity.position)
        self._latest = dict.fromkeys(rows[to_come].tolist())

    def _refresh(self, rows: Ints, now_R: Floats, aged: Ints | None = None) -> None:
        """Popularity features and published vectors of these rows, as of right after their last events but for
        newness, which is as of now; it alone of those that `aged`."""
        self._place()
        age_s = now_R - np.array([self._when_announced(row) for row in rows.tolist()])
        features = self.popularity.features(rows, age_s, as_of_touch=True)
        if aged is not None and len(aged):
            aged = np.setdiff1d(aged, rows, assume_unique=True)
            older = self.patches.features(aged)
            older[:, NEWNESS] = self.popularity.newness(aged)
            rows, features = np.concatenate((rows, aged)), np.concatenate((features, older))
            self._aged.update(dict.fromkeys(aged.tolist()))
        if len(rows):
            self.patches.set_features(rows, features)
