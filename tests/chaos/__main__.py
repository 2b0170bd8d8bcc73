"""`python -m tests.chaos --kills 1000`: kills daemons at every named point and at random, and says what came of it.

Exit code 0 only if all were made, nothing was lost, nothing learned twice, and every state was that of an uninterrupted
run.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

# One thread each, as in the tests: before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from service.crash_points import POINTS
from tests.chaos.chains import Tally
from tests.chaos.job import stop_at_signals, work
from tests.servers import kafka_kinds, redis_kinds

FEWEST = 200
"""Kills, below which a second job is not worth its start."""
VERDICTS = {
    "lost": "events lost",
    "twice": "events learned twice",
    "state": "differences from an uninterrupted run: weights, optimizer, random numbers, vocabulary, histories, replay",
    "history": "examples with a history of another time than their own",
    "books": "lines of phases.jsonl that do not add up",
    "champion": "times LATEST or CHAMPION did not load",
    "pointer": "times readers were pointed to anything but a whole version that the disk calls champion",
    "committed": "times the consumer group was ahead of the checkpoint",
    "forgotten": "deleted ids found again",
    "life": "daemons that ended in any other way than told",
    "points": "points that could not be reached",
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=None, help="of the schedule; a new one each time unless said")
    parser.add_argument("--servers", choices=("real", "embedded"), default=None, help="real ones where there are any")
    parser.add_argument("--jobs", type=int, default=None, help="at once, each with servers of its own; one a core")
    args = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if args.seed is None else args.seed
    jobs = max(1, min(os.cpu_count() or 1, args.kills // FEWEST)) if args.jobs is None else args.jobs
    real = args.servers != "embedded" and "apache" in kafka_kinds() and "debian" in redis_kinds()
    if args.servers == "real" and not real:
        parser.error("no Apache Kafka (HEADWATER_TEST_KAFKA) or no redis-server on PATH")
    kinds = ("apache", "debian") if real else ("embedded", "embedded")
    directory = Path(tempfile.mkdtemp(prefix="headwater-chaos-"))
    print(f"{args.kills} kills, seed {seed}, {kinds[0]} Kafka and {kinds[1]} Redis, {jobs} at once", flush=True)
    started = time.monotonic()
    stop_at_signals()
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        works = [
            pool.submit(work, args.kills // jobs + (n < args.kills % jobs), seed + n, kinds, directory / f"job-{n}")
            for n in range(jobs)
        ]
        try:
            wait(works)
        except KeyboardInterrupt:  # they tell what there is by now
            for child in multiprocessing.active_children():
                child.terminate()
        tally = sum((one.result() for one in works if not isinstance(one.exception(), BrokenProcessPool)), Tally())
    report(tally, minutes=(time.monotonic() - started) / 60)
    if tally.findings:
        print(f"what is left of it: {directory}; again with --kills {args.kills} --seed {seed} --jobs {jobs}")
    return int(bool(tally.findings) or tally.total < args.kills)


def report(tally: Tally, *, minutes: float) -> None:
    """Counts by point, then the verdicts, then what was found."""
    print(f"\n{tally.total} kills in {tally.chains} chains of lives, {minutes:.1f} minutes\n")
    for point in POINTS:
        print(f"{tally.kills[point]:6}  {point}")
    for kind, what in (
        ("moment", "at a random moment"),
        ("step", "after a random step of the optimizer"),
        ("disk", "in a random call that changes the disk"),
    ):
        print(f"{tally.kills[kind]:6}  {what}")
    print()
    found = Counter(finding.check for _, finding in tally.findings)
    for check, what in VERDICTS.items():
        print(f"{found[check]:6}  {what}")
    for history, finding in tally.findings[:20]:
        print(f"\n{finding.check}: {finding.text}\n  after {history}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
