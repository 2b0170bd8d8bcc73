"""What a dead letter is: a record that could not be used, with where it came from and why.

The letter's value is the record's own, byte for byte; all else is in headers, so that any Kafka tool can read it:
`topic`, `partition`, `offset`, `reason`, `detail`, `timestamp_ms`, `key` (absent where the record had none),
`truncated_from` (the value's size in bytes, where only its beginning fits), and the record's own headers, each named
`header:NAME`. Letters are written at least once; their key, `topic:partition:offset`, tells a second one.
"""

from __future__ import annotations

from dataclasses import dataclass

from streams.events import Record

_OWN_HEADER = "header:"
_DETAIL_BYTES = 1000
_OVERHEAD_BYTES = 512  # of a batch with one record, beyond key, value and headers


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record that could not be used; `truncated_from` is its value's size in bytes where `record.value` is a part."""

    record: Record
    reason: str
    detail: str
    truncated_from: int | None = None

    @property
    def key(self) -> bytes:
        record = self.record
        return f"{record.topic}:{record.partition}:{record.offset}".encode()

    @property
    def headers(self) -> list[tuple[str, bytes]]:
        record = self.record
        headers = [
            ("topic", record.topic.encode()),
            ("partition", b"%d" % record.partition),
            ("offset", b"%d" % record.offset),
            ("reason", self.reason.encode()),
            ("detail", self.detail.encode()[:_DETAIL_BYTES].decode(errors="ignore").encode()),
            ("timestamp_ms", b"%d" % record.timestamp_ms),
        ]
        if record.key is not None:
            headers.append(("key", record.key))
        if self.truncated_from is not None:
            headers.append(("truncated_from", b"%d" % self.truncated_from))
        return headers + [(_OWN_HEADER + name, value) for name, value in record.headers]

    def fitted(self, limit_bytes: int) -> DeadLetter:
        """This letter, with its value cut, to nothing if need be, so that the whole takes at most `limit_bytes`.

        Keys and headers are never cut: without them the letter would say nothing.
        """
        value = self.record.value
        around = sum(len(name.encode()) + len(text) + 8 for name, text in self.headers) + len(self.key)
        room = max(0, limit_bytes - around - _OVERHEAD_BYTES)
        if value is None or len(value) <= room:
            return self
        record = self.record
        cut = Record(
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
            timestamp_ms=record.timestamp_ms,
            key=record.key,
            value=value[:room],
            headers=record.headers,
        )
        size = len(value) if self.truncated_from is None else self.truncated_from
        return DeadLetter(record=cut, reason=self.reason, detail=self.detail, truncated_from=size)

    @classmethod
    def read(cls, letter: Record) -> DeadLetter:
        """The letter in a record of the dead-letter topic; raises `ValueError` if it is none."""
        headers = dict(letter.headers)
        try:
            truncated = headers.get("truncated_from")
            return cls(
                record=Record(
                    topic=headers["topic"].decode(),
                    partition=int(headers["partition"]),
                    offset=int(headers["offset"]),
                    timestamp_ms=int(headers["timestamp_ms"]),
                    key=headers.get("key"),
                    value=letter.value,
                    headers=tuple(
                        (name.removeprefix(_OWN_HEADER), value)
                        for name, value in letter.headers
                        if name.startswith(_OWN_HEADER)
                    ),
                ),
                reason=headers["reason"].decode(),
                detail=headers["detail"].decode(),
                truncated_from=None if truncated is None else int(truncated),
            )
        except (KeyError, ValueError) as error:
            where = f"{letter.topic}[{letter.partition}] offset {letter.offset}"
            raise ValueError(f"the record at {where} is no dead letter: {error}") from error
