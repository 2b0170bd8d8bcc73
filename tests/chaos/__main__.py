"""`python -m tests.chaos --kills 1000`: kills daemons at every named point and at random, and says what came of it.

Exit code 0 only if nothing was lost, nothing learned twice, and every state was that of an uninterrupted run.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

# One thread each, as in the tests: before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import structlog

from service.crash_points import POINTS
from streams.kafka_producer import EventProducer
from tests.chaos import chains
from tests.chaos.arena import Servers
from tests.chaos.chains import Tally
from tests.servers import kafka_kinds, new_broker, new_redis, redis_kinds

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
    args = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if args.seed is None else args.seed
    real = args.servers != "embedded" and "apache" in kafka_kinds() and "debian" in redis_kinds()
    if args.servers == "real" and not real:
        parser.error("no Apache Kafka (HEADWATER_TEST_KAFKA) or no redis-server on PATH")
    kafka, redis = ("apache", "debian") if real else ("embedded", "embedded")
    # What is found half done after a kill is looked at, not warned of.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    print(f"{args.kills} kills, seed {seed}, {kafka} Kafka and {redis} Redis", flush=True)
    signal.signal(signal.SIGTERM, _stop)
    started = time.monotonic()
    directory = Path(tempfile.mkdtemp(prefix="headwater-chaos-"))
    with ExitStack() as stack:
        broker = stack.enter_context(new_broker(kafka, directory / "kafka"))
        store = stack.enter_context(new_redis(redis, directory / "redis"))
        producer = stack.enter_context(EventProducer(bootstrap_servers=broker.address, linger_ms=0))
        servers = Servers(broker.address, producer, store.address, directory)
        stack.callback(servers.close)

        def progress(tally: Tally) -> None:
            if tally.total % 25 == 0:
                minutes = (time.monotonic() - started) / 60
                print(f"{tally.total:5} kills in {tally.chains} chains, {minutes:.1f} min", flush=True)

        tally = chains.run(servers, kills=args.kills, seed=seed, progress=progress)
    report(tally, minutes=(time.monotonic() - started) / 60)
    if tally.findings:
        print(f"what is left of it: {directory}; again with --kills {args.kills} --seed {seed}")
        return 1
    return 0


def _stop(_signum: int, _frame: FrameType | None) -> None:
    """As Ctrl-C: what there is by then is told. Once: `timeout` sends it to the process and then to its group."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


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
