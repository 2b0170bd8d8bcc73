"""A crash or power cut at any moment of a save leaves the old checkpoint or the new one, and nothing between."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from service.checkpoints import CheckpointStore
from service.errors import HeadwaterError
from service.intent import Intent, IntentFile
from service.phase_log import PhaseLog
from service.state_dir import StateDirectory
from service.tombstones import Tombstone, Tombstones
from tests import checkpoint_samples as samples
from tests.chaos.recorded_disk import Recording

YES: Callable[[], bool] = lambda: True  # noqa: E731
NO: Callable[[], bool] = lambda: False  # noqa: E731
CRASHES = {"killed": (YES, YES), "power cut": (NO, NO), "names before contents": (YES, NO)}
"""Which unsynced names and contents survive."""
Crash = Callable[[], tuple[Callable[[], bool], Callable[[], bool]]]
REORDERED = 12
"""So often, after each write, a part of what is unsynced survives, drawn anew: later writes without earlier ones."""


def kept_by(seed: int) -> tuple[Callable[[], bool], Callable[[], bool]]:
    """Which unsynced names and contents survive a disk that writes in an order of its own."""
    draw = random.Random(seed)
    return (lambda: draw.random() < 0.5, lambda: draw.random() < 0.5)


def remains(recording: Recording, target: Path, *, reordered: int = REORDERED) -> Iterator[Path]:
    """Different states of the disk that a crash during the recording could leave."""
    return (path for _, path in remains_after(recording, target, reordered=reordered))


def remains_after(recording: Recording, target: Path, *, reordered: int = REORDERED) -> Iterator[tuple[int, Path]]:
    """The same, each with the number of writes before the crash: every prefix of them, with what is unsynced in it
    whole, dropped, or dropped in parts."""
    seen = set()
    fresh = itertools.count()
    for count in range(len(recording.operations) + 1):
        disk = recording.after(count)
        crashes: list[Crash] = [lambda crash=crash: crash for crash in CRASHES.values()]  # type: ignore[misc]
        crashes += [partial(kept_by, 1_000 * count + number) for number in range(reordered)]
        for crash in crashes:
            names, contents = crash()
            image = disk.image(names=names, contents=contents)
            if image not in seen:
                seen.add(image)
                names, contents = crash()
                yield count, disk.put(target / str(next(fresh)), names=names, contents=contents)


def finished(recording: Recording, target: Path) -> Iterator[Path]:
    """What a crash after the whole recording could leave: there everything that was acknowledged must be."""
    disk = recording.after(len(recording.operations))
    for name, (names, contents) in CRASHES.items():
        yield disk.put(target / f"finished, {name}", names=names, contents=contents)


def reopened(root: Path) -> CheckpointStore:
    store = CheckpointStore(root, keep_versions=1)
    store.sweep()
    return store


def log_until(*versions: int) -> bytes:
    return b"".join(map(samples.chunk, versions))


@pytest.fixture(autouse=True)
def _no_waiting_for_the_real_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "remains"
    path.mkdir()
    return path


def saving_and_promoting(root: Path) -> tuple[Recording, int]:
    """What a phase writes that is promoted: a number, a version, and that it is the champion. Also after how many
    writes the number was given out."""
    store = samples.history(root, 2)
    with Recording(root).running() as recording:
        version = store.allot()
        given_out = len(recording.operations)
        samples.save(store, version, parent=2)
        store.set_champion(version)
    return recording, given_out


def faults_after_saving(path: Path, *, given_out: bool) -> tuple[tuple[int | None, int | None], list[str]]:
    """What LATEST and CHAMPION name after a crash, and what is wrong with it; `given_out`: number 3 was, before."""
    with capture_logs() as warnings:
        after = reopened(path)
        latest, champion = after.latest(), after.champion()
        following = after.allot()
    # A crash is no damage: nothing had to be replaced by something older.
    found = [str(warning) for warning in warnings]
    if latest not in (2, 3) or champion not in (2, 3):
        return (latest, champion), [*found, f"LATEST {latest}, CHAMPION {champion}"]
    for version in {latest, champion}:
        if samples.content(after, version) != (version, log_until(*range(1, version + 1))):
            found.append(f"version {version} has another content")
    if following <= (3 if given_out else latest):
        found.append(f"version {following} was allotted twice")
    samples.save(after, following, parent=latest)
    if samples.content(after, following)[1] != log_until(*range(1, latest + 1), following):
        found.append(f"what follows version {latest} has another content")
    return (latest, champion), found


def test_a_crash_while_saving_and_promoting_leaves_old_or_new(tmp_path: Path, target: Path) -> None:
    recording, given_out = saving_and_promoting(tmp_path / "state")
    found = set()
    for count, path in remains_after(recording, target):
        named, faults = faults_after_saving(path, given_out=count >= given_out)
        assert faults == []
        found.add(named)
    assert found == {(2, 2), (3, 2), (3, 3)}
    for path in finished(recording, target):
        after = CheckpointStore(path, keep_versions=1)
        assert (after.latest(), after.champion()) == (3, 3)
        assert samples.content(after, 3) == (3, log_until(1, 2, 3))


SPARE = {8: "LATEST's directory: should its new name be lost, the next start finds the version itself, which is whole"}
"""The one fsync that could go."""


def test_a_missing_fsync_is_caught(tmp_path: Path, target: Path) -> None:
    """Each fsync of a save and promotion is left out in turn: but for one, some crash then does harm."""
    places = [at for at, one in enumerate(saving_and_promoting(tmp_path / "0")[0].operations) if one.kind == "fsync"]
    missed = set()
    for number, at in enumerate(places):
        recording, given_out = saving_and_promoting(tmp_path / f"without-{number}")
        (target / str(number)).mkdir()
        assert recording.operations.pop(at).kind == "fsync"
        given_out -= at < given_out
        folder = target / str(number)
        crashes = remains_after(recording, folder, reordered=0)
        caught = any(_harm(path, given_out=count >= given_out) for count, path in crashes)
        if not (caught or any(_harm(path, given_out=True, done=True) for path in finished(recording, folder))):
            missed.add(number)
    assert len(places) == 11
    assert missed == set(SPARE)


def _harm(path: Path, *, given_out: bool, done: bool = False) -> bool:
    try:
        named, faults = faults_after_saving(path, given_out=given_out)
    except HeadwaterError:
        return True
    return bool(faults) or (done and named != (3, 3))


def test_a_crash_during_the_first_save_leaves_nothing_or_the_first(tmp_path: Path, target: Path) -> None:
    root = tmp_path / "state"
    root.mkdir()
    store = CheckpointStore(root, keep_versions=3)
    with Recording(root).running() as recording:
        samples.save(store, store.allot(), parent=None)
    for path in remains(recording, target):
        after = reopened(path)
        latest = after.latest()
        assert latest in (None, 1)
        if latest:
            assert samples.content(after, latest) == (1, log_until(1))
    for path in finished(recording, target):
        assert CheckpointStore(path, keep_versions=1).latest() == 1


def test_a_crash_while_rewriting_leaves_old_or_new_content(tmp_path: Path, target: Path) -> None:
    root = tmp_path / "state"
    store = samples.history(root, 2)
    with Recording(root).running() as recording:
        samples.save(store, 3, parent=2, segments={}, rewrite={"log": b"without what was forgotten"})
        store.set_champion(3)
        store.prune()
    logs = {2: log_until(1, 2), 3: b"without what was forgotten"}
    for path in remains(recording, target):
        after = reopened(path)
        for version in (after.latest(), after.champion()):
            assert version is not None
            assert samples.content(after, version) == (version, logs[version])
    for path in finished(recording, target):
        assert CheckpointStore(path, keep_versions=1).champion() == 3


def test_a_crash_while_pruning_leaves_what_is_kept(tmp_path: Path, target: Path) -> None:
    root = tmp_path / "state"
    store = samples.history(root, 4)
    with Recording(root).running() as recording:
        store.keep_versions = 1
        assert store.prune() == [1, 2]
    for path in remains(recording, target):
        after = reopened(path)
        assert (after.latest(), after.champion()) == (4, 4)
        after.prune()
        assert after.numbers() == [3, 4]
        assert all(samples.content(after, version)[0] == version for version in after.numbers())


def test_a_version_is_never_allotted_twice(tmp_path: Path, target: Path) -> None:
    root = tmp_path / "state"
    store = samples.history(root, 1)
    with Recording(root).running() as recording:
        first = store.allot()
        marker = len(recording.operations)
        store.allot()
    for path in remains(recording, target):
        assert CheckpointStore(path, keep_versions=1).allot() > 1
    for names, contents in CRASHES.values():
        path = recording.after(marker).put(
            target / f"acknowledged{names()}{contents()}", names=names, contents=contents
        )
        assert CheckpointStore(path, keep_versions=1).allot() > first


def test_a_crash_while_creating_the_directory_does_not_stop_the_next_start(tmp_path: Path, target: Path) -> None:
    root = tmp_path / "parent"
    root.mkdir()
    with Recording(root).running() as recording, StateDirectory.open(root / "state", "shop") as directory:
        directory.bind("cluster", {"interactions": "topic"})
    for path in remains(recording, target):
        with StateDirectory.open(path / "state", "shop") as directory:
            assert directory.identity.cluster_id in (None, "cluster")


def intent(phase: int) -> Intent:
    return Intent(
        parent=1,
        phase=phase,
        version=phase,
        start={"interactions": {0: 0}},
        end={"interactions": {0: 10}},
        now=1e9,
        opened_at=1e9,
        watermark=None,
        replay_ratio=2.0,
        threads=1,
        gate="judge",
    )


def test_a_crash_while_writing_the_intent_leaves_old_or_new(tmp_path: Path, target: Path) -> None:
    root = tmp_path / "state"
    root.mkdir()
    IntentFile(root / "intent.json").write(intent(1))
    with Recording(root).running() as recording:
        IntentFile(root / "intent.json").write(intent(2))
    for path in remains(recording, target):
        assert IntentFile(path / "intent.json").read(1) in (intent(1), intent(2))
    for path in finished(recording, target):
        assert IntentFile(path / "intent.json").read(1) == intent(2)


def test_a_crash_while_logging_a_phase_leaves_whole_lines_and_repair_completes_them(
    tmp_path: Path, target: Path
) -> None:
    root = tmp_path / "state"
    root.mkdir()
    log = PhaseLog(root / "phases.jsonl")
    log.append(samples.line(1))
    with Recording(root).running() as recording:
        log.append(samples.line(2))
        log.published(2, 1e9)
        log.published(1, 1e9)
    for path in remains(recording, target):
        after = PhaseLog(path / "phases.jsonl")
        assert not after.problems
        after.repair([samples.line(1), samples.line(2)])
        assert [line.phase for line in after.lines()] == [1, 2]
    for path in finished(recording, target):
        assert PhaseLog(path / "phases.jsonl").lines() == log.lines()


def test_a_crash_while_adding_a_tombstone_keeps_all_that_were_acknowledged(tmp_path: Path, target: Path) -> None:
    root = tmp_path / "state"
    root.mkdir()
    stones = [Tombstone(kind="items", id=f"item{n}", time=1e9, topic="items", partition=0, offset=n) for n in range(3)]
    tombstones = Tombstones(root / "tombstones.jsonl")
    with Recording(root).running() as recording:
        tombstones.add(stones[:1])
        tombstones.add(stones[1:])
    for path in remains(recording, target):
        assert len(Tombstones(path / "tombstones.jsonl")) in (0, 1, 3)
    for path in finished(recording, target):
        assert len(Tombstones(path / "tombstones.jsonl")) == 3
