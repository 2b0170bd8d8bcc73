"""Feature vectors of items or users: one append-only table a modality, and for each of them which row is the newest."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from models.growing import GrowingArray

Vectors = NDArray[np.float32]


class FeatureTable:
    """Vectors (D,), or up to F frame vectors (F, D), of each modality. A new vector is a new row, never a changed
    one."""

    def __init__(self, dims: Mapping[str, int], frames: Mapping[str, int] | None = None) -> None:
        self.dims = dict(dims)
        self.frames = dict(frames or {})
        self.dropped = dict.fromkeys(self.dims, 0)
        """How many vectors of each came before the first that is here, and were nobody's any more."""
        self._vectors: dict[str, GrowingArray] = {}
        self._lengths: dict[str, GrowingArray] = {}
        self._newest: dict[str, GrowingArray] = {}
        for name, dim in self.dims.items():
            shape = (self.frames[name], dim) if name in self.frames else (dim,)
            self._vectors[name] = GrowingArray(np.float32, shape)
            self._lengths[name] = GrowingArray(np.int32)
            self._newest[name] = GrowingArray(np.int64)

    def shape(self, name: str) -> tuple[int, ...]:
        """(D,), or (F, D) where the modality has frames."""
        return (self.frames[name], self.dims[name]) if name in self.frames else (self.dims[name],)

    def put(self, row: int, features: Mapping[str, Vectors]) -> None:
        """Replace all features of `row`: what is not in `features` is missing from now on.

        Unknown names are ignored; frames beyond the most kept are dropped evenly. Raises `ValueError` on a wrong
        length.
        """
        for name in self.dims:
            self._newest[name].grow(row + 1, -1)
            self._newest[name].rows[row] = self._add(name, row, features[name]) if name in features else -1

    def _add(self, name: str, row: int, vector: Vectors) -> int:
        shape = self.shape(name)
        vector = np.asarray(vector, np.float32)
        length = 1
        if name in self.frames:
            vector = np.atleast_2d(vector)
            if len(vector) > shape[0]:
                vector = vector[np.linspace(0, len(vector) - 1, shape[0]).round().astype(int)]
            length = len(vector)
            vector = np.concatenate((vector, np.zeros((shape[0] - length, *vector.shape[1:]), np.float32)))
        if vector.shape != shape:
            raise ValueError(f"A vector of {name!r} has shape {vector.shape}, not {shape}; see [model.modalities].")
        at = self._at(name, row)
        if at >= 0 and length == self._lengths[name].rows[at] and np.array_equal(vector, self._vectors[name].rows[at]):
            return at  # told again: catalogues are often sent whole
        self._vectors[name].extend(vector[None])
        self._lengths[name].extend([length])
        return len(self._vectors[name]) - 1

    def get(self, row: int) -> dict[str, Vectors]:
        """The newest features of `row`, without padding."""
        return {
            name: self._vectors[name].rows[at][: self._lengths[name].rows[at]] if name in self.frames
            else self._vectors[name].rows[at]
            for name in self.dims
            if (at := self._at(name, row)) >= 0
        }  # fmt: skip

    def there(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which rows have any features, (B,)."""
        found = np.zeros(len(rows), bool)
        for name in self.dims:
            found |= self._known(self, name, rows) >= 0
        return found

    def gather(self, name: str, rows: NDArray[np.int64]) -> tuple[Vectors, NDArray[np.int32]]:
        """Vectors (B, D) or (B, F, D) of one modality, zeros where missing; and lengths (B,), 0 where missing."""
        newest = self._newest[name].rows
        known = (rows >= 0) & (rows < len(newest))
        at = np.full(len(rows), -1, np.int64)
        at[known] = newest[rows[known]]
        vectors, lengths = self._vectors[name].rows, self._lengths[name].rows
        if not len(vectors):
            return np.zeros((len(rows), *self.shape(name)), np.float32), np.zeros(len(rows), np.int32)
        # a missing row reads the last one first: one copy of all is the most that memory can move
        out, missing = vectors[at], at < 0
        out[missing] = 0
        return out, np.where(missing, 0, lengths[at])

    def since(self, name: str, seen: int) -> tuple[Vectors, NDArray[np.int32]]:
        """Vectors of one modality, and how many each row of them is, in the order in which they came, without the first
        `seen` that ever came; vectors that were replaced later are among them."""
        lengths, seen = self._lengths[name].rows, seen - self.dropped[name]
        start = int(np.searchsorted(np.concatenate(([0], np.cumsum(lengths))), seen))
        return self._vectors[name].rows[start:], lengths[start:]

    def superseded(self, name: str) -> int:
        """How many of the vectors that ever came are nobody's any more."""
        newest, lengths = self._newest[name].rows, self._lengths[name].rows
        return self.dropped[name] + int(lengths.sum()) - int(lengths[newest[newest >= 0]].sum())

    def unchanged(self, earlier: FeatureTable, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which rows have the same features as in an earlier view of this table, (B,)."""
        same = np.ones(len(rows), bool)
        for name in self.dims:
            newest = [self._known(table, name, rows) for table in (self, earlier)]
            same &= newest[0] == newest[1]
        return same

    @staticmethod
    def _known(table: FeatureTable, name: str, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        newest = table._newest[name].rows
        inside = rows < len(newest)
        return np.where(inside, newest[np.where(inside, rows, 0)], -1) if len(newest) else np.full(len(rows), -1)

    def view(self) -> FeatureTable:
        """The features as of now: vectors shared, which of them is whose copied."""
        view = FeatureTable(self.dims, self.frames)
        view._vectors = {name: table.view() for name, table in self._vectors.items()}
        view._lengths = {name: table.view() for name, table in self._lengths.items()}
        for name, newest in self._newest.items():
            view._newest[name].extend(newest.rows)
        return view

    def blank(self, row: int) -> None:
        """Forget the features of `row`, and overwrite what was stored."""
        for name in self.dims:
            at = self._at(name, row)
            if at >= 0:
                self._vectors[name].rows[at] = 0.0
                self._newest[name].rows[row] = -1

    def _at(self, name: str, row: int) -> int:
        newest = self._newest[name].rows
        return int(newest[row]) if row < len(newest) else -1
