"""Append-only segment files: the part of a checkpoint that only grows (histories, vocabulary, content, replay).

A checkpoint appends what is new and remembers how far its own content reaches (`Committed`), so saving costs the new
bytes alone, while older checkpoints go on reading their shorter prefix of the same file.

    frame   = header, payload, digest
    header  = u32 little-endian: payload length; the top bit says that the next frame continues this payload
    digest  = sha256(digest of the frame before, header, payload), 32 bytes: no frame changes, moves or vanishes
    unnoticed

Files lie in generations (`segments/g000/NAME.seg`). After deletions the content is written anew as the next generation,
so that what was forgotten leaves the disk with the last checkpoint of the old one.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated

import msgspec

from service.crash_points import crash_point
from service.durable import FILE_MODE, disk_errors_explained, fsync_directory, make_directory, write_all
from service.errors import CorruptCheckpoint
from service.sealed import damaged

MAX_FRAME_BYTES = 64 * 2**20
_CONTINUES = 1 << 31
_HEADER_BYTES = 4
_DIGEST_BYTES = 32
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
_GENERATION = re.compile(r"g(\d{3,})")


Count = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
Digest = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]
"""SHA-256, hex."""


class Committed(msgspec.Struct, frozen=True):
    """How far a checkpoint's content reaches into a segment file."""

    length: Count = 0
    """Bytes of the file, frames and all."""
    frames: Count = 0
    digest: Digest = "0" * 64
    """Hex digest of the last frame, which covers every frame before it."""


class Segment:
    """One segment file; it need not exist yet."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, payload: bytes, at: Committed) -> Committed:
        """Append one payload after `at`, fsynced; an empty payload appends nothing."""
        return self.extend([payload], at)

    def extend(self, payloads: Iterable[bytes], at: Committed) -> Committed:
        """Append payloads after `at`, with one fsync; whatever a crash left beyond `at` is cut off first.

        Raises CorruptCheckpoint if the file is shorter than `at`, StateError if it cannot be written.
        """
        waiting = (payload for payload in payloads if payload)
        first = next(waiting, None)
        if first is None:
            return at
        with disk_errors_explained(self.path):
            is_new = not self.path.exists()
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
            try:
                size = os.fstat(fd).st_size
                if size < at.length:
                    raise damaged(self.path, f"it has {size} bytes of the {at.length} that were committed")
                if size > at.length:
                    os.ftruncate(fd, at.length)
                os.lseek(fd, at.length, os.SEEK_SET)
                for payload in itertools.chain([first], waiting):
                    at = _write_payload(fd, payload, at)
                os.fsync(fd)
            finally:
                os.close(fd)
            if is_new:
                fsync_directory(self.path.parent)
        crash_point("segments.written")
        return at

    def read(self, committed: Committed) -> Iterator[bytes]:
        """The payloads up to `committed`, each verified before it is handed out; raises CorruptCheckpoint."""
        if committed.length == 0:
            return
        position, frames, digest = 0, 0, bytes.fromhex(Committed().digest)
        parts: list[bytes] = []
        try:
            with self.path.open("rb") as file:
                while position < committed.length:
                    header = file.read(_HEADER_BYTES)
                    word = int.from_bytes(header, "little")
                    length = word & ~_CONTINUES
                    end = position + _HEADER_BYTES + length + _DIGEST_BYTES
                    if length > MAX_FRAME_BYTES or end > committed.length:
                        raise damaged(self.path, f"the frame at byte {position} has an impossible length")
                    payload = file.read(length)
                    digest = _chain(digest, header, payload)
                    if file.read(_DIGEST_BYTES) != digest:
                        raise damaged(self.path, f"the frame at byte {position} does not match its digest")
                    position, frames = end, frames + 1
                    parts.append(payload)
                    if not word & _CONTINUES:
                        yield b"".join(parts)
                        parts = []
        except FileNotFoundError:
            raise damaged(self.path, f"it is missing, with {committed.length} bytes committed") from None
        if (frames, digest.hex()) != (committed.frames, committed.digest) or parts:
            raise damaged(self.path, f"its first {position} bytes are not the ones the checkpoint was saved with")


def _chain(before: bytes, header: bytes, payload: bytes | memoryview) -> bytes:
    digest = hashlib.sha256(before)
    digest.update(header)
    digest.update(payload)
    return digest.digest()


def _write_payload(fd: int, payload: bytes, at: Committed) -> Committed:
    view = memoryview(payload)
    length, frames, digest = at.length, at.frames, bytes.fromhex(at.digest)
    while view.nbytes:
        part, view = view[:MAX_FRAME_BYTES], view[MAX_FRAME_BYTES:]
        header = (part.nbytes | (_CONTINUES if view.nbytes else 0)).to_bytes(_HEADER_BYTES, "little")
        digest = _chain(digest, header, part)
        write_all(fd, header)
        write_all(fd, part[: part.nbytes // 2])
        crash_point("segments.half")
        write_all(fd, part[part.nbytes // 2 :])
        write_all(fd, digest)
        length += _HEADER_BYTES + part.nbytes + _DIGEST_BYTES
        frames += 1
    return Committed(length, frames, digest.hex())


class Extent(msgspec.Struct, frozen=True):
    """What of the segments belongs to one checkpoint."""

    generation: Count = 0
    committed: dict[Annotated[str, msgspec.Meta(pattern=f"^{_NAME.pattern}$")], Committed] = {}
    """By the segment's name."""

    def reaches_beyond(self, other: Extent) -> bool:
        """Whether appending after `other` would cut off bytes that belong to this."""
        return self.generation == other.generation and any(
            mine.length > other.committed.get(name, Committed()).length for name, mine in self.committed.items()
        )


class Chunks:
    """The payloads of one segment; can be iterated again and again, each time verified while read."""

    def __init__(self, segment: Segment, committed: Committed) -> None:
        self._segment = segment
        self._committed = committed

    def __iter__(self) -> Iterator[bytes]:
        return self._segment.read(self._committed)


class SegmentStore:
    """The generations of segment files under one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._verified: dict[tuple[int, str], Committed] = {}

    def segment(self, generation: int, name: str) -> Segment:
        """The segment `name` (lower case letters, digits, `_` and `-`) of a generation."""
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not a segment name")
        return Segment(self._path(generation) / f"{name}.seg")

    def append(self, chunks: Mapping[str, bytes], at: Extent) -> Extent:
        """Append one payload to each named segment of `at`'s generation."""
        if not any(chunks.values()):
            return at
        make_directory(self.directory)
        make_directory(self._path(at.generation))
        committed = dict(at.committed)
        for name, payload in chunks.items():
            if payload:
                committed[name] = self.segment(at.generation, name).append(payload, committed.get(name, Committed()))
        return Extent(at.generation, committed)

    def fork(self, extent: Extent) -> Extent:
        """Copy `extent` into a new generation, where appending harms nobody; raises CorruptCheckpoint."""
        copy = Extent(self._next_generation(), {})
        make_directory(self.directory)
        make_directory(self._path(copy.generation))
        for name, committed in extent.committed.items():
            payloads = self.segment(extent.generation, name).read(committed)
            copy.committed[name] = self.segment(copy.generation, name).extend(payloads, Committed())
        return copy

    def fresh(self) -> Extent:
        """An empty extent in a generation of its own."""
        return Extent(self._next_generation(), {})

    def chunks(self, extent: Extent) -> dict[str, Chunks]:
        """The payloads of every segment of `extent`, read and verified when iterated."""
        return {
            name: Chunks(self.segment(extent.generation, name), committed)
            for name, committed in extent.committed.items()
        }

    def verify(self, extent: Extent) -> None:
        """Read every byte of `extent` once in this process; raises CorruptCheckpoint on damage."""
        for name, committed in extent.committed.items():
            segment, key = self.segment(extent.generation, name), (extent.generation, name)
            known = self._verified.get(key, Committed())
            # Within what was read before, the digest stored at this very place vouches for the whole prefix.
            if 0 < committed.length <= known.length and _stored_digest(segment.path, committed) == committed.digest:
                continue
            for _ in segment.read(committed):
                pass
            if committed.length > known.length:
                self._verified[key] = committed

    def generations(self) -> list[int]:
        """The generations on disk, oldest first."""
        names = (_GENERATION.fullmatch(path.name) for path in self.directory.glob("g*"))
        return sorted(int(match[1]) for match in names if match)

    def drop(self, generation: int) -> None:
        """Remove a generation that no checkpoint refers to."""
        shutil.rmtree(self._path(generation))
        self._verified = {key: value for key, value in self._verified.items() if key[0] != generation}

    def _path(self, generation: int) -> Path:
        return self.directory / f"g{generation:03d}"

    def _next_generation(self) -> int:
        return max(self.generations(), default=-1) + 1


def _stored_digest(path: Path, committed: Committed) -> str:
    try:
        with path.open("rb") as file:
            file.seek(committed.length - _DIGEST_BYTES)
            return file.read(_DIGEST_BYTES).hex()
    except OSError as error:
        raise CorruptCheckpoint(
            f"{path} cannot be read: {error.strerror}.", hint="Restore it from a backup."
        ) from error
