"""Topics in memory and a source that reads them: for tests, simulations and replays that need no broker.

Behaves as `KafkaSource` does, and is under the same contract tests: positions, truncation, partitions added later, a
broker that is away, and offsets that hold no record.
"""

from __future__ import annotations

import threading
import uuid
import zlib
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from streams.events import Record
from streams.source_types import DataLost, Identity, SourceUnavailable, TopicMissing, TopicPartition


@dataclass
class _Log:
    """One partition: its records, whose offsets rise but may have gaps, and where it begins and ends."""

    records: list[Record] = field(default_factory=list)
    beginning: int = 0
    end: int = 0


class MemoryTopics:
    """What a broker is to Kafka: topics that producers append to and any number of sources read; thread-safe."""

    def __init__(self, *, cluster_id: str = "memory") -> None:
        self.cluster_id = cluster_id
        self.changed = threading.Condition()
        self._topics: dict[str, list[_Log]] = {}
        self._ids: dict[str, str] = {}
        self._away = False

    def create(self, topic: str, *, partitions: int = 1) -> None:
        """A new topic; raises `ValueError` if there is one of this name."""
        with self.changed:
            if topic in self._topics:
                raise ValueError(f"topic {topic!r} exists already")
            self._topics[topic] = [_Log() for _ in range(partitions)]
            self._ids[topic] = str(uuid.uuid4())

    def delete(self, topic: str) -> None:
        """Forget the topic and its records; raises `TopicMissing`."""
        with self.changed:
            self._logs(topic)
            del self._topics[topic], self._ids[topic]

    def add_partitions(self, topic: str, more: int) -> None:
        """Empty partitions after those there are; raises `TopicMissing`."""
        with self.changed:
            self._logs(topic).extend(_Log() for _ in range(more))

    def append(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        timestamp_ms: int = 0,
        *,
        headers: Sequence[tuple[str, bytes]] = (),
        partition: int | None = None,
    ) -> tuple[int, int]:
        """Add a record and return its partition and offset; without `partition`, the key decides.

        Raises `TopicMissing`.
        """
        with self.changed:
            logs = self._logs(topic)
            number = zlib.crc32(key or b"") % len(logs) if partition is None else partition
            log = logs[number]
            offset = log.end
            log.records.append(Record(topic, number, offset, timestamp_ms, key, value, tuple(headers)))
            log.end += 1
            self.changed.notify_all()
            return number, offset

    def skip(self, topic: str, *, partition: int = 0, count: int = 1) -> None:
        """Use up offsets without a record, as transaction markers and compaction do."""
        with self.changed:
            self._logs(topic)[partition].end += count
            self.changed.notify_all()

    def truncate(self, topic: str, *, partition: int = 0, before: int) -> None:
        """Drop the records before this offset, as retention does."""
        with self.changed:
            log = self._logs(topic)[partition]
            log.beginning = max(log.beginning, before)
            log.records = [record for record in log.records if record.offset >= before]

    def go_away(self) -> None:
        """Every use by a source raises `SourceUnavailable` until `come_back`."""
        self._away = True

    def come_back(self) -> None:
        self._away = False

    def check(self) -> None:
        if self._away:
            raise SourceUnavailable("the broker in memory is away")

    def topic_id(self, topic: str) -> str:
        self._logs(topic)
        return self._ids[topic]

    def partitions(self, topic: str) -> list[int]:
        return list(range(len(self._logs(topic))))

    def bounds(self, tp: TopicPartition) -> tuple[int, int]:
        """The first offset there is and the next to be written."""
        log = self._logs(tp[0])[tp[1]]
        return log.beginning, log.end

    def records_from(self, tp: TopicPartition, offset: int, limit: int) -> list[Record]:
        records = self._logs(tp[0])[tp[1]].records
        start = bisect_left(records, offset, key=lambda record: record.offset)
        return records[start : start + limit]

    def offset_at(self, tp: TopicPartition, time_ms: int) -> int:
        log = self._logs(tp[0])[tp[1]]
        return next((record.offset for record in log.records if record.timestamp_ms >= time_ms), log.end)

    def _logs(self, topic: str) -> list[_Log]:
        if topic not in self._topics:
            raise TopicMissing(topic)
        return self._topics[topic]


class MemorySource:
    """Reads some topics of a `MemoryTopics`. Raises what `KafkaSource` raises, where it does."""

    def __init__(self, topics: MemoryTopics, names: Sequence[str], *, max_poll_records: int = 5000) -> None:
        self._topics = topics
        self._names = list(names)
        self._max_poll_records = max_poll_records
        self._positions: dict[TopicPartition, int] = {}
        self._ends: dict[TopicPartition, int] = {}
        self._paused: set[TopicPartition] = set()
        self.committed: dict[TopicPartition, int] = {}
        """What `commit` was last told, for tests to look at."""

    def identity(self) -> Identity:
        with self._reachable():
            ids = {name: self._topics.topic_id(name) for name in self._names}
            return Identity(cluster_id=self._topics.cluster_id, topic_ids=ids)

    def partitions(self) -> dict[str, list[int]]:
        with self._reachable():
            return {name: self._topics.partitions(name) for name in self._names}

    def beginning(self) -> dict[TopicPartition, int]:
        with self._reachable():
            return {tp: self._topics.bounds(tp)[0] for tp in self._all()}

    def end(self) -> dict[TopicPartition, int]:
        with self._reachable():
            return {tp: self._topics.bounds(tp)[1] for tp in self._all()}

    def offsets_at(self, time_s: float) -> dict[TopicPartition, int]:
        with self._reachable():
            return {tp: self._topics.offset_at(tp, int(time_s * 1000)) for tp in self._all()}

    def assign(self, positions: Mapping[TopicPartition, int]) -> None:
        with self._reachable():
            for tp, offset in positions.items():
                if self._positions.get(tp) != offset:
                    self._positions[tp] = offset
                    self._ends.pop(tp, None)

    def poll(self, timeout_s: float) -> list[Record]:
        with self._reachable():
            records = self._fetch()
            if not records and timeout_s > 0 and self._topics.changed.wait(timeout_s):
                self._topics.check()
                records = self._fetch()
            return records

    def caught_up(self, tp: TopicPartition) -> bool:
        return tp in self._ends and self._positions[tp] >= self._ends[tp]

    def position(self, tp: TopicPartition) -> int:
        return self._positions[tp]

    def pause(self, tps: Iterable[TopicPartition]) -> None:
        self._paused.update(tps)

    def resume(self, tps: Iterable[TopicPartition]) -> None:
        self._paused.difference_update(tps)

    def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        self.committed.update(offsets)

    def close(self) -> None:
        self._positions.clear()

    def _fetch(self) -> list[Record]:
        found: list[Record] = []
        for tp in sorted(self._positions.keys() - self._paused):
            beginning, end = self._topics.bounds(tp)
            position = self._positions[tp]
            if not beginning <= position <= end:
                if found:
                    break  # Told at the next poll: what was read before must not be lost.
                raise DataLost(tp, position, beginning, end)
            self._ends[tp] = end
            room = self._max_poll_records - len(found)
            records = self._topics.records_from(tp, position, room)
            found += records
            if len(records) < room:
                self._positions[tp] = end
            elif records:
                self._positions[tp] = records[-1].offset + 1
        return found

    def _all(self) -> list[TopicPartition]:
        return [(name, number) for name in self._names for number in self._topics.partitions(name)]

    def _reachable(self) -> threading.Condition:
        self._topics.check()
        return self._topics.changed
