"""The floor: when the served version's live score stays below decayed popularity, an earlier one that does better is
served again, without anybody's doing.

The gate compares each candidate with the champion and lets small losses pass; many of them, or a stream whose habits
return, leave a champion that the gate finds no fault with. Live means prequential: on each phase's held-out events, of
which nothing has learned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from service.config_tables import PromotionConfig
from service.errors import StateError
from service.promotion import Pooled, compare

log = structlog.get_logger(__name__)

Scores = NDArray[np.float64]
Rivals = Iterable[tuple[int, Callable[[], Scores]]]
"""Earlier versions, and what computes their scores on the held-out events."""


@dataclass
class Floor:
    """What the last windows say of the version that is served, and of those it might give way to. Goes into the
    checkpoint, so that a resumed run decides the same."""

    config: PromotionConfig
    due: int | None = None
    """The version to go back to before the next phase."""
    _windows: list[Pooled] = field(default_factory=list)
    """The served version against decayed popularity, newest first."""
    _rivals: dict[int, list[Pooled]] = field(default_factory=dict)
    """Earlier versions against the served one, over the windows in which that was below the floor."""

    def look(
        self, *, live: Scores, decayed: Scores, served: Scores, users: NDArray[np.int64], rivals: Callable[[], Rivals]
    ) -> dict[str, float]:
        """One phase's held-out events, (B,) each: scores of what was served (`live`), of decayed popularity, and of
        what is served from now on. `rivals` is asked for only below the floor. Returns figures for `phases.jsonl`."""
        config = self.config
        found, self._windows = compare(
            live, decayed, users, self._windows, windows=config.windows, confidence=config.confidence
        )
        figures = {f"floor_{name}": figure for name, figure in found.items()}
        below = found.get("events", 0) >= config.min_events and found.get("high", np.inf) < -config.floor
        figures["floor_below"] = float(below)
        if not below or not config.auto_rollback:
            self._rivals, self.due = {}, None
            return figures
        self._weigh(rivals(), served, users)
        return figures

    def _weigh(self, rivals: Rivals, served: Scores, users: NDArray[np.int64]) -> None:
        config, better, known = self.config, dict[int, float](), self._rivals
        self._rivals = {}
        for version, score in rivals:
            try:
                scores = score()
            except StateError as error:
                log.warning("an earlier version cannot be compared", version=version, error=str(error))
                continue
            # Several are looked at, phase after phase: what is taken must be beyond chance.
            strict = 1 - (1 - config.confidence) / 10
            found, self._rivals[version] = compare(
                scores, served, users, known.get(version, []), windows=config.windows, confidence=strict
            )
            if found.get("events", 0) >= config.min_events and found.get("low", -np.inf) > 0:
                better[version] = found["change"]
        self.due = max(better, key=lambda version: (better[version], version)) if better else None

    def clear(self) -> None:
        """Something else is served from now on: what was seen says nothing about it."""
        self._windows, self._rivals, self.due = [], {}, None

    def state_dict(self) -> dict[str, Any]:
        """Plain containers."""
        return {"windows": self._windows, "rivals": list(map(list, self._rivals.items())), "due": self.due}

    def load(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken; an empty one is that of a checkpoint from before there was a floor."""
        self._windows = list(state.get("windows", ()))
        self._rivals = {version: list(windows) for version, windows in state.get("rivals", ())}
        self.due = state.get("due")


def windows_of(state: dict[str, Any]) -> Iterator[Pooled]:
    """Every window in a stored state, to be checked. Raises what breaks on something else."""
    yield from state.get("windows", ())
    for _, windows in state.get("rivals", ()):
        yield from windows
