"""Sends events to Kafka: for `headwater produce`, the demo and the tests."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Self

from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import KafkaError, MessageSizeTooLargeError, TopicAlreadyExistsError

from streams.kafka_connection import connected_admin, connected_producer
from streams.kafka_errors import client_settings, translating
from streams.source_types import SourceError, SourceUnavailable, TopicMissing


class SendFailed(SourceError):  # noqa: N818
    """The broker did not take a record; the first such error is raised, `failed` says how many there were."""

    def __init__(self, message: str, *, failed: int) -> None:
        super().__init__(message)
        self.failed = failed


class EventProducer:
    """Sends records, each acknowledged by all replicas and written once even when sent again after a lost answer.

    A record's key decides its partition (murmur2, as in Kafka's own clients), so events of one key keep their order.

    Args:
        bootstrap_servers: `host:port`, several separated by commas, or a list of them.
        security: `security_protocol`, `sasl_*`, `ssl_*` as kafka-python names them.
        compression: `gzip`, `snappy`, `lz4`, `zstd` or None.
        linger_ms: how long a record may wait for others to be sent with it.
        max_request_bytes: the largest record that is sent.
        timeout_s: how long a record may take to be acknowledged, tries included.

    Raises `SourceUnavailable` or `SourceDenied` when the broker cannot be reached.
    """

    def __init__(
        self,
        *,
        bootstrap_servers: str | Sequence[str],
        security: Mapping[str, Any] | None = None,
        client_id: str = "headwater-produce",
        compression: str | None = "lz4",
        linger_ms: int = 20,
        max_request_bytes: int = 1024 * 1024,
        timeout_s: float = 30.0,
    ) -> None:
        self._settings = {**client_settings(bootstrap_servers, security), "client_id": client_id}
        self._lock = threading.Lock()
        self._known: set[str] = set()
        self._failed = 0
        self._first_error: BaseException | None = None
        self._timeout_s = timeout_s
        timeout_ms = int(timeout_s * 1000)
        self._settings["bootstrap_timeout_ms"] = timeout_ms
        self._producer = connected_producer(
            {
                **self._settings,
                "acks": "all",
                "compression_type": compression,
                "linger_ms": linger_ms,
                "batch_size": 256 * 1024,
                "max_request_size": max_request_bytes,
                "max_block_ms": timeout_ms,
                "delivery_timeout_ms": timeout_ms,
                "request_timeout_ms": max(1000, timeout_ms - linger_ms - 1),
                "reconnect_backoff_max_ms": 1000,
                "metrics_enabled": False,
            }
        )

    def ensure_topics(self, names: Iterable[str], *, partitions: int = 4, compacted: Collection[str] = ()) -> list[str]:
        """Create those topics that do not exist, with the broker's default replication; returns the ones created.

        `compacted` are the topics that keep only the newest record of each key. Existing topics are left as they are.
        Raises `SourceUnavailable` or `SourceDenied`.
        """
        created = []
        with translating("creating topics"), self._admin() as admin:
            existing = set(admin.list_topics())
            for name in names:
                if name in existing:
                    continue
                configs = {"cleanup.policy": "compact"} if name in compacted else {}
                options = {"num_partitions": partitions, "replication_factor": -1, "configs": configs}
                try:
                    admin.create_topics({name: options}, wait_for_metadata=True)
                except TopicAlreadyExistsError:  # by someone else, since we asked
                    continue
                created.append(name)
        return created

    def largest_record(self, topic: str) -> int | None:
        """The topic's limit on a batch of records in bytes (`max.message.bytes`), or None if the broker does not say.

        Raises `SourceUnavailable`, `SourceDenied`.
        """
        with translating(f"asking for the settings of {topic}"), self._admin() as admin:
            described = admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)], config_filter="all")
        limit = described.get("topic", {}).get(topic, {}).get("max.message.bytes", {}).get("value")
        return None if limit is None else int(limit)

    def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        timestamp_ms: int | None = None,
        *,
        headers: Sequence[tuple[str, bytes]] = (),
        partition: int | None = None,
        on_done: Callable[[BaseException | None], None] | None = None,
    ) -> None:
        """Queue a record; returns before it is acknowledged, which `flush` waits for.

        `on_done` is called on another thread with None or the error when its fate is known; the failure is then the
        caller's business, and no longer `flush`'s. Raises `TopicMissing`, `SendFailed` for a record over the size
        limit, and `SourceUnavailable` when the topic's broker is away.
        """
        self._check_exists(topic)
        try:
            future = self._producer.send(
                topic,
                key=key,
                value=value,
                headers=list(headers),
                partition=partition,
                timestamp_ms=timestamp_ms,
            )
        except MessageSizeTooLargeError as error:
            raise SendFailed(f"a record for topic {topic!r} is too large: {error}", failed=1) from error
        except KafkaError as error:
            raise SourceUnavailable(f"cannot send to topic {topic!r}: {error}") from error
        if on_done is None:
            future.add_errback(self._note_failure)
        else:
            future.add_callback(lambda _: on_done(None))
            future.add_errback(on_done)

    def flush(self) -> None:
        """Wait until all that was sent is acknowledged.

        Raises `SendFailed` if any record since the last flush was not, `SourceUnavailable` if some never get an answer.
        """
        with translating("sending"):
            # A producer whose broker was replaced by an empty one can wait for ever.
            self._producer.flush(timeout=2 * self._timeout_s)
        with self._lock:
            failed, error = self._failed, self._first_error
            self._failed, self._first_error = 0, None
        if failed:
            raise SendFailed(f"{failed} records were not taken by the broker: {error}", failed=failed) from error

    def close(self, *, timeout_s: float = 5.0) -> None:
        """Let go of the broker; what is not acknowledged by then is given up."""
        with contextlib.suppress(KafkaError):
            self._producer.flush(timeout=timeout_s)
        # The client's own close waits for what never comes and then leaves its thread and sockets behind.
        self._producer._sender.force_close()
        self._producer.close(timeout=timeout_s)

    def _check_exists(self, topic: str) -> None:
        """Once for each topic: the client would wait for one that is missing until it times out."""
        if topic in self._known:
            return
        with translating("looking for topics"), self._admin() as admin:
            self._known.update(admin.list_topics())
        if topic not in self._known:
            raise TopicMissing(topic)

    def _admin(self) -> KafkaAdminClient:
        return connected_admin(self._settings)

    def _note_failure(self, error: BaseException) -> None:
        with self._lock:
            self._failed += 1
            self._first_error = self._first_error or error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
