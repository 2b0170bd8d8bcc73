"""`python -m tests.fuzz`: the sizes that no test run has time for. Exits 1 if anything was found.

python -m tests.fuzz --records 1000000 --checkpoints 100000
python -m tests.fuzz --checkpoints 1 --first 4711        one attempt again, by its number
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.fuzz.checkpoints import CheckpointFuzz
from tests.fuzz.in_children import Attempts, Tally, in_children
from tests.fuzz.records import BATCH, RecordFuzz

MEMORY_DISK = Path("/dev/shm")


def main() -> int:
    """Runs what was asked for; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--records", type=int, default=0, help="mutated records to decode and to take in")
    parser.add_argument("--checkpoints", type=int, default=0, help="damaged state directories to open")
    parser.add_argument("--seed", type=int, default=1, help="another seed is other damage")
    parser.add_argument("--first", type=int, default=0, help="number of the first attempt")
    asked = parser.parse_args()
    scratch_parent = MEMORY_DISK if MEMORY_DISK.is_dir() else None
    found = 0
    with tempfile.TemporaryDirectory(prefix="headwater-fuzz-", dir=scratch_parent) as scratch:
        if asked.records:
            batches = range(asked.first, asked.first + -(-asked.records // BATCH))
            found += _run("records", RecordFuzz(asked.seed), batches, batch=100)
        if asked.checkpoints:
            numbers = range(asked.first, asked.first + asked.checkpoints)
            found += _run("checkpoints", CheckpointFuzz(asked.seed, Path(scratch)), numbers, batch=1000)
    return 1 if found else 0


def _run(what: str, attempts: Attempts, numbers: range, *, batch: int) -> int:
    started, told = time.monotonic(), 0

    def progress(done: int, tally: Tally) -> None:
        nonlocal told
        rate = done / (time.monotonic() - started)
        for number, kind, why in tally.faults[told : told + 50]:
            print(f"FAULT {what} --first {number} ({kind}): {why}", flush=True)
        told = len(tally.faults)
        print(f"{what}: {done} of {len(numbers)}, {rate:.0f}/s, {len(tally.faults)} faults", file=sys.stderr)

    tally = in_children(attempts, numbers, batch=batch, progress=progress)
    for (kind, outcome), count in sorted(tally.counts.items()):
        print(f"{what:12} {kind:36} {outcome:10} {count:9}")
    print(f"{what}: {len(tally.faults)} faults, {time.monotonic() - started:.0f} s")
    return len(tally.faults)


if __name__ == "__main__":
    raise SystemExit(main())
