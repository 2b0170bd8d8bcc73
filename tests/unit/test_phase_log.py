"""`phases.jsonl` has one good line for each phase that happened, in order."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from service.phase_log import PhaseLine, PhaseLog, read_phase_lines
from tests.checkpoint_samples import line

FIXED_KEYS = {
    *(
        "phase",
        "version",
        "decision",
        "reason",
        "start",
        "end",
        "events",
        "duplicates",
        "rejected",
        "skipped",
        "lost",
        "late",
    ),
    *("items", "users", "watermark", "opened_at", "closed_at", "published_at", "metrics", "stages"),
}
FURTHER_KEYS = {"over_limit"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "phases.jsonl"


def phases(log: PhaseLog) -> list[int]:
    return [entry.phase for entry in log.lines()]


def test_a_line_has_every_fixed_key(path: Path) -> None:
    PhaseLog(path).append(line(1, metrics={"hit": float("nan")}))
    written = msgspec.json.decode(path.read_bytes())
    assert set(written) == FIXED_KEYS | FURTHER_KEYS | {"check"}
    assert written["published_at"] is None
    assert written["metrics"] == {"hit": None}
    assert written["end"] == {"interactions": {"0": 10}}


def test_lines_come_back_after_reopening(path: Path) -> None:
    log = PhaseLog(path)
    assert log.last is None
    for phase in (1, 2, 3):
        log.append(line(phase))
    again = PhaseLog(path)
    assert again.lines() == [line(1), line(2), line(3)]
    assert again.last == line(3)
    assert read_phase_lines(path) == again.lines()


@pytest.mark.parametrize("version", [1, 2, 3])
def test_publication_is_noted_on_its_own_line_alone(path: Path, version: int) -> None:
    log = PhaseLog(path)
    for phase in (1, 2, 3):
        log.append(line(phase))
    log.published(version, 123.5)
    log.append(line(4))
    times = {entry.version: entry.published_at for entry in PhaseLog(path).lines()}
    assert times == {1: None, 2: None, 3: None, 4: None} | {version: 123.5}


def test_publishing_a_version_without_a_phase_changes_nothing(path: Path) -> None:
    log = PhaseLog(path)
    log.append(line(1))
    before = path.read_bytes()
    log.published(99, 1.0)
    assert path.read_bytes() == before


@pytest.mark.parametrize("cut", [1, 10, 200])
def test_a_torn_last_line_is_cut_and_written_again(path: Path, cut: int) -> None:
    log = PhaseLog(path)
    log.append(line(1))
    log.append(line(2))
    path.write_bytes(path.read_bytes()[:-cut])
    assert read_phase_lines(path) == [line(1)]
    log = PhaseLog(path)
    assert log.problems == []
    log.append(line(2))
    assert PhaseLog(path).lines() == [line(1), line(2)]


def test_a_phase_done_again_replaces_what_was_undone(path: Path) -> None:
    log = PhaseLog(path)
    for phase in (1, 2, 3):
        log.append(line(phase))
    log.append(line(2, version=7))
    assert log.lines() == [line(1), line(2, version=7)]
    assert log.last == line(2, version=7)


def test_missing_lines_are_rebuilt_from_manifests(path: Path) -> None:
    PhaseLog(path).append(line(1))
    log = PhaseLog(path)
    mended = log.repair([line(1), line(2), line(3)])
    assert log.lines() == [line(1), line(2), line(3)]
    assert len(mended) == 2
    assert "Phase 2" in mended[0]
    assert log.repair([line(1), line(2), line(3)]) == []


def test_a_deleted_log_is_rebuilt_as_far_as_checkpoints_are_kept(path: Path) -> None:
    log = PhaseLog(path)
    log.repair([line(8), line(9)])
    log.append(line(10))
    assert phases(PhaseLog(path)) == [8, 9, 10]


def test_repair_keeps_older_lines_and_times_of_publication(path: Path) -> None:
    log = PhaseLog(path)
    for phase in (1, 2, 3):
        log.append(line(phase))
    log.published(3, 5.0)
    assert log.repair([line(2), line(3)]) == []
    assert log.lines() == [line(1), line(2), line(3, published_at=5.0)]


def test_the_line_of_a_phase_under_way_is_written_once_with_all_that_comes_late(path: Path) -> None:
    log = PhaseLog(path)
    log.append(line(1))
    before = path.read_bytes()
    log.begin(line(2, stages={"learn": 1.0}))
    log.published(2, 5.0)
    assert path.read_bytes() == before
    assert log.last == line(1)
    whole = line(2, published_at=5.0, stages={"learn": 1.0, "publish": 2.0})
    assert log.end({"learn": 1.0, "publish": 2.0}) == log.last == whole
    assert path.read_bytes().startswith(before)
    log = PhaseLog(path)
    assert log.repair([line(1), line(2, stages={"learn": 1.0})]) == []
    assert log.lines() == [line(1), whole]


def test_whoever_reads_along_sees_no_phase_come_and_go(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look before and after every call that changes a file."""
    seen: list[int] = []

    def watched(call: Callable[..., Any]) -> Callable[..., Any]:
        def looking(*args: Any, **options: Any) -> Any:
            seen.append(len(read_phase_lines(path)))
            answer = call(*args, **options)
            seen.append(len(read_phase_lines(path)))
            return answer

        return looking

    log = PhaseLog(path)
    log.append(line(1))
    for name in ("ftruncate", "write", "replace", "rename", "fsync"):
        monkeypatch.setattr(os, name, watched(getattr(os, name)))
    log.begin(line(2))
    log.published(2, 5.0)
    log.end({"learn": 1.0})
    log.append(line(3))
    log.published(3, 6.0)
    log.published(1, 7.0)
    assert set(seen) == {1, 2, 3}
    assert seen == sorted(seen)


def test_repair_drops_phases_whose_checkpoints_are_gone(path: Path) -> None:
    log = PhaseLog(path)
    for phase in (1, 2, 3):
        log.append(line(phase))
    assert len(log.repair([line(1), line(2, version=5)])) == 2
    assert log.lines() == [line(1), line(2, version=5)]
    assert log.last == line(2, version=5)


def test_a_flipped_bit_anywhere_is_noticed_and_mended(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # there is no waiting for the disk in trying hundreds of bits
    log = PhaseLog(path)
    lines = [line(1), line(2), line(3)]
    for entry in lines:
        log.append(entry)
    good = path.read_bytes()
    for place in range(0, len(good), 7):
        damaged = bytearray(good)
        damaged[place] ^= 1 << (place % 8)
        path.write_bytes(damaged)
        log = PhaseLog(path)
        assert log.problems or len(log.lines()) == 2  # a damaged last newline looks like a torn line
        log.repair(lines)
        assert PhaseLog(path).lines() == lines


def test_a_damaged_file_is_set_aside_before_it_is_mended(path: Path) -> None:
    log = PhaseLog(path)
    log.append(line(1))
    log.append(line(2))
    damaged = path.read_bytes().replace(b'"events":10', b'"events":11', 1)
    path.write_bytes(damaged)
    (problem,) = PhaseLog(path).problems
    assert "Lines 1 of phases.jsonl were damaged" in problem
    assert path.with_name("phases.jsonl.damaged").read_bytes() == damaged
    assert PhaseLog(path).problems == []


def test_the_struct_says_what_a_line_must_have() -> None:
    assert set(PhaseLine.__struct_fields__) == FIXED_KEYS | FURTHER_KEYS
