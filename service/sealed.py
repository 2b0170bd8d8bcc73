"""Small files that notice their own damage: JSON with a digest of itself, and a lone number with one.

A sealed JSON file is one flat object whose last field, `digest`, is the SHA-256 of everything before it. Any flipped or
missing byte breaks it. Later formats keep this rule, so that an older Headwater can tell "newer" from "damaged".
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TypeVar

import msgspec

from service.durable import replace_file
from service.errors import CorruptCheckpoint, NewerFormat

FORMAT = 1
"""Version of everything in the state directory: files, their names and their fields."""

_TAIL = b',\n  "digest": "%s"\n}\n'
_TAIL_BYTES = len(_TAIL % b"") + 64


class _Head(msgspec.Struct):
    format: int


class Sealed(msgspec.Struct, frozen=True, kw_only=True):
    """Base of what `seal` writes; `format` comes first in the file."""

    format: int = FORMAT


S = TypeVar("S", bound=Sealed)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def seal(value: Sealed) -> bytes:
    """The sealed file of `value`: indented JSON ending in its digest."""
    body = msgspec.json.format(msgspec.json.encode(value), indent=2).removesuffix(b"\n}")
    return body + _TAIL % _sha256(body).encode()


def unseal(data: bytes, kind: type[S], path: Path) -> S:
    """Read what `seal` wrote. Raises CorruptCheckpoint on any damage, NewerFormat; both name `path`."""
    body, digest = data[:-_TAIL_BYTES], data[-_TAIL_BYTES:]
    if digest != _TAIL % _sha256(body).encode():
        raise damaged(path, "its digest does not match its content" if data else "it is empty")
    head = msgspec.json.decode(data, type=_Head)
    if head.format > FORMAT:
        raise NewerFormat(
            f"{path} has format {head.format}, written by a newer Headwater; this one reads formats up to {FORMAT}.",
            hint="Run the newer release again, or start this one with another state_dir.",
        )
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise damaged(path, str(error)) from error


def damaged(path: Path, why: str) -> CorruptCheckpoint:
    """The error for a file whose bytes are not the ones written."""
    return CorruptCheckpoint(
        f"{path} is damaged: {why}.",
        hint="Restore it from a backup, or leave it: Headwater goes on from the newest checkpoint that verifies.",
    )


def write_number(path: Path, number: int) -> None:
    """Replace the file at `path` by `number` and a digest of it, durably."""
    replace_file(path, b"%d %s\n" % (number, _sha256(b"%d" % number)[:16].encode()))


def read_number(path: Path) -> int | None:
    """The number that `write_number` wrote, None without a file. Raises CorruptCheckpoint if it is damaged."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    digits, _, check = data.partition(b" ")
    if not digits.isdigit() or check != _sha256(digits)[:16].encode() + b"\n":
        raise damaged(path, "it is empty" if not data else "it does not hold a version number and its digest")
    return int(digits)
