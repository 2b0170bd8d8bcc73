"""A numpy array that grows by appending, so that what was read from it once stays as it was."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray


class GrowingArray:
    """Rows of one shape and type, appended in amortised constant time.

    `rows` is a view of the rows so far. Appending never touches it: it writes behind it, or into a larger copy. So a
    view taken for a snapshot costs nothing and stays valid whatever is appended later.
    """

    def __init__(self, dtype: DTypeLike, shape: tuple[int, ...] = ()) -> None:
        self._buffer: NDArray[Any] = np.zeros((0, *shape), dtype)
        self._length = 0

    def __len__(self) -> int:
        return self._length

    @property
    def rows(self) -> NDArray[Any]:
        """The rows so far, (n, *shape); shared with the array, not copied."""
        return self._buffer[: self._length]

    def view(self) -> GrowingArray:
        """The array as of now, sharing its rows. Only the original may grow afterwards."""
        view = copy.copy(self)
        view._buffer = self.rows
        return view

    def extend(self, rows: ArrayLike) -> None:
        """Append rows (k, *shape)."""
        rows = np.asarray(rows, self._buffer.dtype)
        start = self._length
        self._reserve(start + len(rows))
        self._buffer[start : start + len(rows)] = rows
        self._length = start + len(rows)

    def grow(self, length: int, fill: float) -> None:
        """Append rows of `fill` until there are `length`; nothing where there are as many already."""
        if length > self._length:
            self._reserve(length)
            self._buffer[self._length : length] = fill
            self._length = length

    def _reserve(self, length: int) -> None:
        if length > len(self._buffer):
            larger = np.zeros((max(length, 2 * len(self._buffer), 16), *self._buffer.shape[1:]), self._buffer.dtype)
            larger[: self._length] = self.rows
            self._buffer = larger
