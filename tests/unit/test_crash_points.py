"""Killing the process at any point of a phase's writes leaves a state to go on from."""

from __future__ import annotations

import ast
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from service import crash_points
from service.checkpoints import CheckpointStore
from service.crash_points import POINTS, crash_point
from service.intent import Intent, IntentFile
from service.phase_log import PhaseLog
from service.tombstones import Tombstone, Tombstones
from tests import checkpoint_samples as samples

REPOSITORY = Path(__file__).parents[2]
ON_DISK = ("version.", "intent.", "segments.", "checkpoint.", "champion.", "prune.", "sweep.", "phases.", "tombstones.")
"""Prefixes of the points that a phase's writes go through; the others belong to the daemon's tests."""


@pytest.fixture(autouse=True)
def _no_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(crash_points.VARIABLE, raising=False)
    crash_points._reached.clear()


def in_a_child(body: Callable[[], object], point: str) -> int:
    """Run `body` in a forked child that is to die at `point`; its wait status."""
    pid = os.fork()
    if pid == 0:
        os.environ[crash_points.VARIABLE] = point
        code = 1
        try:
            body()
            code = 0
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1]


def one_phase(root: Path) -> None:
    """Everything a phase writes, in its order."""
    store = CheckpointStore(root, keep_versions=1)
    store.sweep()
    version = store.allot()
    IntentFile(root / "intent.json").write(
        Intent(
            parent=2,
            phase=3,
            version=version,
            start={"interactions": {0: 20}},
            end={"interactions": {0: 30}},
            now=1e9,
            opened_at=1e9,
            watermark=None,
            replay_ratio=2.0,
            threads=1,
            gate="judge",
        )
    )
    Tombstones(root / "tombstones.jsonl").add(
        [Tombstone(kind="items", id="a", time=1e9, topic="items", partition=0, offset=3)]
    )
    samples.save(store, version, parent=2)
    log = PhaseLog(root / "phases.jsonl")
    log.repair(store.phase_lines())
    store.set_champion(version)
    log.published(version, 1e9)
    store.prune()


@pytest.mark.parametrize("point", [point for point in POINTS if point.startswith(ON_DISK)])
def test_a_phase_killed_at_any_point_is_done_again_or_was_done(tmp_path: Path, point: str) -> None:
    root = tmp_path / "state"
    samples.history(root, 2)
    (root / "checkpoints" / ".tmp-v000002").mkdir()  # for sweep.half
    status = in_a_child(lambda: one_phase(root), point)
    assert os.WIFSIGNALED(status), f"{point} was not reached"
    assert os.WTERMSIG(status) == signal.SIGKILL
    store = CheckpointStore(root, keep_versions=1)
    store.sweep()
    latest, champion = store.latest(), store.champion()
    assert latest in (2, 3)
    assert champion in (2, 3)
    for version in {latest, champion}:
        assert version is not None
        assert samples.content(store, version) == (version, b"".join(map(samples.chunk, range(1, version + 1))))
    intent = IntentFile(root / "intent.json").read(latest)
    if intent is not None:
        assert store.reserve(intent.version) == 3
    log = PhaseLog(root / "phases.jsonl")
    log.repair(store.phase_lines())
    assert [line.phase for line in log.lines()] == list(range(1, latest + 1))


def test_the_nth_time_can_be_asked_for(tmp_path: Path) -> None:
    def reach() -> None:
        for count in range(3):
            (tmp_path / "count").write_text(str(count))
            crash_point("checkpoint.renamed")

    assert os.WTERMSIG(in_a_child(reach, "checkpoint.renamed:3")) == signal.SIGKILL
    assert (tmp_path / "count").read_text() == "2"
    assert in_a_child(reach, "checkpoint.renamed:4") == 0


def test_without_the_variable_nothing_happens() -> None:
    crash_point("checkpoint.renamed")


def test_a_misspelt_point_is_no_silent_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(crash_points.VARIABLE, "checkpoint.renamd")
    with pytest.raises(ValueError, match="names no crash point"):
        crash_point("checkpoint.renamed")


def test_every_point_in_the_code_is_listed_and_every_listed_one_is_in_the_code() -> None:
    used = set()
    for path in REPOSITORY.glob("service/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "crash_point":
                (argument,) = node.args
                if isinstance(argument, ast.Constant):
                    used.add(argument.value)
            elif isinstance(node, ast.keyword) and node.arg == "points" and isinstance(node.value, ast.Constant):
                used |= {f"{node.value.value!s}.half", f"{node.value.value!s}.written"}  # of every JsonLines file
    assert used == set(POINTS)
