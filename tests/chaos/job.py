"""One of the processes that kill daemons, with a broker and a Redis of its own."""

from __future__ import annotations

import logging
import signal
import time
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

import structlog

from streams.kafka_producer import EventProducer
from tests.chaos import chains
from tests.chaos.arena import Servers
from tests.chaos.chains import Tally
from tests.servers import new_broker, new_redis


def work(kills: int, seed: int, kinds: tuple[str, str], directory: Path) -> Tally:
    """One job: chains of lives on servers of its own, until there were so many kills or a signal comes."""
    stop_at_signals()
    # What is found half done after a kill is looked at, not warned of.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    started = time.monotonic()
    with ExitStack() as stack:
        broker = stack.enter_context(new_broker(kinds[0], directory / "kafka"))
        store = stack.enter_context(new_redis(kinds[1], directory / "redis"))
        producer = stack.enter_context(EventProducer(bootstrap_servers=broker.address, linger_ms=0))
        servers = Servers(broker.address, producer, store.address, directory)
        stack.callback(servers.close)

        def progress(tally: Tally) -> None:
            if tally.total % 25 == 0:
                minutes = (time.monotonic() - started) / 60
                print(f"{directory.name}: {tally.total} kills in {tally.chains} chains, {minutes:.1f} min", flush=True)

        return chains.run(servers, kills=kills, seed=seed, progress=progress)


def stop_at_signals() -> None:
    """SIGINT and SIGTERM raise KeyboardInterrupt, once: `timeout` sends its signal to a process and to its group."""

    def stop(_signum: int, _frame: FrameType | None) -> None:
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, signal.SIG_IGN)
        raise KeyboardInterrupt

    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, stop)
