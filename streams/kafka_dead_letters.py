"""Writes the records that cannot be used to the dead-letter topic, without ever holding up reading.

A letter waits in memory until the broker has acknowledged it. After a failure all that is not acknowledged waits for
`flush`, which sends it again; called before a checkpoint passes over the records, it makes letters at least once.
`send` and `flush` may be called from different threads.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import structlog
from kafka.errors import AuthorizationError, MessageSizeTooLargeError, RecordListTooLargeError

from streams.dead_letters import DeadLetter
from streams.events import Record
from streams.kafka_producer import EventProducer
from streams.source_types import SourceDenied, SourceUnavailable, TopicMissing

_log = structlog.get_logger(__name__)
_DEFAULT_LIMIT_BYTES = 1024 * 1024
_SMALLEST_LIMIT_BYTES = 4096
_TOO_LARGE = (MessageSizeTooLargeError, RecordListTooLargeError)


class DeadLetterSink:
    """The dead-letter topic. Connects when the first letter is sent, and makes the topic then if it may.

    Args:
        topic: where the letters go.
        security: `security_protocol`, `sasl_*`, `ssl_*` as kafka-python names them.
        on_written: called, on another thread, for each letter that the broker has acknowledged.
        limit_bytes: the largest letter; None: what the topic's `max.message.bytes` says.

    A letter that can never be written (no topic and no right to make it, too many headers) is logged and given up, and
    counted in `given_up`.
    """

    def __init__(
        self,
        *,
        bootstrap_servers: str | Sequence[str],
        topic: str,
        security: Mapping[str, Any] | None = None,
        client_id: str = "headwater-dead-letters",
        on_written: Callable[[], None] = lambda: None,
        limit_bytes: int | None = None,
        timeout_s: float = 10.0,
    ) -> None:
        self._topic = topic
        self._connection: dict[str, Any] = {
            "bootstrap_servers": bootstrap_servers,
            "security": security,
            "client_id": client_id,
            "timeout_s": timeout_s,
        }
        self._on_written = on_written
        self._limit_bytes = limit_bytes
        self._producer: EventProducer | None = None
        self._using = threading.RLock()  # the producer; never held while waiting for an acknowledgement
        self._lock = threading.Lock()  # the letters
        self._waiting: dict[bytes, DeadLetter] = {}  # not acknowledged, by key
        self._failures: deque[BaseException] = deque(maxlen=10)
        self.given_up = 0

    def send(self, record: Record, reason: str, detail: str) -> None:
        """Write a letter about `record`; never raises for the broker's sake."""
        letter = DeadLetter(record=record, reason=reason, detail=detail)
        with self._lock:
            self._waiting[letter.key] = letter
        with self._using:
            if not self._failures:  # Else it waits for `flush`, so that reading does not wait for each.
                self._write(letter)

    def flush(self) -> None:
        """Wait until every letter is written. Raises `SourceUnavailable` while some are not; call again later."""
        with self._using:
            if self._failures:
                self._start_over()
            producer = self._producer
        try:
            if producer is not None:
                producer.flush()
        except SourceUnavailable as error:
            self._failures.append(error)
        with self._lock:
            left = len(self._waiting)
        if left:
            why = self._failures[-1] if self._failures else "no answer yet"
            raise SourceUnavailable(f"{left} dead letters are not written to {self._topic!r} yet: {why}")

    def close(self) -> None:
        """Let go of the broker; letters not acknowledged are written again when their records are read again."""
        if self._producer is not None:
            self._producer.close(timeout_s=1.0 if self._failures else 5.0)
            self._producer = None

    def _start_over(self) -> None:
        """Send all that waits through a new producer: one that failed may never recover, and its topic may be gone."""
        if self._producer is not None:
            self._producer.close(timeout_s=0.1)
            self._producer = None
        self._failures.clear()
        with self._lock:
            again = list(self._waiting.values())
        for letter in again:
            self._write(letter)
            if self._failures:  # The broker is still away: the others would wait as long.
                break

    def _write(self, letter: DeadLetter) -> None:
        try:
            producer = self._connected()
            fitted = letter.fitted(self._limit_bytes or _DEFAULT_LIMIT_BYTES)
            producer.send(
                self._topic,
                letter.key,
                fitted.record.value,
                headers=fitted.headers,
                on_done=lambda error: self._done(letter, error),
            )
        except (TopicMissing, SourceDenied) as error:
            self._give_up(letter, error)
        except SourceUnavailable as error:
            self._failures.append(error)

    def _connected(self) -> EventProducer:
        if self._producer is None:
            producer = EventProducer(**self._connection, max_request_bytes=2**31 - 1)
            try:
                producer.ensure_topics([self._topic], partitions=1)
                self._limit_bytes = self._limit_bytes or producer.largest_record(self._topic)
            except SourceDenied as error:
                _log.warning("dead-letter topic can neither be made nor looked at", topic=self._topic, error=str(error))
            except SourceUnavailable:
                producer.close()
                raise
            self._producer = producer
        return self._producer

    def _done(self, letter: DeadLetter, error: BaseException | None) -> None:
        """On the client's thread: what became of a letter."""
        if error is None:
            with self._lock:
                self._waiting.pop(letter.key, None)
            self._on_written()
        elif isinstance(error, _TOO_LARGE):
            self._shrink(letter, error)
        elif isinstance(error, AuthorizationError):
            self._give_up(letter, error)
        else:
            self._failures.append(error)

    def _shrink(self, letter: DeadLetter, error: BaseException) -> None:
        """The broker takes less than it said, or said nothing: try again with less of the value."""
        limit = self._limit_bytes or _DEFAULT_LIMIT_BYTES
        if limit <= _SMALLEST_LIMIT_BYTES:
            self._give_up(letter, error)
            return
        self._limit_bytes = max(_SMALLEST_LIMIT_BYTES, limit // 2)
        self._failures.append(error)

    def _give_up(self, letter: DeadLetter, error: BaseException) -> None:
        with self._lock:
            self._waiting.pop(letter.key, None)
            self.given_up += 1
        _log.error(
            "dead letter cannot be written and is given up",
            topic=self._topic,
            letter=letter.key.decode(),
            reason=letter.reason,
            error=str(error),
        )
