"""The shadow: a second configuration that learns on the same stream and is never served, unless by hand.

It shares the memory with the main learner and sees the same events as new, in the same phase; weights, optimizer,
random numbers and figures are its own and part of the checkpoint, so a crash repeats its phase as it does the main
learner's. No gate refuses it: its figures say what it is worth. Only what is not finite is taken back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.beside import Beside
from models.heldout import HeldOut
from models.learner import Learner
from models.memory import Memory
from models.serving import Snapshot
from service.config import Config, shadow_of
from service.model_changes import plain_spec
from service.promotion import Pooled, compare

State = dict[str, Any]
"""Tensors and plain containers only."""


class Shadow:
    """A learner beside the main one, and how it has done against the candidates and what was served."""

    def __init__(self, config: Config, memory: Memory, ratio: float) -> None:
        """`config` is the shadow's own; `ratio` the main learner's configured replay ratio."""
        self._config, self._memory, self._ratio = config, memory, ratio
        self.model = config.model
        self.learner = Learner(config.model, config.train, memory, config.seed)
        self._windows: dict[str, list[Pooled]] = {}
        self._parent: State = {}
        self._learned = range(0)
        self._finite = True

    @classmethod
    def beside(cls, config: Config, memory: Memory) -> Shadow | None:
        """The one that `[shadow]` describes, before any event; None where there is none."""
        own = shadow_of(config)
        return None if own is None else cls(own, memory, config.train.replay_ratio)

    def state_dict(self) -> State:
        """All that `load` needs."""
        return {
            "model": plain_spec(self.model),
            "learner": self.learner.state_dict(),
            "windows": {name: list(windows) for name, windows in self._windows.items()},
        }

    def load(self, state: State | None, main: State, *, alike: bool) -> None:
        """Go on where `state` was taken.

        Without one, or with that of another `[model]`, it begins: with the main learner's state, where the two are
        `alike` in `[model]`, else with nothing learned.
        """
        if state is not None and _same(state["model"], plain_spec(self.model)):
            self.learner.load_state_dict(state["learner"])
            self._windows = {name: list(windows) for name, windows in state["windows"].items()}
            return
        self.learner = Learner(self.model, self._config.train, self._memory, self._config.seed)
        self._windows = {}
        if alike:
            self.learner.load_state_dict(main)

    def learn(self, learned: range, *, replay_ratio: float, beside: Beside) -> None:
        """Learns what is new to the main learner in this phase, which replays `replay_ratio` of it.

        Where that is less than configured, under load, so is the shadow's own in proportion.
        """
        self._parent, self._learned = self.learner.state_dict(), learned
        own = self._config.train.replay_ratio * (replay_ratio / self._ratio if self._ratio else 1.0)
        report = self.learner.learn(np.asarray(learned, np.int64), replay_ratio=own, beside=beside)
        self._finite = report.finite

    def compare(
        self, held_out: HeldOut, others: Mapping[str, NDArray[np.float64] | None], upto: int
    ) -> dict[str, float]:
        """Its figures on the held-out events, `shadow_score` and by name of the `others` (None: there is none yet), how
        it does against theirs on the same; takes it back where it is broken."""
        if not self._finite:
            self.take_back(poison=False)
            return {"shadow_broken": 1.0}
        snapshot = Snapshot.build(self.model, self.learner.weights(), self._memory, version=0, upto=upto)
        own, users = held_out.by_model(snapshot), held_out.users(snapshot)
        mean = float(own.mean()) if len(own) else np.nan
        figures = {"shadow_score": mean} if np.isfinite(mean) else {}
        promotion = self._config.promotion
        for name, scores in others.items():
            if scores is None:
                continue
            found, self._windows[name] = compare(
                own, scores, users, self._windows.get(name, []),
                windows=promotion.windows, confidence=promotion.confidence,
            )  # fmt: skip
            figures |= {f"shadow_{name}_{what}": figure for what, figure in found.items()}
        return figures

    def take_back(self, *, poison: bool) -> None:
        """Its weights as before the phase; the events happened, though the values of `poison` do not count."""
        self.learner.load_state_dict(self._parent)
        self.learner.pass_over(self._learned.stop, values=not poison)


def _same(saved: State, wanted: State) -> bool:
    """Whether two `[model]` are the same, the order of modalities included: weights go by it."""
    tables = [name for name, value in wanted.items() if isinstance(value, dict)]
    return saved == wanted and all(list(saved[name]) == list(wanted[name]) for name in tables)
