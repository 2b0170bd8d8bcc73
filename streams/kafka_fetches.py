"""What the Kafka consumer knows from its fetches and keeps to itself.

The client's public side gives records and little more: it tells neither where a read-committed reader's log ends, nor
that fetches fail. This file looks at each fetch as it comes in. It relies on the client's inner names (kafka-python 3.0
to below 4, as pyproject.toml asks); the contract tests fail if one of them changes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kafka import KafkaConsumer
from kafka import TopicPartition as ClientPartition
from kafka.errors import Cancelled, UnknownTopicOrPartitionError
from kafka.protocol.consumer import FetchRequest, IsolationLevel

from streams.source_types import SourceUnavailable, TopicPartition

_NO_SESSION = (0, -1)  # session id and epoch of a fetch outside any incremental session
_PROBE_ATTEMPTS = 3
_MAX_FETCH_VERSION = 12  # the last one that names topics instead of their ids


class FetchWatch:
    """Watches one consumer's fetches: ends of partitions, failing brokers, vanished topics.

    Ends are the next offset a read-committed reader can reach: the last stable offset, which stands before the first
    open transaction, or the high watermark where the broker gives none.
    """

    def __init__(self, consumer: KafkaConsumer) -> None:
        self._fetcher: Any = consumer._fetcher
        self._manager: Any = consumer._client._manager
        self._subscription: Any = consumer._subscription
        self.ends: dict[TopicPartition, int] = {}
        self.beyond: dict[TopicPartition, int] = {}
        """Partitions whose last fetch asked for more than the log holds, with the offset asked for."""
        self.vanished: set[TopicPartition] = set()
        """Partitions that their broker no longer knows."""
        self._failures: dict[int, Exception] = {}

        # These run on the client's I/O thread or inside poll(); single dict and set operations need no lock.
        self._parse = self._fetcher._parse_fetched_data
        self._on_error = self._fetcher._handle_fetch_error
        self._on_response = self._fetcher._handle_fetch_response
        self._fetcher._parse_fetched_data = self._see_partition
        self._fetcher._handle_fetch_error = self._see_error
        self._fetcher._handle_fetch_response = self._see_response

    def _see_partition(self, completed: Any) -> Any:
        tp = (completed.topic_partition.topic, completed.topic_partition.partition)
        data = completed.partition_data
        # An answer to a position we have since left tells nothing about the one we are at.
        if data.error_code == 0 and self.position(tp) == completed.fetched_offset:
            self.vanished.discard(tp)
            self.ends[tp] = _readable_end(data)
            if 0 <= data.high_watermark < completed.fetched_offset:
                self.beyond[tp] = completed.fetched_offset
            else:
                self.beyond.pop(tp, None)
        elif data.error_code == UnknownTopicOrPartitionError.errno:
            self.vanished.add(tp)
        return self._parse(completed)

    def _see_error(self, node_id: int, error: Exception) -> None:
        if not isinstance(error, Cancelled):
            self._failures[node_id] = error
        self._on_error(node_id, error)

    def _see_response(self, node_id: int, *rest: Any) -> None:
        self._failures.pop(node_id, None)
        self._on_response(node_id, *rest)

    def position(self, tp: TopicPartition) -> int | None:
        """The next offset to be returned, without the network round trips of the client's own `position`."""
        client_tp = ClientPartition(*tp)
        if not self._subscription.is_assigned(client_tp):
            return None
        position = self._subscription.assignment[client_tp].position
        return None if position is None else int(position.offset)

    def forget(self, tp: TopicPartition) -> None:
        """Drop what was seen of a partition whose position is about to change."""
        self.ends.pop(tp, None)
        self.beyond.pop(tp, None)
        self.vanished.discard(tp)

    def leader(self, tp: TopicPartition) -> int | None:
        """The broker to read the partition from; None while it has none."""
        node = self._manager.cluster.leader_for_partition(ClientPartition(*tp))
        return None if node in (None, -1) else int(node)

    def failure(self, tps: Iterable[TopicPartition]) -> Exception | None:
        """Why the last fetch from the leader of one of these partitions failed; None if none did."""
        for tp in tps:
            node = self.leader(tp)
            if node is not None and node in self._failures:
                return self._failures[node]
        return None

    def refresh(self, topics: Sequence[str], *, timeout_ms: float) -> None:
        """Ask a broker for the state of these topics now, and wait for the answer. Raises the client's errors."""
        self._manager.run(self._refreshed, list(topics), timeout_ms)

    async def _refreshed(self, topics: Sequence[str], timeout_ms: float) -> None:
        cluster = self._manager.cluster
        for attempt in (1, 2):
            # An answer already on its way may be to a question that did not name these topics.
            cluster.set_topics(topics)
            try:
                await self._manager.wait_for(cluster.request_update(), timeout_ms)
            except UnknownTopicOrPartitionError:
                if attempt == 2:
                    raise
            if all(cluster.partitions_for_topic(topic) for topic in topics):
                return

    def probe_ends(self, at: Mapping[TopicPartition, int], *, timeout_ms: float) -> dict[TopicPartition, int]:
        """The readable end of each partition, from one fetch of next to nothing at the given offsets.

        This is the truth where `ListOffsets` is not (the embedded broker's is short by one for each batch).
        Raises `SourceUnavailable` if a partition has no leader, or its leader does not say.
        """
        found: dict[TopicPartition, int] = {}
        for _ in range(_PROBE_ATTEMPTS):
            left = {tp: offset for tp, offset in at.items() if tp not in found}
            if not left:
                return found
            found |= self._probe(left, timeout_ms)
        missing = sorted(at.keys() - found.keys())
        if missing:
            topic, partition = missing[0]
            raise SourceUnavailable(f"no broker tells where partition {partition} of {topic!r} ends")
        return found

    def _probe(self, at: Mapping[TopicPartition, int], timeout_ms: float) -> dict[TopicPartition, int]:
        by_node: dict[int, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
        for (topic, partition), offset in at.items():
            node = self.leader((topic, partition))
            if node is not None:
                by_node[node][topic].append(
                    FetchRequest.FetchTopic.FetchPartition(
                        partition=partition,
                        current_leader_epoch=-1,
                        fetch_offset=offset,
                        last_fetched_epoch=-1,
                        partition_max_bytes=1,
                    )
                )
        found: dict[TopicPartition, int] = {}
        for node, topics in by_node.items():
            response = self._manager.run(self._fetch_once, node, topics, timeout_ms)
            for topic in response.responses:
                for data in topic.partitions:
                    if data.error_code == 0:
                        found[topic.topic, data.partition_index] = _readable_end(data)
        return found

    async def _fetch_once(self, node: int, topics: Mapping[str, list[Any]], timeout_ms: float) -> Any:
        session_id, session_epoch = _NO_SESSION
        request = FetchRequest(
            max_wait_ms=100,  # the embedded broker leaves partitions out of its answer when this has passed
            min_bytes=0,
            max_bytes=1,
            isolation_level=IsolationLevel.READ_COMMITTED,
            session_id=session_id,
            session_epoch=session_epoch,
            topics=[FetchRequest.FetchTopic(topic=name, partitions=parts) for name, parts in topics.items()],
            forgotten_topics_data=[],
            rack_id="",
            min_version=FetchRequest.min_version_for_isolation_level(IsolationLevel.READ_COMMITTED),
            max_version=_MAX_FETCH_VERSION,
        )
        return await self._manager.wait_for(self._manager.send(request, node_id=node), timeout_ms)


def _readable_end(data: Any) -> int:
    stable: int = data.last_stable_offset
    return stable if stable is not None and stable >= 0 else int(data.high_watermark)
