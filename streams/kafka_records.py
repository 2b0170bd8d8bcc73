"""Records whose headers are named in anything but UTF-8 are read.

A broker takes a header's name as bytes and never looks at them; the Kafka client decodes them, and takes a name that is
not UTF-8 for a broken batch, before which it stands for ever. One such record would end all reading of its partition.
"""

from __future__ import annotations

from typing import Any

from kafka.record.default_records import DefaultRecordBatch


class _Lenient(bytes):
    """A batch's bytes, parts of which decode whatever they hold; slow, so for one record only."""

    def __getitem__(self, place: Any) -> Any:
        found = super().__getitem__(place)
        return _Lenient(found) if isinstance(found, bytes) else found

    def decode(self, encoding: str = "utf-8", errors: str = "replace") -> str:
        return super().decode(encoding, errors)


def read_any_header_name() -> None:
    """From now on, in this process, what is not UTF-8 in a header's name is U+FFFD. Again is harmless."""
    if DefaultRecordBatch._read_msg is not _read_leniently:
        DefaultRecordBatch._read_msg = _read_leniently


_read_strictly = DefaultRecordBatch._read_msg


def _read_leniently(batch: Any) -> Any:
    try:
        return _read_strictly(batch)
    except UnicodeDecodeError:  # nothing has moved on: the place in the batch is set last
        strict = batch._buffer
        batch._buffer = _Lenient(strict)
        try:
            return _read_strictly(batch)
        finally:
            batch._buffer = strict
