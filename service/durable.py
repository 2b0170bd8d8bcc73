"""Writing files so that they survive a power cut: what to fsync, and in which order.

Everything goes through `os` calls on plain descriptors, so that a test can record them, drop what was not synced, and
look at what is left.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

from service.errors import DiskTrouble

FILE_MODE = 0o600
DIRECTORY_MODE = 0o700
TEMPORARY_SUFFIX = ".tmp"


@contextlib.contextmanager
def disk_errors_explained(path: Path) -> Iterator[None]:
    """Turn an OSError (disk full, no permission, read only) into a DiskTrouble naming `path`."""
    try:
        yield
    except OSError as error:
        raise DiskTrouble(
            f"{error.filename or path} cannot be written: {error.strerror or error}.",
            hint="Check free space and permissions there, then start again: what was committed is intact.",
        ) from error


def write_all(fd: int, data: bytes | bytearray | memoryview) -> None:
    """Write all of `data`; the kernel may take it in parts."""
    view = memoryview(data).cast("B")
    while view.nbytes:
        view = view[os.write(fd, view) :]


def fsync_directory(path: Path) -> None:
    """Make the names in `path` (created, renamed, removed files) durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_directory(path: Path) -> None:
    """Create `path` for its owner alone, and make its name durable; nothing happens if it is there."""
    if not path.is_dir():
        os.mkdir(path, DIRECTORY_MODE)  # noqa: PTH102 - the recorder watches os
        fsync_directory(path.parent)


class NewFile:
    """A file written front to back, hashed in passing; durable in content (not yet in name) once the block ends.

    It has just enough of a binary file for `torch.save`.
    """

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, FILE_MODE)
        self._sha256 = hashlib.sha256()
        self.size = 0

    @property
    def sha256(self) -> str:
        """Hex digest of everything written so far."""
        return self._sha256.hexdigest()

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Append `data`; returns its length in bytes."""
        length = memoryview(data).nbytes
        self._sha256.update(data)
        write_all(self._fd, data)
        self.size += length
        return length

    def flush(self) -> None:
        """Nothing is buffered here."""

    def __enter__(self) -> NewFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                os.fsync(self._fd)
        finally:
            os.close(self._fd)


def replace_file(path: Path, data: bytes, *, before_replace: Callable[[], None] = lambda: None) -> None:
    """Put `data` at `path` in one step: readers and crashes find the old content or the new, never a mixture.

    Temporary sibling → fsync → `os.replace` → fsync of the directory, without which a power cut could undo the rename.
    """
    with disk_errors_explained(path):
        temporary = path.with_name(f".{path.name}{TEMPORARY_SUFFIX}")
        with NewFile(temporary) as file:
            file.write(data)
        before_replace()
        os.replace(temporary, path)  # noqa: PTH105 - the recorder watches os
        fsync_directory(path.parent)
