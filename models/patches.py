"""Item vectors that differ from a snapshot's, or that it does not have, as tables beside its own.

Shape suffixes: N items, R rows, D vector size, V length of published vectors.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.growing import GrowingArray
from models.serving import Snapshot

Ints = NDArray[np.int64]
Vectors = NDArray[np.float32]


class PatchedTable:
    """A table of the snapshot's with some of its rows replaced, and rows behind its end."""

    def __init__(self, base: Vectors) -> None:
        self.base = base
        self.patches = GrowingArray(np.float32, base.shape[1:])

    def gather(self, rows: Ints, slot: Ints, columns: slice | None = None) -> Vectors:
        """Rows (…) of the table, (…, its row), or some columns of them; patched where `slot` says by which, -1 for
        none."""
        base, patches = self.base, self.patches.rows
        if columns is not None:
            base, patches = base[:, columns], patches[:, columns]
        known = rows < len(base)
        out = base[np.where(known, rows, 0)] if len(base) else np.zeros((*rows.shape, *base.shape[1:]), np.float32)
        out[~known] = 0.0  # new, and not computed yet
        patched = slot >= 0
        out[patched] = patches[slot[patched]]
        return out


class ItemPatches:
    """The tables of a snapshot's items as they are now. Item rows go on where the snapshot's end."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._slot = GrowingArray(np.int64)
        self._slot.grow(snapshot.n_items, -1)
        self._rows = GrowingArray(np.int64)
        self._personal = PatchedTable(snapshot.personal_ND)
        self._bias = PatchedTable(snapshot.bias)
        self._features = PatchedTable(snapshot.features_NK)
        self._alike = PatchedTable(snapshot.alike_NK)
        self._published = PatchedTable(snapshot.vectors_NV)
        self._tables = (self._personal, self._bias, self._features, self._alike, self._published)

    def __len__(self) -> int:
        """Item rows there are, patched or not."""
        return len(self._slot)

    def add_row(self) -> None:
        """One more item row, nothing computed for it yet."""
        self._slot.extend([-1])

    @property
    def rows(self) -> Ints:
        """The patched rows, in the order of `patched_vectors`."""
        return self._rows.rows

    @property
    def patched_vectors(self) -> Vectors:
        """Their published vectors, (R, V)."""
        return self._published.patches.rows

    def published(self, rows: Ints) -> Vectors:
        """Published vectors of these item rows, (…, V)."""
        return self._published.gather(rows, self._slot.rows[rows])

    def personal(self, rows: Ints) -> Vectors:
        """Their personal parts, (…, D)."""
        return self._personal.gather(rows, self._slot.rows[rows])

    def features(self, rows: Ints, columns: slice | None = None) -> Vectors:
        """Their popularity features, or some columns of them, (…, K)."""
        return self._features.gather(rows, self._slot.rows[rows], columns)

    def alike(self, rows: Ints, columns: slice) -> Vectors:
        """Some of the columns of their likeness, vintage, co-occurrence and factors, (…, K)."""
        return self._alike.gather(rows, self._slot.rows[rows], columns)

    def read(self, rows: Ints) -> Vectors:
        """What they are where they stand in a history, (…, D)."""
        vectors = self.personal(rows)
        known = rows < self._snapshot.n_items
        vectors[known] += self._snapshot.context[rows[known]]
        return vectors

    def set_content(self, rows: Ints, contents_RD: Vectors, told_RK: Vectors) -> None:
        """These rows (R,), each once, have new contents. Their published vectors follow with `set_features`."""
        known = rows < self._snapshot.n_items
        personal = contents_RD.copy()
        personal[known] += self._snapshot.residual[rows[known]]
        slots = self._slots(rows)
        self._personal.patches.rows[slots] = personal
        self._alike.patches.rows[slots, : told_RK.shape[1]] = told_RK

    def set_features(self, rows: Ints, features_RK: Vectors) -> None:
        """These rows (R,), each once, are as popular and as old as this: their published vectors are computed anew."""
        slots = self._slots(rows)
        self._features.patches.rows[slots] = features_RK
        self._published.patches.rows[slots] = self._snapshot.item_matrix(
            self._personal.patches.rows[slots], self._bias.patches.rows[slots], features_RK,
            self._alike.patches.rows[slots],
        )  # fmt: skip

    def _slots(self, rows: Ints) -> Ints:
        """Places of these rows among the patches, made where there are none, with what the snapshot has."""
        new = np.unique(rows[self._slot.rows[rows] < 0])
        if len(new):
            for table in self._tables:
                table.patches.extend(table.gather(new, np.full(len(new), -1)))
            self._slot.rows[new] = len(self._rows) + np.arange(len(new))
            self._rows.extend(new)
        return np.asarray(self._slot.rows[rows])
