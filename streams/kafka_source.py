"""Reads the event topics from Kafka: manual assignment, read committed, positions kept by the caller.

No consumer group takes part in reading. Where to read from is the checkpoint's business; `commit` tells the group's
coordinator for lag tools only. What the broker cannot do is said aloud: see `streams/source_types.py` for the errors.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from kafka import KafkaConsumer
from kafka import TopicPartition as ClientPartition
from kafka.errors import LogTruncationError, OffsetOutOfRangeError

from streams.events import Record
from streams.kafka_commits import GroupCommitter
from streams.kafka_connection import connected_consumer
from streams.kafka_errors import client_settings, translated, translating
from streams.kafka_fetches import FetchWatch
from streams.source_types import DataLost, Identity, SourceDenied, SourceUnavailable, TopicMissing, TopicPartition


class KafkaSource:
    """The records of some topics, in offset order per partition.

    Connects when first used, and again by itself when the broker returns. `assign`, `poll`, `pause`, `resume`,
    `position` and `caught_up` belong to one thread; `commit` may be called from any.

    Args:
        bootstrap_servers: `host:port`, several separated by commas, or a list of them.
        topics: those to read; each must exist.
        group_id: the consumer group that `commit` writes to; None: `commit` does nothing.
        security: `security_protocol`, `sasl_*`, `ssl_*` as kafka-python names them.
        metadata_refresh_s: how soon added partitions and moved leaders are noticed.
        request_timeout_s: how long a broker may take to answer before it counts as away.
        fetch_max_bytes, max_partition_fetch_bytes: what one fetch may bring, in all and of one partition.
        max_poll_records: at most so many records are returned by one `poll`; many more make it slower, not faster.
    """

    def __init__(
        self,
        *,
        bootstrap_servers: str | Sequence[str],
        topics: Sequence[str],
        group_id: str | None = None,
        client_id: str = "headwater",
        security: Mapping[str, Any] | None = None,
        metadata_refresh_s: float = 5.0,
        request_timeout_s: float = 10.0,
        fetch_max_bytes: int = 32 * 1024 * 1024,
        max_partition_fetch_bytes: int = 4 * 1024 * 1024,
        max_poll_records: int = 1000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        common = {
            **client_settings(bootstrap_servers, security),
            "client_id": client_id,
            "request_timeout_ms": int(request_timeout_s * 1000),
            "bootstrap_timeout_ms": int(request_timeout_s * 1000),
            "reconnect_backoff_max_ms": 1000,
        }
        self._settings = {
            **common,
            "metrics_enabled": False,
            "group_id": None,  # a group would make every poll wait for its coordinator
            "enable_auto_commit": False,
            "auto_offset_reset": "none",
            "allow_auto_create_topics": False,
            "isolation_level": "read_committed",
            "metadata_max_age_ms": int(metadata_refresh_s * 1000),
            "fetch_max_wait_ms": 250,
            "fetch_max_bytes": fetch_max_bytes,
            "max_partition_fetch_bytes": max_partition_fetch_bytes,
            "max_poll_records": max_poll_records,
            # A broker sends a record larger than what a fetch may bring alone; a client that refuses to read it would
            # stand before it for ever.
            "receive_message_max_bytes": 2**31 - 1,
            # In a session the broker leaves out partitions with no news, and after a seek to the end there is none:
            # whether we are there would stay unknown.
            "enable_incremental_fetch_sessions": False,
        }
        self._topics = list(topics)
        self._timeout_ms = request_timeout_s * 1000
        self._refresh_s = metadata_refresh_s
        self._clock = clock
        self._refreshed_at = float("-inf")
        self._consumer: KafkaConsumer | None = None
        self._watch: FetchWatch | None = None
        self._commits = GroupCommitter(group_id=group_id, settings=common) if group_id else None

    def identity(self) -> Identity:
        """Which cluster and topics these are, asked anew. Raises `SourceUnavailable`, `TopicMissing`."""
        self._refresh()
        cluster: Any = self._connect()[0]._cluster
        ids = {topic: cluster.topic_id(topic) for topic in self._topics}
        return Identity(
            cluster_id=str(cluster.cluster_id or "unknown"),
            topic_ids={topic: str(uuid) if uuid is not None else topic for topic, uuid in ids.items()},
        )

    def partitions(self) -> dict[str, list[int]]:
        """The partitions of each topic, no older than `metadata_refresh_s`.

        Raises `SourceUnavailable`, `TopicMissing`.
        """
        if self._clock() - self._refreshed_at >= self._refresh_s:
            self._refresh()
        cluster: Any = self._connect()[0]._cluster
        return {topic: sorted(cluster.partitions_for_topic(topic) or ()) for topic in self._topics}

    def beginning(self) -> dict[TopicPartition, int]:
        """The first offset there is, of every partition. Raises `SourceUnavailable`, `TopicMissing`."""
        return self._beginning(self._all_partitions())

    def end(self) -> dict[TopicPartition, int]:
        """The next offset a read-committed reader can reach, of every partition; before an open transaction, that is
        its first record. Raises `SourceUnavailable`, `TopicMissing`."""
        return self._end(self._all_partitions())

    def offsets_at(self, time_s: float) -> dict[TopicPartition, int]:
        """The first offset whose timestamp is `time_s` (epoch seconds) or later, of every partition; its end where all
        are earlier. Raises `SourceUnavailable`, `TopicMissing`."""
        tps = self._all_partitions()
        consumer, _ = self._connect()
        asked = {ClientPartition(*tp): max(0, int(time_s * 1000)) for tp in tps}
        with translating("finding offsets by time"):
            found = consumer.offsets_for_times(asked, timeout_ms=self._timeout_ms)
        # Timestamp -1 is how a broker says that no record is so late.
        offsets = {
            (tp.topic, tp.partition): at.offset for tp, at in found.items() if at is not None and at.timestamp >= 0
        }
        late = [tp for tp in tps if tp not in offsets]
        return {**offsets, **self._end(late)}

    def assign(self, positions: Mapping[TopicPartition, int]) -> None:
        """Read these partitions from these offsets on, besides those already assigned.

        A partition assigned before is moved to the offset given here; one not named keeps its position.
        Raises `SourceUnavailable`.
        """
        consumer, watch = self._connect()
        with translating("assigning partitions"):
            wanted = {ClientPartition(*tp) for tp in positions} | set(consumer.assignment())
            consumer.assign(sorted(wanted))
            for tp, offset in positions.items():
                if watch.position(tp) != offset:
                    watch.forget(tp)
                    consumer.seek(ClientPartition(*tp), offset)

    def poll(self, timeout_s: float) -> list[Record]:
        """The next records, waiting up to `timeout_s` seconds for the first; empty when there are none.

        Raises `SourceUnavailable` when the broker of a partition is away, `TopicMissing` when a topic was deleted and
        `DataLost` when a wanted offset is gone (again at every call, until `assign` moves on).
        """
        consumer, watch = self._connect()
        try:
            with translating("reading"):
                batches = consumer.poll(timeout_ms=max(0, int(timeout_s * 1000)))
        except SourceUnavailable as error:
            self._raise_if_lost(error.__cause__)
            raise
        records = [
            Record(r.topic, r.partition, r.offset, r.timestamp, r.key, r.value, _headers(r.headers))
            for batch in batches.values()
            for r in batch
        ]
        if not records:
            self._raise_if_stuck(consumer, watch)
        return records

    def caught_up(self, tp: TopicPartition) -> bool:
        """Whether all that a read-committed reader can see of the partition was returned, as of its last fetch."""
        watch = self._connect()[1]
        position, end = watch.position(tp), watch.ends.get(tp)
        return position is not None and end is not None and position >= end

    def position(self, tp: TopicPartition) -> int:
        """The offset of the next record to return; moves past markers and compacted records too.

        Raises `KeyError` for a partition that is not assigned.
        """
        position = self._connect()[1].position(tp)
        if position is None:
            raise KeyError(tp)
        return position

    def pause(self, tps: Iterable[TopicPartition]) -> None:
        """Return nothing of these partitions until `resume`."""
        self._connect()[0].pause(*(ClientPartition(*tp) for tp in tps))

    def resume(self, tps: Iterable[TopicPartition]) -> None:
        """Undo `pause`."""
        self._connect()[0].resume(*(ClientPartition(*tp) for tp in tps))

    def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Tell the consumer group, for lag tools only, in the background; logs failures and never raises."""
        if self._commits is not None:
            self._commits.commit(offsets)

    def close(self) -> None:
        """Send the last commit and let go of the broker; never raises."""
        if self._commits is not None:
            self._commits.close()
        consumer, self._consumer, self._watch = self._consumer, None, None
        if consumer is not None:
            with contextlib.suppress(Exception):
                consumer.close(autocommit=False, timeout_ms=1000)

    def _connect(self) -> tuple[KafkaConsumer, FetchWatch]:
        if self._consumer is None or self._watch is None:
            consumer = connected_consumer(self._settings)
            self._consumer, self._watch = consumer, FetchWatch(consumer)
        return self._consumer, self._watch

    def _refresh(self) -> None:
        """Ask for the topics' partitions and leaders now."""
        consumer, watch = self._connect()
        with translating("asking for its topics"):
            watch.refresh(self._topics, timeout_ms=self._timeout_ms)
        cluster: Any = consumer._cluster
        for topic in self._topics:
            if topic in cluster.unauthorized_topics:
                raise SourceDenied(f"we may not read topic {topic!r}; grant DESCRIBE and READ on it")
            if not cluster.partitions_for_topic(topic):
                raise TopicMissing(topic)
        self._refreshed_at = self._clock()

    def _all_partitions(self) -> list[TopicPartition]:
        return [(topic, partition) for topic, numbers in self.partitions().items() for partition in numbers]

    def _beginning(self, tps: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        consumer, _ = self._connect()
        with translating("asking where logs begin"):
            found = consumer.beginning_offsets([ClientPartition(*tp) for tp in tps], timeout_ms=self._timeout_ms)
        return {(tp.topic, tp.partition): offset for tp, offset in found.items()}

    def _end(self, tps: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        if not tps:
            return {}
        consumer, watch = self._connect()
        with translating("asking where logs end"):
            listed = consumer.end_offsets([ClientPartition(*tp) for tp in tps], timeout_ms=self._timeout_ms)
            ends = {(tp.topic, tp.partition): offset for tp, offset in listed.items()}
            probed = watch.probe_ends(ends, timeout_ms=self._timeout_ms)
        return {tp: max(offset, probed.get(tp, offset)) for tp, offset in ends.items()}

    def _raise_if_lost(self, cause: BaseException | None) -> None:
        if isinstance(cause, OffsetOutOfRangeError):
            lost = cause.args[0]
        elif isinstance(cause, LogTruncationError):
            lost = {tp: self.position((tp.topic, tp.partition)) for tp in cause.divergent_offsets}
        else:
            return
        tp, wanted = next(iter(lost.items()))
        raise self._lost((tp.topic, tp.partition), wanted) from cause

    def _lost(self, tp: TopicPartition, wanted: int) -> DataLost:
        return DataLost(tp, wanted, self._beginning([tp])[tp], self._end([tp])[tp])

    def _raise_if_stuck(self, consumer: KafkaConsumer, watch: FetchWatch) -> None:
        """Nothing came: because there is nothing, or because it cannot come?"""
        reading = {(tp.topic, tp.partition) for tp in set(consumer.assignment()) - set(consumer.paused())}
        failure = watch.failure(reading)
        if failure is not None:
            raise translated(failure, "reading") from failure
        homeless = sorted(tp for tp in reading if watch.leader(tp) is None)
        if homeless or watch.vanished & reading:
            self._refresh()  # raises TopicMissing when that is why
            homeless = [tp for tp in homeless if watch.leader(tp) is None]
            if homeless:
                topic, partition = homeless[0]
                raise SourceUnavailable(f"no broker leads partition {partition} of {topic!r} now")
        for tp in reading & watch.beyond.keys():
            wanted = watch.beyond[tp]
            # A new leader may lag behind for a moment; what it lists as its end is held back until it does not.
            if self._end([tp])[tp] < wanted:
                raise self._lost(tp, wanted)


def _headers(headers: Iterable[tuple[str, bytes | None]]) -> tuple[tuple[str, bytes], ...]:
    return tuple((key, value if value is not None else b"") for key, value in headers) if headers else ()
