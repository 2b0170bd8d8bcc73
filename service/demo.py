"""`headwater demo`: the whole of Headwater on this machine, over a simulated stream whose best possible score is known.

An embedded broker and Redis, a backlog of events at once and then a constant stream, the daemon in a process of its
own, probes that measure freshness from outside, and a summary. Everything is kept in one directory, from which the next
demo goes on where this one was stopped; see `service.demo_state`.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from rich.console import Console

from service.config import ENV_PREFIX, load_config
from service.demo_daemon import DemoDaemon
from service.demo_feed import Feed
from service.demo_probes import Picker, Watch
from service.demo_state import CLUSTER_ID, NAMESPACE, PARTITIONS, TOPICS, DemoDirectory
from service.demo_summary import Report, print_report, read_lookups, report, write_report
from service.demo_view import Picture, View
from service.errors import HeadwaterError
from service.http_client import DaemonClient
from service.phase_log import PhaseLine, read_phase_lines
from streams.embedded import EmbeddedBroker, EmbeddedRedis, EmbeddedUnavailable
from streams.kafka_producer import EventProducer
from streams.publisher import RedisSink
from streams.simulator import Simulator, World
from streams.simulator_world import Tastes

BACKLOG_SHARE = 0.6
"""Share of the events that are there before the daemon starts."""
INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""
_LOOK_S = 0.25
_QUIET_S = 5.0


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """The options of `headwater demo`."""

    events: int = 60_000
    """Interactions in all."""
    users: int = 800
    """Users there are at first."""
    items: int = 1_000
    """Items there are at first."""
    rate: float = 500.0
    """Interactions per second of the constant stream."""
    state_dir: Path = Path("./var/demo")
    """Where everything is kept, also for the next demo."""
    seed: int = 1
    """Everything simulated follows from it."""
    keep_open: bool = False
    """Leave everything running at the end, until Ctrl-C."""
    threads: int = 1
    """Threads that learn."""
    budget_s: float = 210.0
    """Time after which the demo sums up, learned or not."""

    def __post_init__(self) -> None:
        if self.events < 1_000 or self.rate <= 0 or min(self.users, self.items) < 50:
            raise HeadwaterError(
                "a demo needs 1,000 events, 50 users, 50 items and a rate above 0.", hint="Raise what is below."
            )


def run_demo(options: DemoOptions, console: Console) -> int:
    """Run it and return the exit status: 0, or 130 after Ctrl-C. Raises `HeadwaterError` with what to do."""
    with _signals_as_interrupts(), _own_configuration():
        try:
            _Demo(options, console).run()
        except KeyboardInterrupt:
            text = f"Stopped. `headwater demo --state-dir {options.state_dir}` goes on from here."
            console.print(text, markup=False, highlight=False, soft_wrap=True)
            return INTERRUPTED
        except EmbeddedUnavailable as error:
            raise HeadwaterError(str(error)) from error
    return 0


class _Demo:
    """One run: servers, stream, daemon, probes; everything that is started is on one stack that takes it down again."""

    def __init__(self, options: DemoOptions, console: Console) -> None:
        self.options, self.console = options, console
        self.begun = time.monotonic()
        self.directory = DemoDirectory(root=options.state_dir)
        progress = self.directory.open(_world(options))
        self.backlog = max(round(options.events * BACKLOG_SHARE), progress.sent)
        live = options.events - round(options.events * BACKLOG_SHARE)
        # A demo that had come to its end goes on with as long a stream as it had.
        self.total = options.events if progress.sent < options.events else progress.sent + live
        self.simulator = Simulator(self.directory.world(progress, events=self.total))
        self.already = len(read_phase_lines(self.directory.phases)) if self.directory.phases.exists() else 0
        self.stopping = threading.Event()
        self.progress = progress

    def run(self) -> None:
        with ExitStack() as stack:
            # 1. Servers first, and the backlog before the daemon: a state may hold offsets that must exist by then.
            broker = stack.enter_context(EmbeddedBroker(directory=self.directory.logs, cluster_id=CLUSTER_ID))
            redis = stack.enter_context(EmbeddedRedis(directory=self.directory.logs))
            producer = stack.enter_context(EventProducer(bootstrap_servers=broker.address, linger_ms=5))
            producer.ensure_topics(TOPICS.values(), partitions=PARTITIONS, compacted=[TOPICS["items"], TOPICS["users"]])
            sink = stack.enter_context(RedisSink(redis.address, namespace=NAMESPACE))
            self.watch = Watch(sink)
            stack.callback(self.watch.stop)
            self.feed = self._feed(producer)
            self.view = stack.enter_context(View(self.console))
            self._show(f"sending a backlog of {self.backlog:,} events")
            self.feed.burst(self.backlog, stopping=self.stopping)

            # 2. The daemon, in a process of its own: its load and its death are not ours.
            self.directory.adopt_topics()
            self._show("starting the daemon")
            daemon = stack.enter_context(self._daemon(broker.address, redis.address))

            # 3. From the first version on, a constant stream, during which freshness is measured.
            self._wait_until("learning the backlog", daemon, lambda: sink.pointer() is not None)
            self.watch.start()
            sending = self._stream(stack)
            self._wait_until("streaming", daemon, sending.done)
            sending.result()

            # 4. What was sent is learned; nothing is measured at rest, so the probes end with the stream.
            self._wait_until("learning the rest", daemon, self._all_learned)
            self.watch.stop()
            self._show("summing up")
            result = self._sum_up(daemon)
            self.view.__exit__(None, None, None)
            write_report(self.directory.report, result)
            print_report(self.console, result)
            if self.options.keep_open:
                self._keep_open(broker.address, redis.address, daemon)

    def _feed(self, producer: EventProducer) -> Feed:
        quiet = round(_QUIET_S * self.options.rate)
        picker = Picker(
            self.watch, quiet=quiet, every=max(1, round(self.options.rate / 10)), plain=_plain(self.simulator.tastes)
        )
        return Feed(
            producer=producer,
            simulator=self.simulator,
            directory=self.directory,
            progress=self.progress,
            observer=picker,
        )

    def _daemon(self, broker: str, redis: str) -> DemoDaemon:
        def write_config(port: int) -> None:
            self.directory.write_config(
                broker=broker, redis=redis, http_port=port, seed=self.options.seed, threads=self.options.threads
            )

        return DemoDaemon(directory=self.directory.logs, config=self.directory.config, write_config=write_config)

    def _stream(self, stack: ExitStack) -> Future[None]:
        pool = stack.enter_context(ThreadPoolExecutor(max_workers=1, thread_name_prefix="feed"))
        stack.callback(self.stopping.set)  # runs before the pool waits for its thread
        return pool.submit(self.feed.stream, self.total, rate=self.options.rate, stopping=self.stopping)

    def _wait_until(self, stage: str, daemon: DemoDaemon, done: Callable[[], bool]) -> None:
        """Show how far things are until `done` or the time is over; raises `NotRunning` if the daemon ends."""
        while not done():
            daemon.check()
            if self._elapsed() > self.options.budget_s:
                self.stopping.set()
                break
            self._show(stage)
            time.sleep(_LOOK_S)
        self._show(stage)

    def _all_learned(self) -> bool:
        lines = self._lines()
        if not lines or self.watch.waiting():
            return False
        reached = sum(lines[-1].end.get(TOPICS["interactions"], {}).values())
        unpublished = any(line.decision == "promoted" and line.published_at is None for line in lines[-1:])
        return reached >= self.feed.sent and not unpublished

    def _sum_up(self, daemon: DemoDaemon) -> Report:
        lines = self._lines()
        if not any(line.decision == "promoted" for line in lines):
            raise HeadwaterError(
                f"no version was promoted within {self.options.budget_s:.0f} s.", hint=f"{daemon.log} says why."
            )
        stream = self.simulator.run().first(self.feed.sent)
        result = report(
            simulator=self.simulator,
            stream=stream,
            lines=lines,
            first=self.already,
            freshness=self.watch.found,
            seconds=self._elapsed(),
        )
        client = DaemonClient(load_config(self.directory.config))
        result.lookups = read_lookups(client, self.simulator, stream)
        return result

    def _keep_open(self, broker: str, redis: str, daemon: DemoDaemon) -> None:
        self.console.print(
            f"\nEverything stays up until Ctrl-C:\n  Kafka   {broker}\n  Redis   {redis}\n  daemon  {daemon.address}"
            f"\nTry: headwater recommend u7 -c {self.directory.config}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        while True:
            daemon.check()
            time.sleep(_LOOK_S)

    def _show(self, stage: str) -> None:
        self.view.show(
            Picture(
                stage=stage,
                total=self.total,
                sent=self.feed.sent,
                lines=self._lines(),
                first=self.already,
                freshness=self.watch.found,
                elapsed_s=self._elapsed(),
            )
        )

    def _lines(self) -> list[PhaseLine]:
        return read_phase_lines(self.directory.phases) if self.directory.phases.exists() else []

    def _elapsed(self) -> float:
        return time.monotonic() - self.begun


def _world(options: DemoOptions) -> World:
    """The demo's world, on a clock by which the constant stream happens now."""
    start = round(time.time() - options.events * BACKLOG_SHARE / options.rate)
    return World(seed=options.seed, users=options.users, items=options.items, start=float(start), rate=options.rate)


def _plain(tastes: Tastes) -> Callable[[str], bool]:
    """Whether no features of a user are sent."""
    return lambda user: not tastes.has_profile[int(user.removeprefix("u"))]


@contextmanager
def _own_configuration() -> Iterator[None]:
    """Without the environment's settings: those are of another Headwater, whose Redis the demo must not write to."""
    kept = {name: os.environ.pop(name) for name in list(os.environ) if name.upper().startswith(ENV_PREFIX)}
    try:
        yield
    finally:
        os.environ.update(kept)


@contextmanager
def _signals_as_interrupts() -> Iterator[None]:
    """The first SIGINT, SIGTERM or SIGHUP interrupts; later ones do not keep what was started from being stopped."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        for number in signals:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, interrupt) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
