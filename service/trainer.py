"""Fine-tuning and judging, without files, servers or clock: what the daemon, replay and the benchmarks' contender
share.

A phase's first events are learned at once, its last are held out: the judge uses them first, and the next phase
learns them. So each event is new exactly once, and candidates are compared on events that neither they nor the
champion have learned.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from models.beside import Beside, at_once, during
from models.frozen import Frozen
from models.heldout import DECAYED, HeldOut
from models.learner import Learner, LearnReport
from models.memory import Memory
from models.popularity import HALF_LIVES
from models.serving import Snapshot
from models.soundness import check_pooled, finite, whole
from models.spec import TrainSpec
from service.config import Config
from service.floor import Floor, windows_of
from service.model_changes import check_fits
from service.promotion import Floats, Gate, Pooled, Verdict, Window
from service.shadow import Shadow
from service.side_thread import side_thread

State = dict[str, Any]
Earlier = Callable[[], Mapping[int, Callable[[], State]]]
"""Tensors and plain containers only."""


@dataclass(kw_only=True)
class Attempt:
    """A candidate on trial: what was learned, what it was before, and what is held out to judge it."""

    report: LearnReport | None
    """None if there was nothing to learn."""
    parent: State
    fresh: range
    """Log positions of the phase."""
    learned: range
    """Log positions that were new to the learner: the last phase's held-out share and this one's first events."""
    held_out: range
    threads: int
    shadow: dict[str, float] = field(default_factory=dict)
    """Figures of the shadow, where there is one."""
    judged_on: HeldOut | None = None
    """Those of `held_out` that can be judged."""
    floor: dict[str, float] = field(default_factory=dict)
    """Figures of the champion against the floor, where there is one."""

    @property
    def metrics(self) -> dict[str, float]:
        """What learning says of itself, for `phases.jsonl`."""
        if self.report is None or not self.report.steps:
            return {**self.shadow, **self.floor}
        return {
            **self.shadow,
            **self.floor,
            "learn_loss": self.report.loss,
            "learn_new": float(self.report.new),
            "learn_replayed": float(self.report.replayed),
        }


class _Judged(NamedTuple):
    """How well weights do on what is held out."""

    snapshot: Snapshot
    whole: Floats
    learned: Floats | None
    """What was learned by gradient alone, see `HeldOut.whole_and_learned`."""


class Trainer:
    """The learner with its memory, its judge, and the champion it has to be no worse than."""

    def __init__(self, config: Config, memory: Memory, learner: Learner) -> None:
        self._config = config
        self.memory = memory
        self.learner = learner
        promotion = config.promotion
        self._gate = Gate(
            tolerance=promotion.tolerance,
            confidence=promotion.confidence,
            min_events=promotion.min_events,
            windows=promotion.windows,
        )
        self._pooled: list[Pooled] = []
        self._held_out = range(0)
        self.floor = Floor(promotion)
        self._champion: Frozen | None = None
        """Weights of the version that is served."""
        self.shadow = Shadow.beside(config, memory)
        """A second configuration that learns the same, None where there is none."""
        self._beside = side_thread()
        self._learned: Frozen | None = None
        """The learner's own weights, frozen when they were last judged or served; None where it has changed since."""
        self._like: list[Snapshot] = []
        """The champion's and the candidate's last snapshots: contents are encoded once for each of the two."""

    @classmethod
    def fresh(cls, config: Config) -> Trainer:
        """Before any event."""
        memory = Memory(config.model, config.train.actions)
        return cls(config, memory, Learner(config.model, config.train, memory, config.seed))

    @classmethod
    def restore(
        cls, config: Config, state: State, segments: Mapping[str, Iterable[bytes]], champion: State | None
    ) -> Trainer:
        """From a checkpoint's state and segments; `champion` is the state of the version that is served."""
        memory = Memory.restore(config.model, config.train.actions, segments)
        trainer = cls(config, memory, Learner(config.model, config.train, memory, config.seed))
        trainer.check(state)
        trainer.load_state_dict(state)
        if champion is not None:
            if champion is not state:
                trainer.check(champion)
            trainer._champion = Frozen(config.model, champion["learner"])
        return trainer

    def state_dict(self) -> State:
        """All that `restore` needs beside the memory's segments."""
        return {
            "learner": self.learner.state_dict(),
            "pooled": self._pooled,
            "held_out": [self._held_out.start, self._held_out.stop],
            "floor": self.floor.state_dict(),
            **({} if self.shadow is None else {"shadow": self.shadow.state_dict()}),
        }

    def check(self, state: State) -> None:
        """Whether a stored state can be one of this model over this memory. Raises `ValueError`, and whatever breaks
        on what is no state at all."""
        self.learner.check(state["learner"])
        check_pooled(state["pooled"])
        check_pooled(list(windows_of(state.get("floor", {}))))
        start, stop = (whole(one, "held_out", most=self.memory.n_events) for one in state["held_out"])
        if start > stop:
            raise ValueError("The state's held-out share ends before it begins.")
        finite(state.get("shadow", {}), "shadow")

    def load_state_dict(self, state: State) -> None:
        """Go on exactly where `state` was taken."""
        self._learned = None
        self.learner.load_state_dict(state["learner"])
        self._pooled = list(state["pooled"])
        self._held_out = range(*state["held_out"])
        self.floor.load(state.get("floor", {}))
        if self.shadow is not None:
            self.shadow.load(state.get("shadow"), state["learner"], alike=self.shadow.model == self._config.model)

    # 3. Learn

    def learn(self, fresh: range, *, replay_ratio: float, threads: int) -> Attempt:
        """Fine-tunes on what is new; `fresh` are the phase's log positions, in order of time."""
        held_out = range(self._cut(fresh), fresh.stop)
        learned = range(self._held_out.start if len(self._held_out) else fresh.start, held_out.start)
        attempt = Attempt(
            report=None,
            parent=self.learner.state_dict(),
            fresh=fresh,
            learned=learned,
            held_out=held_out,
            threads=threads,
        )
        self._learned = None
        if len(fresh):
            with torch_threads(threads):
                attempt.report = self.learner.learn(
                    np.asarray(learned), replay_ratio=replay_ratio, beside=self._beside
                )  # fmt: skip
                if self.shadow is not None:
                    self.shadow.learn(learned, replay_ratio=replay_ratio, beside=self._beside)
            self._held_out = held_out
        return attempt

    def _cut(self, fresh: range) -> int:
        """Where the held-out share begins: a change of time, so that no basket is learned in half."""
        if not len(fresh):
            return fresh.stop
        time = self.memory.log.view(shared_tail=True).time
        cut = fresh.stop - int(len(fresh) * self._config.evaluate.holdout)
        while fresh.start < cut < fresh.stop and time[cut] == time[cut - 1]:
            cut += 1
        return cut

    # 4. Judge

    def judge(self, attempt: Attempt, *, hold: bool = False, earlier: Earlier = dict) -> Verdict | None:
        """Compares candidate and champion; a refusal puts the parent's weights back. None if nothing was new.

        `earlier` gives versions that might be served again, and what loads them: asked where the champion's live score
        is below the floor.
        """
        if attempt.report is None:
            return None
        window = self._window(attempt)
        verdict = self._gate.judge(window, self._pooled, hold=hold)
        self._pooled = list(verdict.pooled)
        self._look_at_floor(attempt, window, verdict, dict if hold else earlier)
        if verdict.decision == "refused":
            self._take_back(attempt, poison=verdict.slug == "not_finite")
        return verdict

    def _look_at_floor(self, attempt: Attempt, window: Window, verdict: Verdict, earlier: Earlier) -> None:
        if window.champion is None or window.users is None or attempt.judged_on is None:
            return
        held_out, upto = attempt.judged_on, attempt.held_out.start

        def score(load: Callable[[], State]) -> Floats:
            state = load()
            with torch_threads(attempt.threads):
                snapshot = Snapshot.build(self._config.model, state["learner"], self.memory, version=0, upto=upto)
                return held_out.by_model(snapshot)

        attempt.floor = self.floor.look(
            live=window.champion,
            decayed=window.decayed_popularity,
            served=window.candidate if verdict.decision == "promoted" else window.champion,
            users=window.users,
            rivals=lambda: [(version, partial(score, load)) for version, load in earlier().items()],
        )

    def _take_back(self, attempt: Attempt, *, poison: bool) -> None:
        self._learned = None
        self.learner.load_state_dict(attempt.parent)
        # The events happened all the same: popularity counts them, and replay may draw them unless they are poison.
        if poison:
            self.memory.quarantine(attempt.learned)
        with torch_threads(attempt.threads):
            self.learner.pass_over(attempt.learned.stop, values=not poison)
            if poison and self.shadow is not None:
                self.shadow.take_back(poison=True)

    def _window(self, attempt: Attempt) -> Window:
        assert attempt.report is not None
        if not attempt.report.finite:
            nothing = np.empty(0)
            return Window(
                candidate=nothing, champion=None, popularity=nothing, decayed_popularity=nothing, weights_finite=False
            )
        with torch_threads(attempt.threads):
            upto = attempt.held_out.start
            like = self._like[0] if self._like else None

            def snapshot(frozen: Frozen, beside: Beside = at_once) -> Snapshot:
                return Snapshot(frozen, self.memory, version=0, upto=upto, like=like, beside=beside)

            served = self._champion
            with during(self._beside, lambda: None if served is None else snapshot(served)) as served_snapshot:
                self._learned = None
                frozen = self._frozen()
                positions = np.asarray(attempt.held_out, np.int64)
                held_out = HeldOut.of(self.memory.log.view(shared_tail=True), self._config.model.objective, positions)
                attempt.judged_on = held_out
                candidate, champion = snapshot(frozen, self._beside), served_snapshot()

            def judged(snapshot: Snapshot) -> _Judged:
                return _Judged(snapshot, *held_out.whole_and_learned(snapshot))

            with during(self._beside, lambda: None if champion is None else judged(champion)) as served_judged:
                mine = judged(candidate)
                popularity, decayed = (
                    held_out.by_popularity(candidate, half_life) for half_life in (len(HALF_LIVES) - 1, DECAYED)
                )
            theirs = served_judged()
            self._like = [*([theirs.snapshot] if theirs else self._like[:1]), mine.snapshot]
            scores = {"candidate": mine.whole, "champion": None if theirs is None else theirs.whole}
            if self.shadow is not None:
                attempt.shadow = self.shadow.compare(held_out, scores, upto)
            learned = None
            if theirs is not None and mine.learned is not None and theirs.learned is not None:
                learned = mine.learned, theirs.learned
            return Window(
                candidate=mine.whole,
                champion=scores["champion"],
                popularity=popularity,
                decayed_popularity=decayed,
                learned=learned,
                users=held_out.users(mine.snapshot),
            )

    # 6. Load back

    def snapshot(self, *, version: int, state: State | None = None) -> Snapshot:
        """A serving snapshot over today's memory, of the learner's own weights or of a saved `state`."""
        spec, memory = self._config.model, self.memory
        if state is not None:  # what was saved has to stand by itself
            served = Snapshot.build(spec, state["learner"], memory, version=version)
            served.prepare()
            return served
        like = self._like[-1] if self._like else None
        snapshot = Snapshot(self._frozen(), memory, version=version, like=like)
        self._like = [snapshot]
        return snapshot

    def _frozen(self) -> Frozen:
        """The learner's weights as they are now."""
        if self._learned is None:
            like = self._like[-1].frozen if self._like else None
            self._learned = Frozen(self._config.model, self.learner.weights(), like)
        return self._learned

    def agrees_with(self, snapshot: Snapshot) -> bool:
        """Whether a snapshot, loaded back from disk, scores as the weights in memory do."""
        mine = self.snapshot(version=snapshot.version)
        return bool(np.array_equal(mine.check_scores(), snapshot.check_scores()))

    def crown(self, served: Snapshot) -> None:
        """What is served from now on, which the next candidates have to be no worse than."""
        self._champion = served.frozen

    def with_shadow(self) -> State:
        """Today's state with the shadow's weights, optimizer and scales in place of the learner's own; the shadow goes
        on beside it, compared anew. Only for a shadow of the same `[model]`."""
        assert self.shadow is not None
        state = self.state_dict()
        shadow = {**state["shadow"], "windows": {}}
        return {**state, "learner": self.shadow.learner.state_dict(), "shadow": shadow, "floor": {}}

    def check_fits(self, spec: Mapping[str, Any]) -> None:
        """Raises StateError if another checkpoint's weights have other shapes than these."""
        check_fits(self._config, spec)

    def with_weights_of(self, state: State) -> State:
        """Today's state with the weights, optimizer and scales of an earlier one, exactly as they were.

        Items that came since, popularity and histories join when a snapshot is built over today's memory, or when
        learning goes on from here.
        """
        return {**self.state_dict(), "learner": state["learner"], "floor": {}}


def training_threads(train: TrainSpec) -> int:
    """Threads for torch while learning: as configured, or half of the cores, for part of a phase runs beside the rest
    in as many."""
    return train.threads or max(1, (os.cpu_count() or 2) // 2)


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Runs torch with so many threads; sums depend on it, so a phase's intent records it."""
    before = torch.get_num_threads()
    if before != threads:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        if before != threads:
            torch.set_num_threads(before)
