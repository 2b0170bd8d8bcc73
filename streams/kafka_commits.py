"""Group commits, which nothing in Headwater reads: they let the usual lag tools see how far the daemon is.

What the daemon resumes from is the checkpoint's manifest. So a commit must never delay or stop anything: it runs on a
thread of its own, the newest one wins, and a failure is a line in the log.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import structlog
from kafka import KafkaAdminClient
from kafka import TopicPartition as ClientPartition
from kafka.errors import NoError, RetriableError
from kafka.structs import OffsetAndMetadata
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_exponential

from streams.kafka_connection import connected_admin
from streams.source_types import TopicPartition

_log = structlog.get_logger(__name__)


class GroupCommitter:
    """Commits offsets for `group_id` in the background; usable from any thread.

    `settings` are those of the admin client; it connects at the first commit and again after a failure.
    """

    def __init__(self, *, group_id: str, settings: Mapping[str, Any], patience_s: float = 5.0) -> None:
        self._group_id = group_id
        self._settings = dict(settings)
        # A broker that has just started answers that it has no coordinator for the group yet.
        self._patiently = Retrying(
            retry=retry_if_exception_type(RetriableError),
            wait=wait_exponential(multiplier=0.1, max=1.0),
            stop=stop_after_delay(patience_s),
            reraise=True,
        )
        self._wanted = threading.Condition()
        self._pending: dict[ClientPartition, OffsetAndMetadata] = {}
        self._busy = False
        self._closing = False
        self._thread: threading.Thread | None = None

    def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Note the next offset to read of some partitions; returns at once and never raises."""
        with self._wanted:
            if self._closing:
                return
            for (topic, partition), offset in offsets.items():
                self._pending[ClientPartition(topic, partition)] = OffsetAndMetadata(offset, "", -1)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="kafka-commits", daemon=True)
                self._thread.start()
            self._wanted.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Wait until nothing is pending; False when `timeout_s` passed before."""
        with self._wanted:
            return self._wanted.wait_for(lambda: not self._pending and not self._busy, timeout_s)

    def close(self, timeout_s: float = 5.0) -> None:
        """Send what is pending if that takes no longer than `timeout_s`, and end the thread."""
        with self._wanted:
            self._closing = True
            self._wanted.notify_all()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        admin: KafkaAdminClient | None = None
        while True:
            with self._wanted:
                self._wanted.wait_for(lambda: bool(self._pending) or self._closing)
                if not self._pending:
                    break
                offsets, self._pending, self._busy = self._pending, {}, True
            try:
                admin = admin or connected_admin(self._settings)
                self._patiently(self._send, admin, offsets)
            # Whatever goes wrong here concerns lag tools alone, and the next phase commits again.
            except Exception as error:  # noqa: BLE001
                _log.warning("group commit failed", group=self._group_id, error=str(error))
                _close(admin)
                admin = None
            finally:
                with self._wanted:
                    self._busy = False
                    self._wanted.notify_all()
        _close(admin)

    def _send(self, admin: KafkaAdminClient, offsets: Mapping[ClientPartition, OffsetAndMetadata]) -> None:
        for tp, error in admin.alter_group_offsets(self._group_id, dict(offsets)).items():
            if issubclass(error, RetriableError):
                raise error(f"{tp.topic}[{tp.partition}]")
            if error is not NoError:
                _log.warning(
                    "group commit refused",
                    group=self._group_id,
                    topic=tp.topic,
                    partition=tp.partition,
                    error=error.__name__,
                )


def _close(admin: KafkaAdminClient | None) -> None:
    if admin is not None:
        admin.close()
