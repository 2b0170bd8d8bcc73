"""Intake: the thread that always polls. It decodes, serves the fast path, merges partitions and closes phases.

It never waits for learning: what lies past a closed phase stays in the merge's buffers, and when those are full the
fullest partitions are paused. It alone talks to the source, so commits to the consumer group are handed to it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from queue import Empty, Full, Queue
from typing import Protocol

import structlog

from service.arrivals import Arrival, ClosedPhase, Offsets
from service.config import Config
from service.errors import DataTruncated
from service.fast_path import FastPath
from service.id_limits import IdLimits, to_keep
from service.metrics import Metrics
from service.patience import patiently
from service.phase_builder import Entry, PhaseBuilder
from streams.events import DecodeError, EventDecoder, Interaction, Item, Record, User
from streams.phases import PartitionMerge
from streams.source_types import DataLost, Identity, SourceUnavailable, TopicPartition

log = structlog.get_logger(__name__)

POLL_S = 0.05
"""Longest wait for records: half of what a click waits on average before the fast path sees it."""
REFRESH_S = 5.0
"""How often new partitions and the lag are looked for."""


class Source(Protocol):
    """Where records come from: Kafka, or memory. Raises SourceUnavailable while it cannot be reached."""

    def identity(self) -> Identity: ...
    def partitions(self) -> dict[str, list[int]]: ...
    def beginning(self) -> dict[TopicPartition, int]: ...
    def end(self) -> dict[TopicPartition, int]: ...
    def offsets_at(self, time_s: float) -> dict[TopicPartition, int]: ...
    def assign(self, positions: Mapping[TopicPartition, int]) -> None: ...
    def poll(self, timeout_s: float) -> list[Record]: ...
    def caught_up(self, tp: TopicPartition) -> bool: ...
    def position(self, tp: TopicPartition) -> int: ...
    def pause(self, tps: list[TopicPartition]) -> None: ...
    def resume(self, tps: list[TopicPartition]) -> None: ...
    def commit(self, offsets: Mapping[TopicPartition, int]) -> None: ...
    def close(self) -> None: ...


class DeadLetters(Protocol):
    """Where records go that cannot be used."""

    def send(self, record: Record, reason: str, detail: str) -> None: ...
    def flush(self) -> None: ...


class Intake:
    """Reads from `positions` on; closed phases go to `phases`, a bounded queue that learning takes them from."""

    def __init__(
        self,
        *,
        config: Config,
        source: Source,
        decoder: EventDecoder,
        fast_path: FastPath,
        dead_letters: DeadLetters,
        phases: Queue[ClosedPhase],
        metrics: Metrics,
        clock: Callable[[], float],
        positions: Mapping[TopicPartition, int],
        maxima: Mapping[TopicPartition, float],
        resume_to: Offsets | None = None,
        stop_at: Mapping[TopicPartition, int] | None = None,
        ticks: Callable[[], float] = time.monotonic,
        recognise: Callable[[Identity], object] = lambda _: None,
    ) -> None:
        """`recognise` raises where cluster or topics are others than those that `positions` are of.

        `clock` stamps phases with the time of day; `ticks`, which never jumps, is what anything waits by."""
        self._config = config
        self._source = source
        self._decoder = decoder
        self._fast_path = fast_path
        self._dead_letters = dead_letters
        self._phases = phases
        self._metrics = metrics
        self._clock = clock
        self._ticks = ticks
        self._recognise = recognise
        self._builder = PhaseBuilder(config=config.phase, positions=positions, maxima=maxima, resume_to=resume_to)
        self._merge = self._new_merge(positions, maxima)
        self._after_resumed: list[tuple[TopicPartition, list[tuple[Entry, float | None]]]] = []
        """Interactions past the phase being resumed: the merge's order starts where that phase ends."""
        self._positions = dict(positions)
        self._stop_at = stop_at
        self._limits = IdLimits(config.events)
        self._content_until: dict[TopicPartition, int] = {}
        self._last_record: dict[TopicPartition, float] = {}
        self._paused: set[TopicPartition] = set()
        self._commits: Queue[Offsets] = Queue()
        self._refreshed = float("-inf")
        self._ends: Mapping[TopicPartition, int] | None = None
        """Where the partitions that are read ended at the last look; replaced, never changed."""
        self._stopping = threading.Event()
        self.finished = threading.Event()
        """With `stop_at`: everything up to it is in a closed phase."""

    def stop(self) -> None:
        """Any thread: leave the loop after this poll."""
        self._stopping.set()

    def commit(self, learned: Offsets) -> None:
        """Learning: commit these offsets to the consumer group when convenient."""
        self._commits.put(learned)

    def waiting(self, behind: Offsets) -> int | None:
        """Any thread: how many interactions lie in Kafka behind these offsets, as of the last look; None before it."""
        ends = self._ends
        if ends is None:
            return None
        reached = behind.get(self._interactions, {})
        return sum(max(0, end - reached.get(p, 0)) for (topic, p), end in ends.items() if topic == self._interactions)

    def run(self) -> None:
        """Polls until stopped. Raises DataTruncated, or whatever is beyond repair; a broker that is away is waited
        for."""
        try:
            self._run()
        finally:
            self._fast_path.end()

    def _run(self) -> None:
        patient = patiently("kafka", SourceUnavailable, stopping=self._stopping)
        step = self._begin
        while not self._stopping.is_set():
            try:
                patient(self._watched, step)
                step = self._turn
            except DataLost as lost:
                self._pass_over(lost)
            except SourceUnavailable:
                if not self._stopping.is_set():
                    raise

    def _watched(self, step: Callable[[], None]) -> None:
        try:
            step()
        except SourceUnavailable:
            self._metrics.kafka_up.set(0)
            self._fast_path.apply([])  # a version that is being published does not wait for Kafka
            raise
        self._metrics.kafka_up.set(1)

    def _begin(self) -> None:
        """Seeks, and notes how far items and users reach now: interactions wait until those are read."""
        self._source.assign(self._positions)
        end = self._source.end()
        content = {tp for tp in self._positions if tp[0] != self._interactions}
        self._content_until = {tp: end[tp] for tp in content if end.get(tp, 0) > self._positions[tp]}
        self._last_record = dict.fromkeys(self._positions, self._ticks())

    def _new_merge(
        self, partitions: Iterable[TopicPartition], maxima: Mapping[TopicPartition, float]
    ) -> PartitionMerge[Entry]:
        return PartitionMerge([tp for tp in partitions if tp[0] == self._interactions], maxima=maxima)

    @property
    def _interactions(self) -> str:
        return self._config.kafka.interactions_topic

    def _turn(self) -> None:
        records = self._source.poll(POLL_S)
        now = self._ticks()
        self._fast_path.apply(self._receive(records, now))
        self._cut(now)
        self._balance()
        self._commit()
        if now - self._refreshed > REFRESH_S:
            self._refresh()
            self._refreshed = now

    @property
    def _may_be_too_many(self) -> bool:
        """Whether a phase may find that a record of now brings one id too many: then its bytes are kept until then."""
        config = self._config
        users, items = self._fast_path.known_ids
        unlearned = config.kafka.buffer_records + 2 * config.phase.max_events
        in_reach = self._limits.totals_in_reach(users=users, items=items, coming=unlearned)
        return in_reach or self._limits.phase_in_reach(config.phase.max_events)

    def _receive(self, records: list[Record], now: float) -> list[Arrival]:
        arrivals: list[Arrival] = []
        keep = self._may_be_too_many
        interactions: dict[TopicPartition, list[tuple[Entry, float | None]]] = {}
        for record in records:
            tp = (record.topic, record.partition)
            if self._stop_at is not None and record.offset >= self._stop_at.get(tp, 0):
                continue
            self._last_record[tp] = now
            arrival = self._decode(record, keep=keep)
            if arrival is not None:
                arrivals.append(arrival)
            if record.topic == self._interactions:
                entry = Entry(record.offset, arrival)
                if self._builder.within_resumed(tp, record.offset):
                    self._builder.take(tp, entry, now)
                else:
                    interactions.setdefault(tp, []).append((entry, None if arrival is None else arrival.time))
            elif arrival is not None:
                self._builder.take_content(arrival, now)
            else:
                self._builder.pass_content(tp, record.offset)
        for tp, entries in interactions.items():
            if self._builder.resuming:
                self._after_resumed.append((tp, entries))
            else:
                self._merge.push(tp, entries)
        return arrivals

    def _decode(self, record: Record, *, keep: bool) -> Arrival | None:
        kafka = self._config.kafka
        event: Interaction | Item | User
        try:
            if record.topic == kafka.items_topic:
                event = self._decoder.item(record)
                self._metrics.items.inc()
            elif record.topic == kafka.users_topic:
                event = self._decoder.user(record)
                self._metrics.users.inc()
            else:
                event = self._decoder.interaction(record)
        except DecodeError as error:
            self._metrics.rejected.labels(reason=error.reason).inc()
            self._dead_letters.send(record, error.reason, error.detail)
            return None
        kept = to_keep(record) if keep else None
        return Arrival(record.topic, record.partition, record.offset, record.timestamp_ms / 1000, event, kept)

    def _cut(self, now: float) -> None:
        """Moves records from the merge into phases, and hands closed ones on while learning has room for them."""
        if self._content_until:
            self._content_until = {
                tp: end
                for tp, end in self._content_until.items()
                if self._source.position(tp) < end and not self._quiet(tp, now)
            }
            if self._content_until:
                return
        if self._builder.resuming:
            if not self._builder.resumed_whole({tp: self._source.position(tp) for tp in self._positions}):
                return
            if not self._hand_on(now, "resumed"):
                return
            self._merge = self._new_merge(self._positions, self._builder.maxima)
            for tp, entries in self._after_resumed:
                self._merge.push(tp, entries)
            self._after_resumed = []
        while not self._phases.full():
            reason = self._builder.closing(now, self._idle(now))
            # A phase never closes by waiting while records wait for it: a backlog is cut by count alone, whatever the
            # load.
            popped = None if reason in ("count", "window") else self._merge.pop(lambda tp: self._has_no_more(tp, now))
            if popped is not None:
                self._builder.take(*popped, now)
            elif reason is not None:
                self._hand_on(now, reason)
            else:
                break
        if self._stop_at is not None and not self.finished.is_set():
            self._finish(self._stop_at, now)

    def _finish(self, stop_at: Mapping[TopicPartition, int], now: float) -> None:
        read = all(self._source.position(tp) >= end for tp, end in stop_at.items() if tp in self._positions)
        if read and self._merge.total == 0 and (self._builder.empty or self._hand_on(now, "once")):
            self.finished.set()

    def _hand_on(self, now: float, reason: str) -> bool:
        if self._phases.full():
            return False
        # Asked after the records were read: a topic that was deleted and made again meanwhile has the same name and may
        # be longer than our offsets, which then are those of other records.
        self._recognise(self._source.identity())
        try:
            phase = self._builder.close(now=now, at=self._clock(), idle=self._idle(now), closed_by=reason)
            self._phases.put_nowait(phase)
        except Full:  # pragma: no cover - intake alone puts
            return False
        return True

    def _has_no_more(self, tp: TopicPartition, now: float) -> bool:
        """Whether the merge need not wait for this partition: nothing to read, or what there is cannot be read yet."""
        if self._stop_at is not None and self._source.position(tp) >= self._stop_at.get(tp, 0):
            return True
        return self._source.caught_up(tp) or self._quiet(tp, now)

    def _quiet(self, tp: TopicPartition, now: float) -> bool:
        # An open transaction holds a partition's records back although the log has grown.
        return tp not in self._paused and now - self._last_record.get(tp, 0.0) > self._config.kafka.partition_idle_s

    def _idle(self, now: float) -> set[TopicPartition]:
        return {tp for tp in self._positions if tp[0] == self._interactions and self._quiet(tp, now)}

    def _balance(self) -> None:
        """Pauses partitions that hold more than their share of the buffer; one that the merge waits for is never
        among them."""
        interactions = [tp for tp in self._positions if tp[0] == self._interactions]
        share = max(1, self._config.kafka.buffer_records // max(1, len(interactions)))
        full = {tp for tp in interactions if self._merge.buffered(tp) >= share}
        relieved = {tp for tp in self._paused if self._merge.buffered(tp) <= share // 2}
        if new := full - self._paused:
            self._source.pause(sorted(new))
        if relieved:
            self._source.resume(sorted(relieved))
        self._paused = (self._paused | full) - relieved
        self._metrics.paused.set(bool(self._paused))
        self._metrics.buffer_records.set(self._merge.total + self._builder.events)

    def _commit(self) -> None:
        latest = None
        while True:
            try:
                latest = self._commits.get_nowait()
            except Empty:
                break
        if latest is not None:
            self._source.commit({(topic, p): offset for topic, ps in latest.items() for p, offset in ps.items()})

    def _refresh(self) -> None:
        added = {
            (topic, partition): 0
            for topic, partitions in self._source.partitions().items()
            for partition in partitions
            if (topic, partition) not in self._positions
        }
        if added:
            log.info(
                "partitions were added and are read from their beginning", partitions=[f"{t}[{p}]" for t, p in added]
            )
            beginning = self._source.beginning()
            added = {tp: beginning.get(tp, 0) for tp in added}
            self._source.assign({**{tp: self._source.position(tp) for tp in self._positions}, **added})
            self._positions |= added  # only now: should the broker go away before, they are still to be added
            for tp, position in added.items():
                self._builder.add_partition(tp, position)
                if tp[0] == self._interactions:
                    self._merge.read([tp])
                self._last_record[tp] = self._ticks()
        self._ends = {tp: end for tp, end in self._source.end().items() if tp in self._positions}
        for (topic, partition), end in self._ends.items():
            lag = max(0, end - self._source.position((topic, partition)))
            self._metrics.consumer_lag_records.labels(topic, str(partition)).set(lag)

    def _pass_over(self, lost: DataLost) -> None:
        if lost.wanted > lost.end:
            raise DataTruncated(
                f"Kafka's log ends before what Headwater was to read next: {lost}.",
                hint="The topic was cut or made anew: start with another state_dir, and `replay` what is to be kept.",
            )
        if self._config.kafka.on_data_loss == "stop":
            raise DataTruncated(
                f"Kafka no longer has what Headwater was to read next: {lost}.",
                hint='Set [kafka] on_data_loss = "count" to go on without it.',
            )
        log.error(
            "records were lost to retention and are counted",
            partition=lost.tp,
            wanted=lost.wanted,
            first=lost.beginning,
        )
        self._positions[lost.tp] = lost.beginning
        if lost.tp[0] == self._interactions:
            self._metrics.lost.inc(lost.beginning - lost.wanted)
            self._builder.lose(lost.tp, lost.wanted, lost.beginning)
        self._source.assign(
            {tp: lost.beginning if tp == lost.tp else self._source.position(tp) for tp in self._positions}
        )
