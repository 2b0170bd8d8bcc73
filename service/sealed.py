"""Small files that notice their own damage: JSON with a digest of itself, and a lone number with one.

A sealed JSON file is one flat object whose last field, `digest`, is the SHA-256 of everything before it. Any flipped or
missing byte breaks it. All formats keep this rule, so that a Headwater can tell "older" and "newer" from "damaged".
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from service.durable import replace_file
from service.errors import CorruptCheckpoint, HeadwaterError, OtherFormat

FORMAT = 8
"""Version of everything in the state directory: files, their names and fields, and what a learner's state consists of.
Since 2 it has co-occurrence, since 3 what was chosen of late; since 4 variances of ratings as multiples of what they
start as; since 5 windows of age; since 6 factors and vintage; since 7 since which event items are known; since 8
scales of how windows of age depart from factors."""

_TAIL = b',\n  "digest": "%s"\n}\n'
_TAIL_BYTES = len(_TAIL % b"") + 64


MOST_DIGITS = 15
"""Of a version's number; a longer one was never allotted."""


class _Head(msgspec.Struct):
    format: int


class Sealed(msgspec.Struct, frozen=True, kw_only=True):
    """Base of what `seal` writes; `format` comes first in the file."""

    format: int = FORMAT


S = TypeVar("S", bound=Sealed)
T = TypeVar("T", bound=msgspec.Struct)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def seal(value: Sealed) -> bytes:
    """The sealed file of `value`: indented JSON ending in its digest."""
    body = msgspec.json.format(msgspec.json.encode(value), indent=2).removesuffix(b"\n}")
    return body + _TAIL % _sha256(body).encode()


def unseal(data: bytes, kind: type[S], path: Path) -> S:
    """Read what `seal` wrote. Raises CorruptCheckpoint on any damage, OtherFormat; both name `path`."""
    body, digest = data[:-_TAIL_BYTES], data[-_TAIL_BYTES:]
    if digest != _TAIL % _sha256(body).encode():
        raise damaged(path, "its digest does not match its content" if data else "it is empty")
    head = _decoded(data, _Head, path)
    if head.format > FORMAT:
        raise OtherFormat(
            f"{path} has format {head.format}, written by a newer Headwater; this one reads formats up to {FORMAT}.",
            hint="Run the newer release again, or start this one with another state_dir.",
        )
    if head.format < FORMAT:
        raise OtherFormat(
            f"{path} has format {head.format}, written by an older Headwater, whose models had other parts; "
            f"this one reads format {FORMAT}.",
            hint="Start with another state_dir and `replay` what is to be learned again, or run the older release.",
        )
    return _decoded(data, kind, path)


def _decoded(data: bytes, kind: type[T], path: Path) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise damaged(path, str(error)) from error


def damaged(path: Path, why: str) -> CorruptCheckpoint:
    """The error for a file whose bytes are not the ones written."""
    return CorruptCheckpoint(
        f"{path} is damaged: {why}.",
        hint="Restore it from a backup, or leave it: Headwater goes on from the newest checkpoint that verifies.",
    )


@contextlib.contextmanager
def content_explained(path: Path) -> Iterator[None]:
    """Around taking over a checkpoint's content: whatever breaks on it says that `path` is damaged.

    The bytes are those of its manifest, so only somebody who made the digests right, or a fault of ours, gets here.
    """
    try:
        yield
    except HeadwaterError:
        raise
    except Exception as error:
        raise damaged(path, f"its content cannot be used ({_in_short(error)})") from error


def _in_short(error: Exception) -> str:
    text = " ".join(str(error).split()).rstrip(".")
    return f"{type(error).__name__}: {text[:150]}" if text else type(error).__name__


def write_number(path: Path, number: int, *, before_replace: Callable[[], None] = lambda: None) -> None:
    """Replace the file at `path` by `number` and a digest of it, durably."""
    data = b"%d %s\n" % (number, _sha256(b"%d" % number)[:16].encode())
    replace_file(path, data, before_replace=before_replace)


def read_number(path: Path) -> int | None:
    """The number that `write_number` wrote, None without a file. Raises CorruptCheckpoint if it is damaged."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    digits, _, check = data.partition(b" ")
    if not digits.isdigit() or len(digits) > MOST_DIGITS or check != _sha256(digits)[:16].encode() + b"\n":
        raise damaged(path, "it is empty" if not data else "it does not hold a version number and its digest")
    return int(digits)
