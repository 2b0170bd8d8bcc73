"""`headwater demo` as a person runs it: interrupted with Ctrl-C, it leaves nothing behind, and the next one goes on."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from service.phase_log import read_phase_lines

EVENTS = 7_000
PATIENCE_S = 240.0


def start(state_dir: Path, log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "service.cli", "demo", "--state-dir", str(state_dir), "--events", str(EVENTS)]
    with log.open("wb") as output:
        return subprocess.Popen([*command, "--rate", "250"], stdout=output, stderr=subprocess.STDOUT)


def wait_for(text: str, log: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while text not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


def children(pid: int) -> set[int]:
    found: set[int] = set()
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in listed.read_text().split():
            found |= {int(child), *children(int(child))}
    return found


def command_line(pid: int) -> bytes:
    """Empty for a process that is no more."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@pytest.mark.slow
@pytest.mark.servers
@pytest.mark.timeout(600)
def test_an_interrupted_demo_leaves_nothing_behind_and_the_next_one_goes_on(tmp_path: Path) -> None:
    state, log = tmp_path / "state", tmp_path / "demo.log"
    first = start(state, log)
    try:
        wait_for("streaming", log, first)
        started = {pid: command_line(pid) for pid in children(first.pid)}
        assert len(started) >= 3, "broker, Redis and daemon"
        first.send_signal(signal.SIGINT)
        assert first.wait(60) == 130, log.read_text()
    finally:
        first.kill()
        first.wait()
    left = [line for pid, line in started.items() if line and command_line(pid) == line]
    assert left == []
    assert "goes on from here" in log.read_text()
    learned = read_phase_lines(state / "phases.jsonl")
    assert learned

    second = start(state, log)
    try:
        assert second.wait(PATIENCE_S) == 0, log.read_text()
    finally:
        second.kill()
        second.wait()
    lines = read_phase_lines(state / "phases.jsonl")
    assert len(lines) > len(learned)
    assert [line.phase for line in lines] == list(range(1, len(lines) + 1))
    for before, after in itertools.pairwise(lines):
        assert after.start == before.end
    assert sum(line.events for line in lines) == lines[-1].end["interactions"][0] == EVENTS
    assert all(line.duplicates == line.rejected == line.lost == 0 for line in lines)

    report = msgspec.json.decode((state / "demo-report.json").read_bytes())
    assert report["events"] + sum(line.events for line in learned) == EVENTS
    assert {row["kind"] for row in report["freshness"] if row["count"]} >= {"item", "user"}
    assert report["missed"] == 0
    figures = {row["name"]: row["ndcg"] for row in report["quality"]}
    assert figures["popularity"] < figures["Headwater"] < figures["best possible"]
    assert len(report["lookups"]) == 3
