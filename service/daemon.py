"""The daemon: start up, let intake and learning run, shut down in order.

Two threads with one owner for each state: intake polls, learning runs phases, with a third beside it that owns nothing.
HTTP has another, and the main one waits for signals.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import datetime
from itertools import repeat
from queue import Queue
from types import FrameType
from typing import TypeVar

import structlog
from prometheus_client import CollectorRegistry

from service.app import DaemonApp
from service.arrivals import ClosedPhase
from service.commands import CommandQueue
from service.config import Config
from service.connections import dead_letters, event_decoder, kafka_source, redis_sink, user_ids
from service.disk import DiskWatch
from service.engine import Engine
from service.errors import ConfigError, DiskTrouble
from service.fast_path import FastPath
from service.http import build_app
from service.http_server import HttpServer
from service.intake import Intake, Source
from service.intent import Intent
from service.learning import Learning
from service.live import Live
from service.manifest import by_partition
from service.metrics import Metrics
from service.patience import patiently
from service.publication import Publisher
from service.state_dir import StateDirectory
from streams.sink_types import SinkUnavailable
from streams.source_types import SourceUnavailable, TopicPartition

log = structlog.get_logger(__name__)
T = TypeVar("T")


def run(config: Config, *, start: str | None = None, once: bool = False) -> int:
    """Runs until a signal, or with `once` until what is in Kafka now is learned and published. Returns the exit
    code.

    A disk that takes no more ends neither: memory is ahead of it then, so the daemon begins again from the last
    checkpoint, and learning waits for the disk while what is served stays fresh.
    """
    trouble = ""
    daemon: Daemon | None = None
    with stop_on_signals() as stopping:
        for pause_s in _pauses():
            with ExitStack() as stack:
                try:
                    state = stack.enter_context(StateDirectory.open(config.state_dir, config.namespace))
                    daemon = Daemon(
                        config, state, stopping=stopping, start=start, once=once, stack=stack, disk_trouble=trouble
                    )
                    try:
                        daemon.start()
                    except (SourceUnavailable, SinkUnavailable):
                        if stopping.is_set():
                            return 0  # asked to stop while a server was waited for
                        raise
                    daemon.wait()
                    daemon.shut_down()
                    return 0
                except DiskTrouble as error:
                    # At the first start it is a mistake that somebody is there to see.
                    if once or stopping.asked or daemon is None or not daemon.has_offsets:
                        raise
                    trouble, start = str(error), None
            log.warning("back to the last checkpoint, for the disk takes no more", error=trouble)
            stopping.clear()
            if stopping.asked or stopping.wait(pause_s):
                return 0
    raise AssertionError("there is always another pause")


def _pauses() -> Iterator[float]:
    """Seconds between two lives: soon, and then ever more patiently."""
    yield from (0.5, 1.0, 2.0, 4.0, 8.0)
    yield from repeat(15.0)


class Stopping(threading.Event):
    """Set when everything has to end: `asked` by a signal, or because a thread failed."""

    asked = False


@contextmanager
def stop_on_signals() -> Iterator[Stopping]:
    """An event that SIGTERM and SIGINT set; the handlers before are put back."""
    stopping = Stopping()

    def stop(signum: int, _frame: FrameType | None) -> None:
        if stopping.asked:  # asked twice: do not wait for the phase; a restart does it again
            raise KeyboardInterrupt
        log.info("stopping after the step under way", signal=signal.Signals(signum).name)
        stopping.asked = True
        stopping.set()

    before = {signum: signal.signal(signum, stop) for signum in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stopping
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


class Daemon:
    """Owns the threads; every resource it opens is closed by `stack`, last opened first."""

    def __init__(
        self,
        config: Config,
        state: StateDirectory,
        *,
        stopping: threading.Event,
        start: str | None,
        once: bool,
        stack: ExitStack,
        disk_trouble: str = "",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.config = config
        self.state = state
        self.stopping = stopping
        self.start_from = start
        self.once = once
        self.stack = stack
        self.disk_trouble = disk_trouble
        """Why the last life ended; empty for the first."""
        self.clock = clock
        self.metrics = Metrics(CollectorRegistry())
        self.live = Live(user_ids(config), most_new=config.events.max_new_ids)
        self.commands = CommandQueue()
        self.awaited = ""
        """The server that start is waiting for."""
        self._failure: BaseException | None = None
        self._engine: Engine | None = None

    @property
    def has_offsets(self) -> bool:
        """Whether there is a checkpoint that tells where in Kafka to go on from."""
        return self._engine is not None and bool(self._engine.kafka_offsets)

    def start(self) -> None:
        """Reaches Kafka and Redis, restores the last checkpoint, and starts the threads."""
        config, metrics = self.config, self.metrics
        engine = self._engine = Engine(config=config, state=self.state, metrics=metrics, clock=self.clock)
        source = kafka_source(config)
        self.stack.callback(source.close)
        sink = self._patient("redis", lambda: redis_sink(config), SinkUnavailable)  # a Cluster is asked for its nodes
        self.stack.callback(sink.close)
        self.fast_path = FastPath(live=self.live, sink=sink, metrics=metrics, clock=self.clock)
        publisher = Publisher(
            sink=sink,
            live=self.live,
            fast_path=self.fast_path,
            store=engine.store,
            config=config.publish,
            metrics=metrics,
            clock=self.clock,
            writer=self.state.identity.state_id,
        )
        engine.served.publisher = publisher
        self.learning = Learning(
            engine=engine,
            publisher=publisher,
            fast_path=self.fast_path,
            commands=self.commands,
            stopping=self.stopping,
            disk=DiskWatch(self.state.path, metrics, trouble=self.disk_trouble),
        )
        # HTTP first: while servers are waited for, /healthz answers and /readyz says what is missing.
        self.app = DaemonApp(
            config=config,
            engine=engine,
            live=self.live,
            learning=self.learning,
            commands=self.commands,
            clock=self.clock,
            awaited=lambda: self.awaited,
        )
        http = HttpServer(
            build_app(self.app, metrics, namespace=config.namespace, token_file=config.http.token_file),
            config.http,
            address_file=self.state.path / "http.json",
        )
        self.stack.enter_context(http)
        log.info("listening", address="http://{}:{}".format(*http.address))

        interrupted = engine.interrupted()
        positions = self._patient("kafka", lambda: self._positions(engine, source, interrupted), SourceUnavailable)
        if self.once:
            publisher.claim()  # else learning does, which need not wait for Redis
        letters = dead_letters(config, on_written=metrics.dead_letters.inc)
        self.stack.callback(letters.close)
        phases: Queue[ClosedPhase] = Queue(maxsize=1)
        self.intake = Intake(
            config=config,
            source=source,
            decoder=event_decoder(config),
            fast_path=self.fast_path,
            dead_letters=letters,
            phases=phases,
            metrics=metrics,
            clock=self.clock,
            positions=positions,
            maxima=engine.maxima,
            resume_to=None if interrupted is None else interrupted.end,
            stop_at=source.end() if self.once else None,
            recognise=lambda identity: self.state.bind(identity.cluster_id, identity.topic_ids),
        )
        self.learning.connect(self.intake, phases, letters, interrupted)
        self._threads = [
            threading.Thread(target=self._guarded, args=(body,), name=name, daemon=True)
            for name, body in (("learning", self.learning.run), ("intake", self.intake.run))
        ]
        for thread in self._threads:
            thread.start()

    def wait(self) -> None:
        """Until a signal, a failure of a thread, or the end of `--once`."""
        while not self.stopping.wait(0.2):
            if self.once and self.learning.idle_after(self.intake.finished):
                return

    def shut_down(self) -> None:
        """Stops the threads in the order in which they feed each other. Raises what made a thread fail."""
        learning, intake = self._threads
        # 1. Learning, which finishes the phase under way: nothing depends on it, but the next start has less to do.
        self.stopping.set()
        learning.join()
        # 2. Intake last, since a version is published with its help.
        self.intake.stop()
        intake.join()
        if self._failure is not None:
            raise self._failure

    def _guarded(self, body: Callable[[], None]) -> None:
        try:
            body()
        except BaseException as error:  # noqa: BLE001 - the main thread raises it again, as the program's end
            self._failure = self._failure or error
            self.intake.stop()
            self.stopping.set()

    def _patient(self, what: str, body: Callable[[], T], *errors: type[Exception]) -> T:
        if self.once:
            return body()
        self.awaited = what.capitalize()
        reached = patiently(what, *errors, stopping=self.stopping)(body)
        self.awaited = ""
        return reached

    def _positions(self, engine: Engine, source: Source, interrupted: Intent | None) -> dict[TopicPartition, int]:
        """Where to read on: the checkpoint's offsets, else where a phase that a crash cut short began, else the
        beginning or what `--from` says."""
        identity = source.identity()
        beginning = source.beginning()
        known = by_partition(engine.offsets)
        if known and self.start_from is not None and not engine.is_backfill:
            raise ConfigError(
                "--from is only for a state directory without a checkpoint.",
                hint="This one goes on from its own offsets; leave --from out, or choose another state_dir.",
            )
        if engine.is_backfill:
            if self.start_from is None:
                raise ConfigError(
                    "This state directory was filled by `replay`, which knows no Kafka offsets.",
                    hint="Say where to go on: `headwater run --from TIME` with the end of the replayed files.",
                )
            known = {}
        # Only now: a state that cannot be gone on from is not bound to this cluster.
        self.state.bind(identity.cluster_id, identity.topic_ids)
        engine.cluster_id = self.state.identity.cluster_id or ""
        positions = {**beginning, **{tp: offset for tp, offset in known.items() if tp in beginning}}
        if interrupted is not None:
            started = by_partition(interrupted.start)
            return positions | {tp: offset for tp, offset in started.items() if tp in beginning}
        if self.start_from is not None:
            positions |= {
                tp: offset
                for tp, offset in _start(source, self.start_from).items()
                if tp[0] == self.config.kafka.interactions_topic
            }
        return positions


def _start(source: Source, start: str) -> Mapping[TopicPartition, int]:
    if start == "earliest":
        return source.beginning()
    if start == "latest":
        return source.end()
    try:
        at = datetime.fromisoformat(start)
    except ValueError:
        raise ConfigError(
            f"--from {start} is no time.", hint="Say earliest, latest, or a time like 2026-01-02T03:04:05Z."
        ) from None
    if at.tzinfo is None:
        raise ConfigError(f"--from {start} has no time zone.", hint="Add one, for example a final Z for UTC.")
    return source.offsets_at(at.timestamp())
