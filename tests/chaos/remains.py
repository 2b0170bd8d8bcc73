"""What a daemon has left on disk, as somebody finds it who was not there before; each thing is read once."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from models.memory import Memory
from models.serving import Snapshot
from service.checkpoint_files import Checkpoint
from service.checkpoints import CheckpointStore
from service.config import Config
from service.phase_log import PhaseLine
from tests.chaos.witness import Seen, testimony
from tests.daemon_process import Place

LEARNED = "learned.jsonl"
"""What the witness writes, beside the state directory."""


class Remains:
    """Of one place, while no daemon runs there."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.store = CheckpointStore(place.state_dir, keep_versions=2)
        self._checkpoints: dict[int, Checkpoint] = {}
        self._memories: dict[int, Memory] = {}
        self._snapshots: dict[tuple[int, int], Snapshot] = {}

    @cached_property
    def config(self) -> Config:
        return self.place.config

    @cached_property
    def latest(self) -> int | None:
        """The version that the next start goes on from."""
        return self.store.latest()

    @cached_property
    def champion(self) -> int | None:
        return self.store.champion()

    @cached_property
    def lines(self) -> list[PhaseLine]:
        """Every phase that is over: as `phases.jsonl` says, or as the checkpoint does of one that a crash kept from
        it."""
        lines = {line.phase: line for line in [*self.place.lines(), *self.store.phase_lines()]}
        return [lines[phase] for phase in sorted(lines)]

    @cached_property
    def testimony(self) -> list[Seen]:
        return testimony(self.place.directory / LEARNED)

    def checkpoint(self, version: int) -> Checkpoint:
        """One version, verified."""
        if version not in self._checkpoints:
            self._checkpoints[version] = self.store.load(version)
        return self._checkpoints[version]

    def segments(self, version: int) -> Mapping[str, Any]:
        return self.checkpoint(version).segments

    def memory(self, version: int) -> Memory:
        """What a version remembers."""
        if version not in self._memories:
            segments: dict[str, Any] = {k: v for k, v in self.segments(version).items() if k != "event_ids"}
            self._memories[version] = Memory.restore(self.config.model, self.config.train.actions, segments)
        return self._memories[version]

    def snapshot(self, version: int, *, memory_of: int | None = None) -> Snapshot:
        """What a version serves, over its own memory or over that of a later one."""
        key = version, memory_of or version
        if key not in self._snapshots:
            weights = self.checkpoint(version).state["trainer"]["learner"]
            self._snapshots[key] = Snapshot.build(
                self.config.model, weights, self.memory(memory_of or version), version=version
            )
        return self._snapshots[key]
