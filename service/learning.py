"""Learning: the thread that runs phases one after another, and between them carries out verbs and mends Redis."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from queue import Empty, Queue

import structlog

from service.arrivals import Arrival, ClosedPhase, Offsets
from service.commands import CommandQueue
from service.disk import DiskWatch
from service.engine import Engine
from service.errors import HeadwaterError
from service.fast_path import FastPath
from service.id_limits import TOO_MANY_IDS, letter_of
from service.intake import DeadLetters, Intake
from service.intent import Intent
from service.interventions import carry_out, reconcile, roll_back_below_floor
from service.live import SINK_TROUBLE
from service.patience import patiently
from service.phase import run_phase
from service.publication import PublicationError, Publisher
from streams.source_types import SourceUnavailable

log = structlog.get_logger(__name__)

TURN_S = 0.1
"""Longest wait for a phase before verbs and Redis are looked after."""
MEND_S = 2.0
"""How often a Redis that was away is tried."""
WATCH_S = 5.0
"""How often it is checked that no other daemon has claimed the namespace, and that Redis has kept what it was given."""


class Learning:
    """Takes closed phases from intake's queue. It alone uses the engine."""

    def __init__(
        self,
        *,
        engine: Engine,
        publisher: Publisher,
        fast_path: FastPath,
        commands: CommandQueue,
        stopping: threading.Event,
        disk: DiskWatch,
        ticks: Callable[[], float] = time.monotonic,
    ) -> None:
        """`ticks` gives seconds that never jump: the clock of the day may be set while the daemon runs."""
        self._engine = engine
        self._publisher = publisher
        self._fast_path = fast_path
        self._commands = commands
        self._stopping = stopping
        self._reconciled = False
        self._disk = disk
        self._ticks = ticks
        self._watched = self._mended = float("-inf")
        self.redis_trouble = ""
        """Why the served version is not in Redis, for `/readyz`; empty if it is."""

    @property
    def disk_trouble(self) -> str:
        """Why learning waits for the disk, for `/status`; empty if it does not."""
        return self._disk.trouble

    def connect(
        self, intake: Intake, phases: Queue[ClosedPhase], letters: DeadLetters, interrupted: Intent | None
    ) -> None:
        """What it takes phases from, once Kafka is there; `interrupted` is carried out before any other phase."""
        self._intake = intake
        self._phases = phases
        self._letters = letters
        self._interrupted = interrupted
        self._engine.on_learned = self._learned
        self._engine.waiting = intake.waiting
        self._engine.on_over_limit = self._write_letters

    def idle_after(self, finished: threading.Event) -> bool:
        """Whether, `finished` being set, there is nothing left to learn or publish."""
        published = self._reconciled and not self._engine.served.unpublished and not self._fast_path.sink_lost
        # A phase is unfinished from when intake puts it until it has been run: no moment in between looks idle.
        return finished.is_set() and self._phases.unfinished_tasks == 0 and published

    def run(self) -> None:
        """Runs phases until stopped; the one under way is finished."""
        while not self._stopping.is_set():
            self._look_after_redis()
            self._carry_out_verbs()
            roll_back_below_floor(self._engine)
            if not self._disk.ready(room=self._engine.checkpoint_size):
                self._stopping.wait(TURN_S)
                continue
            try:
                phase = self._phases.get(timeout=TURN_S)
            except Empty:
                continue
            if self._stopping.is_set():
                return  # the next start does it again
            try:
                self._run_phase(phase)
            except SourceUnavailable:  # stopped while dead letters waited for Kafka: the next start does it again
                if self._stopping.is_set():
                    return
                raise
            self._phases.task_done()

    def _run_phase(self, phase: ClosedPhase) -> None:
        # Dead letters are on the broker before the offsets that pass them are in a checkpoint.
        self._flush_letters()
        interrupted, self._interrupted = self._interrupted, None
        if interrupted is not None and phase.closed_by == "resumed":
            # Mending Redis may have taken a number since the start, above the one that was allotted before the crash.
            run_phase(phase, self._engine, resumed=self._engine.numbered_anew(interrupted))
        else:
            run_phase(phase, self._engine)

    def _write_letters(self, over: Sequence[Arrival]) -> None:
        """On the broker too before the checkpoint whose phase left them out."""
        log.warning("records bring too many ids and become dead letters", records=len(over))
        for arrival in over:
            record, detail = letter_of(arrival)
            self._letters.send(record, TOO_MANY_IDS, detail)
        self._flush_letters()

    def _flush_letters(self) -> None:
        """Waits for a Kafka that is away, as intake does, rather than end the daemon."""
        patiently("kafka", SourceUnavailable, stopping=self._stopping)(self._letters.flush)

    def _learned(self, learned: Offsets) -> None:
        self._fast_path.forget(learned)
        self._intake.commit(learned)

    def _carry_out_verbs(self) -> None:
        while (command := self._commands.next()) is not None:
            try:
                command.answer.set_result(carry_out(self._engine, command.name, command.args))
            except HeadwaterError as error:
                command.answer.set_exception(error)
            except BaseException as error:
                command.answer.set_exception(error)  # whoever asked is told, whatever becomes of the daemon
                raise

    def _look_after_redis(self) -> None:
        """At start, after an absence, and every so often: what the disk says is served is in Redis."""
        now = self._ticks()
        lost = self._fast_path.sink_lost or self._engine.served.unpublished or not self._reconciled
        if now - (self._mended if lost else self._watched) < (MEND_S if lost else WATCH_S):
            return
        self._mended = self._watched = now
        try:
            if not self._publisher.epoch:
                self._publisher.claim()
            if not self._publisher.sink.still_mine():
                raise HeadwaterError(
                    "Another daemon has taken this namespace over, so this one stops.",
                    hint="Run one daemon for each namespace; give this one a namespace and state_dir of its own.",
                )
            done = reconcile(self._engine)
            if self._fast_path.sink_lost:  # that is, if it was not replaced by a newer version just now
                self._fast_path.rewrite()
        except (*SINK_TROUBLE, PublicationError) as error:
            self.redis_trouble = str(error)
            self._engine.metrics.redis_up.set(0)
            return
        self._reconciled = True
        self.redis_trouble = ""
        self._engine.metrics.redis_up.set(1)
        if done:
            log.warning("redis was behind the disk", done=done)
