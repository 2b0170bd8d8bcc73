"""Memory as bytes to append to files: framed MessagePack for ids and contents, fixed-size rows for events.

A frame is its length (little-endian uint32) and that many bytes. Readers take chunks cut anywhere.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

LENGTH = struct.Struct("<I")


class Word(msgspec.Struct, array_like=True, frozen=True):
    """One change of the vocabulary: a new id (None where it was forgotten since), a row or events to blank, or what is
    left out."""

    op: str
    """`item`, `user`, `action`: the next row's id; `-item`, `-user`: forget this row; `silence`: pass over events;
    `dropped`: so many vectors of `item.<modality>` or `user.<feature>` came before, and are nobody's any more."""
    name: str | None = None
    row: int = -1
    stop: int = -1


class Content(msgspec.Struct, array_like=True, frozen=True):
    """What was announced of an item, or is known of a user: vectors as little-endian float32."""

    row: int
    time: float
    features: dict[str, bytes]
    attributes: dict[str, Any]


encoder = msgspec.msgpack.Encoder()
words = msgspec.msgpack.Decoder(Word)
contents = msgspec.msgpack.Decoder(Content)


def frame(message: msgspec.Struct) -> bytes:
    """One message with its length before it."""
    body = encoder.encode(message)
    return LENGTH.pack(len(body)) + body


def frames(chunks: Iterable[bytes]) -> Iterator[memoryview]:
    """The messages in `chunks`. Raises `ValueError` where the last one is cut short."""
    rest = b""
    for chunk in chunks:
        buffer = memoryview(rest + chunk if rest else chunk)
        at = 0
        while len(buffer) - at >= LENGTH.size:
            (length,) = LENGTH.unpack_from(buffer, at)
            if len(buffer) - at - LENGTH.size < length:
                break
            yield buffer[at + LENGTH.size : at + LENGTH.size + length]
            at += LENGTH.size + length
        rest = bytes(buffer[at:])
    if rest:
        raise ValueError(
            f"A segment ends within a message ({len(rest)} bytes are left over); restore an earlier version."
        )


def rows(chunks: Iterable[bytes], dtype: np.dtype[Any]) -> Iterator[NDArray[Any]]:
    """The fixed-size rows in `chunks`. Raises `ValueError` where the last one is cut short."""
    rest = b""
    for chunk in chunks:
        buffer = rest + chunk if rest else chunk
        whole = len(buffer) - len(buffer) % dtype.itemsize
        if whole:
            yield np.frombuffer(buffer, dtype, count=whole // dtype.itemsize)
        rest = buffer[whole:]
    if rest:
        raise ValueError(
            f"A segment ends within an event ({len(rest)} bytes are left over); restore an earlier version."
        )


def pack_vectors(features: Mapping[str, NDArray[np.float32]]) -> dict[str, bytes]:
    """Vectors as bytes; their shape follows from the model's modalities."""
    return {name: np.ascontiguousarray(vector, "<f4").tobytes() for name, vector in features.items()}


def unpack_vectors(packed: Mapping[str, bytes], dims: Mapping[str, int]) -> dict[str, NDArray[np.float32]]:
    """The vectors of the modalities that are still configured, (D,) or (F, D) where there are several."""
    vectors = {}
    for name, raw in packed.items():
        if name in dims and len(raw) % (4 * dims[name]) == 0 and raw:
            vector = np.frombuffer(raw, "<f4")
            vectors[name] = vector if len(vector) == dims[name] else vector.reshape(-1, dims[name])
    return vectors
