"""Whatever is saved, refused, rolled back, pruned or damaged, and wherever it crashes: `CHAMPION` always loads."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import hypothesis.strategies as st
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from structlog.testing import capture_logs

from service.checkpoints import CheckpointStore
from service.phase_log import Decision
from tests import checkpoint_samples as samples
from tests.chaos.recorded_disk import Recording


@dataclass(frozen=True)
class Saved:
    """What a version must give when it is loaded."""

    steps: int
    log: bytes
    promoted: bool
    resumable: bool


@dataclass(frozen=True)
class Crash:
    """Where an operation is cut off, as a share of its writes, and what of the unsynced is lost."""

    at: float
    seed: int

    def remains(self, recording: Recording, target: Path) -> Path:
        chance = random.Random(self.seed)
        disk = recording.after(round(self.at * len(recording.operations)))
        coin = [lambda: True, lambda: False, lambda: chance.random() < 0.5][self.seed % 3]
        return disk.put(target, names=coin, contents=coin)


crashes = st.none() | st.builds(Crash, at=st.floats(0, 1), seed=st.integers(0, 999))


class CheckpointMachine(RuleBasedStateMachine):
    """Versions on a disk that may crash, beside a model of what they must hold."""

    def __init__(self) -> None:
        super().__init__()
        self._parent = Path(tempfile.mkdtemp(prefix="checkpoints-"))
        self._fresh = 0
        # Warnings of fallbacks are not shown, and nobody waits for the real disk: the recording knows what was synced.
        self._setting = contextlib.ExitStack()
        self._setting.enter_context(capture_logs())
        self._setting.enter_context(mock.patch.object(os, "fsync", return_value=None))
        self.saved: dict[int, Saved] = {}
        self.latest: int | None = None
        self.champion: int | None = None
        self.allotted = 0
        root = self._parent / "state"
        root.mkdir()
        self.store = CheckpointStore(root, keep_versions=2)

    def teardown(self) -> None:
        self._setting.close()
        shutil.rmtree(self._parent)

    def perform(
        self, operation: Callable[[], object], crash: Crash | None, *, latest: int | None, champion: int | None
    ) -> None:
        """Run an operation that leads to `latest` and `champion`; after a crash each may still be the one before."""
        root = self.store.layout.root
        if crash is None:
            operation()
            self.latest, self.champion = latest, champion
            return
        with Recording(root).running() as recording:
            operation()
        self._fresh += 1
        crash.remains(recording, self._parent / str(self._fresh))
        shutil.rmtree(root)
        (self._parent / str(self._fresh)).rename(root)
        self.restart()
        before = self.latest, self.champion
        self.latest, self.champion = self.store.latest(), self.store.champion()
        assert self.latest in (before[0], latest)
        # Promoted and saved, but no champion named yet: the first one is taken without having been named.
        assert self.champion in (before[1], champion) or (before[1] is None and self.champion == latest)

    def restart(self) -> None:
        self.store = CheckpointStore(self.store.layout.root, keep_versions=2)
        self.store.sweep()

    def new_version(self) -> int:
        version = self.store.allot()
        assert version > self.allotted
        self.allotted = version
        return version

    @initialize()
    def first(self) -> None:
        self.phase("promoted", None)

    @rule(decision=st.sampled_from(["promoted", "refused", "held"]), crash=crashes)
    def phase(self, decision: Decision, crash: Crash | None) -> None:
        """A phase learned, judged and saved."""
        version = self.new_version()
        before = self.saved[self.latest].log if self.latest else b""
        self._save(version, decision, crash, before + samples.chunk(version), segments={"log": samples.chunk(version)})

    @rule(crash=crashes)
    def phase_with_deletions(self, crash: Crash | None) -> None:
        """A phase whose deletions write the log anew."""
        version = self.new_version()
        self._save(version, "promoted", crash, b"rewritten;", segments={}, rewrite={"log": b"rewritten;"})

    def _save(self, version: int, decision: Decision, crash: Crash | None, log: bytes, **content: Any) -> None:
        promoted = decision == "promoted"
        self.saved[version] = Saved(version, log, promoted, resumable=True)

        def operation() -> None:
            samples.save(self.store, version, parent=self.latest, decision=decision, **content)
            if promoted:
                self.store.set_champion(version)

        self.perform(operation, crash, latest=version, champion=version if promoted else self.champion)

    @rule(data=st.data(), crash=crashes)
    def roll_back(self, data: st.DataObject, crash: Crash | None) -> None:
        """An earlier version's weights, served again over today's log as a new version."""
        target = data.draw(st.sampled_from([number for number in self.store.numbers() if number in self.saved]))
        version = self.new_version()
        assert self.latest is not None
        steps = self.saved[target].steps
        self.saved[version] = Saved(steps, self.saved[self.latest].log, promoted=True, resumable=False)
        facts = samples.facts(version, weights_of=target, rolled_back=True, line=None)

        def operation() -> None:
            content: dict[str, Any] = {"facts": facts, "state": samples.state(steps), "segments": {}}
            samples.save(self.store, version, parent=self.latest, resumable=False, **content)
            self.store.set_champion(version)

        self.perform(operation, crash, latest=self.latest, champion=version)

    @rule(crash=crashes)
    def prune(self, crash: Crash | None) -> None:
        self.perform(self.store.prune, crash, latest=self.latest, champion=self.champion)

    @rule()
    def kill_and_start(self) -> None:
        self.restart()

    @rule(pointer=st.sampled_from(["LATEST", "NEXT"]))
    def lose_a_small_file(self, pointer: str) -> None:
        """Empty `LATEST` or `NEXT`: both can be told from the versions themselves."""
        (self.store.layout.root / pointer).write_bytes(b"")
        self.allotted = max(self.store.numbers())
        self.restart()

    @precondition(lambda self: self.spare() is not None)
    @rule(data=st.data())
    def damage_the_latest(self, data: st.DataObject) -> None:
        """Flip a bit in what learning would resume from."""
        spare = self.spare()
        assert self.latest is not None
        name = data.draw(st.sampled_from(["weights.pt", "manifest.json"]))
        path = self.store.layout.checkpoint(self.latest) / name
        content = bytearray(path.read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(content)
        del self.saved[self.latest]
        self.latest = spare
        self.restart()

    def spare(self) -> int | None:
        """What learning falls back to when the latest is lost, if that would leave the champion alone."""
        whole = [
            version
            for version in self.store.numbers()
            if version in self.saved and self.saved[version].resumable and version != self.latest
        ]
        return max(whole) if whole and self.latest != self.champion else None

    @invariant()
    def champion_and_latest_load(self) -> None:
        for version, expected in ((self.store.latest(), self.latest), (self.store.champion(), self.champion)):
            assert version == expected
            if version is not None:
                saved = self.saved[version]
                assert samples.content(self.store, version) == (saved.steps, saved.log)

    @invariant()
    def every_whole_version_loads(self) -> None:
        for version in self.store.numbers():
            if version in self.saved:
                saved = self.saved[version]
                assert samples.content(self.store, version) == (saved.steps, saved.log)


TestCheckpointMachine = CheckpointMachine.TestCase
TestCheckpointMachine.settings = settings(
    max_examples=30,
    stateful_step_count=15,
    phases=(Phase.reuse, Phase.generate),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
