"""Append-only files of one JSON object a line, each line with a checksum, fsynced, and mended after a crash.

A line is `{…,"check":"1a2b3c4d"}`: CRC-32 of the line without that field. A last line without its newline, or with
zeros in it (its end reached the disk before its beginning), is a write that a crash cut short: it was never
acknowledged, so it is cut off. Any other line that does not check is damage, which the caller judges.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from service.crash_points import crash_point
from service.durable import FILE_MODE, disk_errors_explained, fsync_directory, replace_file, write_all

T = TypeVar("T", bound=msgspec.Struct)

_CHECK = re.compile(rb',"check":"([0-9a-f]{8})"}$')


class JsonLines(Generic[T]):
    """One such file of structs of one type; `points` is the prefix of its crash points.

    With `whole` the file is always replaced as a whole: no crash leaves a torn line, so that one is damage.
    """

    def __init__(self, path: Path, kind: type[T], *, points: str, whole: bool = False) -> None:
        self.path = path
        self._decoder = msgspec.json.Decoder(kind)
        self._points = points
        self._whole = whole
        self._end = 0

    def read(self) -> tuple[list[T], list[int]]:
        """All good lines in order, and the numbers (from 1) of damaged ones; a torn last line is left out."""
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            data = b""
        self._end = len(data) if self._whole else data.rfind(b"\n") + 1
        last = data.rfind(b"\n", 0, max(0, self._end - 1)) + 1
        if not self._whole and b"\0" in data[last : self._end]:
            self._end = last
        good: list[T] = []
        bad: list[int] = []
        for number, line in enumerate(data[: self._end].splitlines(), start=1):
            value = self._decode(line)
            if value is None:
                bad.append(number)
            else:
                good.append(value)
        if self._whole and data and not data.endswith(b"\n") and not bad:
            bad.append(len(good))
        return good, bad

    def append(self, *values: T) -> None:
        """Add lines, fsynced, all or none. `read` must have been called before: it finds where the last whole line
        ends."""
        data = b"".join(_encode(value) for value in values)
        if len(values) == 1 and not self._whole:
            self._append_line(data)
        elif values:
            # A disk may write the last of several lines and not the first, which would look like damage.
            before = self.path.read_bytes()[: self._end] if self._end else b""
            replace_file(self.path, before + data, before_replace=lambda: crash_point(f"{self._points}.half"))
        self._end += len(data)
        if values:
            crash_point(f"{self._points}.written")

    def _append_line(self, data: bytes) -> None:
        with disk_errors_explained(self.path):
            is_new = not self.path.exists()
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
            try:
                os.ftruncate(fd, self._end)
                os.lseek(fd, self._end, os.SEEK_SET)
                write_all(fd, data[: len(data) // 2])
                crash_point(f"{self._points}.half")
                write_all(fd, data[len(data) // 2 :])
                os.fsync(fd)
            finally:
                os.close(fd)
            if is_new:
                fsync_directory(self.path.parent)

    def rewrite(self, values: Iterable[T]) -> None:
        """Put exactly these lines in the file, in one atomic step."""
        lines = [_encode(value) for value in values]
        replace_file(self.path, b"".join(lines))
        self._end = sum(map(len, lines))

    def _decode(self, line: bytes) -> T | None:
        match = _CHECK.search(line)
        if match is None or int(match[1], 16) != zlib.crc32(line[: match.start()] + b"}"):
            return None
        try:
            return self._decoder.decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None


def _encode(value: msgspec.Struct) -> bytes:
    body = msgspec.json.encode(value)
    return body[:-1] + b',"check":"%08x"}\n' % zlib.crc32(body)
