"""The disk is full, read-only, or gives back something else than was written."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from service.checkpoints import CheckpointStore
from tests.faults.stage import PER_PHASE, Outcome, Run, Stage, Unplayable, fault

_CAPABILITY_VERSION_3 = 0x20080522
_CAP_DAC_OVERRIDE = 1


def small_disk(stage: Stage, *, megabytes: int) -> Path:
    """A file system of its own."""
    path = stage.directory / "disk"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(path)], capture_output=True, check=False
    )
    if mounted.returncode:
        raise Unplayable(f"may not mount a tmpfs here ({mounted.stderr.decode().strip()})")
    stage.stack.callback(subprocess.run, ["umount", "-l", str(path)], check=False)
    return path


@fault("Disk", "full, and has room again", needs="root", quick=True)
def full(stage: Stage) -> Outcome:
    disk = small_disk(stage, megabytes=64)
    place = stage.place()
    place.configure(state_dir=str(disk / "state"))
    place.state_dir = disk / "state"
    run = stage.serving(place)
    ballast = disk / "ballast"
    with run.fault(), ballast.open("wb") as file:
        file.write(b"\0" * shutil.disk_usage(disk).free)
    run.send(PER_PHASE)
    run.daemon.wait_until("the disk to be said to be full", lambda: says(run, "No space left"))
    run.daemon.wait_until("status to say so", lambda: "No space left" in (why_not_learning(run) or ""))
    time.sleep(stage.outage_s / 4)
    assert run.daemon.running, run.daemon.tail()
    ballast.unlink()
    run.lift()
    run.daemon.wait_until("learning to go on", lambda: why_not_learning(run) == "")
    return run.recovered("kept serving, tried the phase again until there was room", said="back to the last checkpoint")


@fault("Disk", "the state directory may not be written for a while")
def read_only(stage: Stage) -> Outcome:
    place = stage.place()
    run = stage.serving(place, before=as_anybody)
    directories = [place.state_dir, *(path for path in place.state_dir.rglob("*") if path.is_dir())]
    with run.fault():
        for directory in directories:
            directory.chmod(0o500)
    run.send(PER_PHASE)
    run.daemon.wait_until("the disk to be said not to take it", lambda: says(run, "Permission denied"))
    time.sleep(stage.outage_s / 4)
    assert run.daemon.running, run.daemon.tail()
    for directory in directories:
        directory.chmod(0o700)
    run.lift()
    return run.recovered("kept serving, tried until it could write", said="back to the last checkpoint")


def why_not_learning(run: Run) -> str | None:
    """What status says of it; None while the daemon begins again from the last checkpoint, and HTTP with it."""
    with suppress(OSError):
        return str(run.daemon.status()["why_not_learning"])
    return None


def says(run: Run, pattern: str) -> bool:
    """Whether it has said so since the fault."""
    try:
        run.said(pattern)
    except AssertionError:
        return False
    return True


@fault("Disk", "the state directory may not be written at the start", quick=True)
def not_ours(stage: Stage) -> Outcome:
    run = Run(stage, stage.place(), before=as_anybody)
    run.place.state_dir.mkdir()
    run.place.state_dir.chmod(0o555)
    with run.fault():
        run.daemon.launch()
        assert run.daemon.end() == 1
    return Outcome("refused to start, naming the path", None, 0, run.said("cannot be written"))


def as_anybody() -> None:
    """Takes from this process root's right to write where it may not (CAP_DAC_OVERRIDE), and nothing else."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice
    assert libc.capget(header, sets) == 0
    for place in (0, 1):
        sets[place] &= ~(1 << _CAP_DAC_OVERRIDE)
    assert libc.capset(header, sets) == 0


def stopped(stage: Stage) -> Run:
    """A daemon that has served two versions and was stopped in good order."""
    run = stage.serving()
    assert run.daemon.terminate() == 0
    return run


def goes_on(run: Run, what: str, said: str) -> Outcome:
    """Starts it again and sends more."""
    run.start()
    run.send(PER_PHASE)
    return run.recovered(what, said=said)


@fault("Disk", "a byte of the newest checkpoint flipped", quick=True)
def flipped(stage: Stage) -> Outcome:
    run = stopped(stage)
    latest = CheckpointStore(run.place.state_dir, keep_versions=9).latest()
    assert latest is not None
    with run.fault():
        path = run.place.state_dir / "checkpoints" / f"v{latest:06d}" / "weights.pt"
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    return goes_on(run, "went back to the version before and learned its phase again", "takes its place")


@fault("Disk", "a checkpoint directory half written")
def half_written(stage: Stage) -> Outcome:
    run = stopped(stage)
    checkpoints = run.place.state_dir / "checkpoints"
    newest = max(checkpoints.iterdir())
    with run.fault():
        temporary = checkpoints / f".tmp-v{int(newest.name[1:]) + 1:06d}"
        shutil.copytree(newest, temporary)
        (temporary / "manifest.json").unlink()
        os.truncate(temporary / "weights.pt", 1000)
    return goes_on(run, "removed it", "crash left unfinished")


@fault("Disk", "a checkpoint's files gone, its directory there")
def emptied(stage: Stage) -> Outcome:
    run = stopped(stage)
    with run.fault():
        newest = max((run.place.state_dir / "checkpoints").iterdir())
        for path in newest.iterdir():
            path.unlink()
    return goes_on(run, "went back to the version before and learned its phase again", "takes its place")


@fault("Disk", "LATEST, CHAMPION, NEXT, intent.json and phases.jsonl empty", quick=True)
def small_files_empty(stage: Stage) -> Outcome:
    run = stopped(stage)
    with run.fault():
        for name in ("LATEST", "CHAMPION", "NEXT", "intent.json", "phases.jsonl"):
            path = run.place.state_dir / name
            if path.exists():
                os.truncate(path, 0)
    return goes_on(run, "took the newest whole version, and wrote them anew", "takes its place")


@fault("Disk", "LATEST and CHAMPION deleted")
def small_files_gone(stage: Stage) -> Outcome:
    run = stopped(stage)
    with run.fault():
        for name in ("LATEST", "CHAMPION", "NEXT"):
            (run.place.state_dir / name).unlink()
    return goes_on(run, "took the newest whole version, and wrote them anew", "takes its place|was complete")
