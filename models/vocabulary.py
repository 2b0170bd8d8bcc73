"""Ids and the row each has in every table: rows are handed out in order of first mention and never used again."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray


class Vocabulary:
    """Id ↔ row. A forgotten id leaves its row blank; should it come back, it is somebody new."""

    def __init__(self) -> None:
        self.ids: list[str | None] = []
        """The id of each row, None where it was forgotten. Grows at its end only, so a prefix of it can be shared."""
        self._rows: dict[str, int] = {}

    def __len__(self) -> int:
        """Rows handed out, blank ones included."""
        return len(self.ids)

    @property
    def live(self) -> int:
        """Ids that are known."""
        return len(self._rows)

    def row(self, one: str) -> int | None:
        """The row of an id, None where it is unknown."""
        return self._rows.get(one)

    def add(self, one: str) -> int:
        """The row of an id, a new one where it is unknown."""
        row = self._rows.setdefault(one, len(self.ids))
        if row == len(self.ids):
            self.ids.append(one)
        return row

    def add_all(self, many: Iterable[str]) -> NDArray[np.int64]:
        """`add` for each, in order; int64 (k,)."""
        return np.fromiter((self.add(one) for one in many), np.int64)

    def add_blank(self) -> None:
        """Hand out a row that belongs to nobody: one that was forgotten before it was stored."""
        self.ids.append(None)

    def blank(self, row: int) -> None:
        """Forget whose row this is."""
        one = self.ids[row]
        if one is not None:
            self.ids[row] = None
            del self._rows[one]
