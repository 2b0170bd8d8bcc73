# ruff: noqa: N815 (shape suffixes)
"""Log positions as training examples: what was done, by whom, after what.

Shape suffixes: B examples, L places of a history.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.event_log import LogView
from models.histories import Histories
from models.past import PAST
from models.popularity import Popularity

Ints = NDArray[np.int64]


@dataclass
class Examples:
    """Some events, each with its user's history of strictly earlier times; the new ones first."""

    position_B: Ints
    user_B: Ints
    item_B: Ints
    weight_B: NDArray[np.float32]
    value_B: NDArray[np.float32]
    time_B: NDArray[np.float64]
    histories: Histories
    cold_B: NDArray[np.bool_]
    """Whether nobody had touched the item by then: its residual and bias did not exist."""
    fresh: int
    """How many of them are new; the others are replayed."""

    def __len__(self) -> int:
        return len(self.position_B)

    @classmethod
    def build(
        cls,
        log: LogView,
        popularity: Popularity,
        fresh_B: Ints,
        replayed_B: Ints,
        length: int,
        known: int = PAST,
    ) -> Examples:
        """Examples of these log positions, with histories of so many events."""
        position_B = np.concatenate((fresh_B, replayed_B))
        item_B = log.item[position_B].astype(np.int64)
        first_B = popularity.first[item_B]
        time_B = log.time[position_B]
        return cls(
            position_B=position_B,
            user_B=log.user[position_B].astype(np.int64),
            item_B=item_B,
            weight_B=log.weight[position_B],
            value_B=log.value[position_B],
            time_B=time_B,
            histories=Histories.from_log(
                log, log.before[position_B], length, until_B=time_B, now_B=position_B, known=known
            ),
            cold_B=(first_B < 0) | (first_B >= position_B),
            fresh=len(fresh_B),
        )

    @property
    def seen_BP(self) -> Ints:  # noqa: N802 (shape suffix)
        """Items that the user had had by then, as far back as is known; -1 for none."""
        return self.histories.past_BP

    def where(self, kept_B: NDArray[np.bool_]) -> Examples:
        """Those that the mask keeps."""
        columns = {name: value[kept_B] for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        fresh = int(kept_B[: self.fresh].sum())
        return Examples(**columns, histories=self.histories.rows(kept_B), fresh=fresh)
