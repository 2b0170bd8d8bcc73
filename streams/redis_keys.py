"""The Redis contract in code: key names, buckets, vector bytes, the pointer, and the bytes of the `mlp` head.

`docs/redis.md` states the same for readers in other languages; `tests/unit/test_redis_keys.py` holds the golden bytes.
Nothing here talks to a server.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt

from streams.sink_types import Kind

SCHEMA = 1
"""The `schema` this code writes and reads: another number means that an old reader would go wrong."""

DTYPE = np.dtype("<f4")
"""Vectors are raw little-endian float32, whatever the machine."""

HEAD_MAGIC = b"HWHEAD1\0"

_NAMESPACE = re.compile(r"[A-Za-z0-9._:-]{1,100}")
_VERSIONED_KEY = re.compile(r":(?:(?:items|users):\{b(\d+)\}|head):v(\d+)")

Floats = npt.NDArray[np.float32]


def check_namespace(namespace: str) -> str:
    """Return `namespace` if it can prefix keys: braces would change the Cluster slot, `*` would match other keys.

    Raises ValueError otherwise.
    """
    if not _NAMESPACE.fullmatch(namespace):
        raise ValueError(
            f"namespace {namespace!r} must be 1 to 100 of A-Z a-z 0-9 . _ : - (no braces, blanks or wildcards)"
        )
    return namespace


def current_key(namespace: str) -> str:
    """The pointer's key."""
    return f"{namespace}:current"


def epoch_key(namespace: str) -> str:
    """Key of the counter that hands out fencing epochs."""
    return f"{namespace}:epoch"


def changes_channel(namespace: str) -> str:
    """The pub/sub channel on which each new pointer is announced."""
    return f"{namespace}:changes"


def bucket_of(id_: str, buckets: int) -> int:
    """The bucket of an id: CRC-32 (as in zlib, PNG and gzip) of its UTF-8 bytes, modulo `buckets`."""
    return zlib.crc32(id_.encode()) % buckets


def bucket_key(namespace: str, kind: Kind, bucket: int, version: int) -> str:
    """Key of one bucket's hash; the literal braces make all versions of a bucket share a Cluster slot."""
    return f"{namespace}:{kind}:{{b{bucket}}}:v{version}"


def head_key(namespace: str, version: int) -> str:
    """Key of the scoring layers, present only with the `mlp` head."""
    return f"{namespace}:head:v{version}"


def version_keys(namespace: str, version: int, buckets: int) -> list[str]:
    """Every key that a version with that many buckets can have."""
    kinds: tuple[Kind, ...] = ("items", "users")
    keys = [bucket_key(namespace, kind, bucket, version) for kind in kinds for bucket in range(buckets)]
    return [*keys, head_key(namespace, version)]


def parse_versioned_key(namespace: str, key: str) -> tuple[int, int] | None:
    """`(version, least number of buckets that explains the key)`, or None if the key is not part of a version."""
    if not key.startswith(namespace):
        return None
    match = _VERSIONED_KEY.fullmatch(key, len(namespace))
    if match is None:
        return None
    return int(match[2]), int(match[1]) + 1 if match[1] else 0


def vector_bytes(vector: npt.ArrayLike) -> bytes:
    """A vector of shape `(dim,)` as the bytes of a hash field."""
    return np.ascontiguousarray(vector, dtype=DTYPE).tobytes()


def vector_from_bytes(raw: bytes) -> Floats:
    """The `(dim,)` vector in a hash field; read-only. Raises ValueError if the length is no multiple of four bytes."""
    return np.frombuffer(raw, dtype=DTYPE)


class Pointer(msgspec.Struct, frozen=True, kw_only=True):
    """What `NS:current` says: which version to read, and how. Field for field the JSON of `docs/redis.md`."""

    schema: int = SCHEMA
    version: int
    """The version whose keys a reader uses; grows with each flip, also at a rollback."""
    previous: int | None = None
    """The version served before, whose keys live on for the grace period."""
    epoch: int
    """Fencing epoch of the daemon that may move this pointer; `RedisSink.claim` hands it out."""
    dim: int
    """Length of every vector of this version."""
    dtype: str = "float32"
    buckets: int
    """Into how many hashes the ids are spread."""
    head: str = "dot"
    """`dot`, or `mlp`: then `NS:head:vN` holds the layers."""
    items: int
    """Items written before the flip; the fast path may have added some since."""
    users: int
    """Users written before the flip."""
    default_user: bytes
    """Vector bytes for anyone unknown; base64 in the JSON."""
    score: str = "logit"
    """What a score is: `logit` (sigmoid gives a probability) or `value` (a rating)."""
    published_at: str
    """RFC 3339, UTC: when the daemon flipped."""
    event_time: str | None = None
    """RFC 3339, UTC: the event-time watermark of what this version has learned; null before any event."""
    writer: str = ""
    """Identity of the state directory that wrote the version."""

    def default_vector(self) -> Floats:
        """`default_user` as a `(dim,)` vector."""
        return vector_from_bytes(self.default_user)


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Pointer)


def encode_pointer(pointer: Pointer) -> bytes:
    """The pointer's JSON, fields in the order of the class."""
    return _encoder.encode(pointer)


def decode_pointer(raw: bytes) -> Pointer:
    """Read a pointer; fields it does not know are passed over. Raises ValueError if it cannot be used."""
    try:
        pointer = _decoder.decode(raw)
    except msgspec.DecodeError as error:
        raise ValueError(f"the pointer is not what docs/redis.md describes: {error}") from error
    if pointer.schema != SCHEMA:
        raise ValueError(f"the pointer has schema {pointer.schema}, this reader knows {SCHEMA}: update the reader")
    if pointer.dtype != "float32" or pointer.buckets < 1 or len(pointer.default_user) != pointer.dim * DTYPE.itemsize:
        raise ValueError("the pointer contradicts itself (dtype, buckets or length of default_user): publish again")
    return pointer


@dataclass(frozen=True, slots=True)
class Head:
    """The `mlp` head: `d` personal coordinates, `p` further ones, and the layers as `(W (out, in), b (out,))`."""

    d: int
    p: int
    layers: tuple[tuple[Floats, Floats], ...]

    def scores(self, user: Floats, items: Floats) -> Floats:
        """Score one user's vector `(d + p,)` against item vectors `(n, d + p)`; returns `(n,)`.

        With user = [u | x] and item = [e | y]: score = x·y + MLP([u ; e]), ReLU between the layers.
        """
        hidden = np.concatenate([np.broadcast_to(user[: self.d], (len(items), self.d)), items[:, : self.d]], axis=1)
        for depth, (weight, bias) in enumerate(self.layers):
            hidden = (np.maximum(hidden, 0) if depth else hidden) @ weight.T + bias
        scores: Floats = hidden[:, 0] + items[:, self.d :] @ user[self.d :]
        return scores


def pack_head(d: int, p: int, layers: Sequence[tuple[npt.ArrayLike, npt.ArrayLike]]) -> bytes:
    """The value of `NS:head:vN`, all little-endian.

    `HWHEAD1\\0`, uint32 d, uint32 p, uint32 number of layers; then for each layer uint32 out, uint32 in, the float32
    weights `(out, in)` row by row, and the float32 biases `(out,)`. The first layer takes `[u ; e]` (2d numbers), the
    last gives one. Raises ValueError if the shapes do not chain so.
    """
    parts = [HEAD_MAGIC, struct.pack("<3I", d, p, len(layers))]
    width = 2 * d
    for number, (weights, biases) in enumerate(layers):
        weight, bias = np.ascontiguousarray(weights, dtype=DTYPE), np.ascontiguousarray(biases, dtype=DTYPE)
        if weight.ndim != 2 or weight.shape[1] != width or bias.shape != weight.shape[:1]:
            raise ValueError(
                f"layer {number} of the head has weights {weight.shape} and biases {bias.shape} for {width} inputs"
            )
        width = weight.shape[0]
        parts += [struct.pack("<2I", *weight.shape), weight.tobytes(), bias.tobytes()]
    if not layers or width != 1:
        raise ValueError(f"the head's last layer must give one number, not {width}")
    return b"".join(parts)


def unpack_head(raw: bytes) -> Head:
    """Read what `pack_head` wrote. Raises ValueError if the bytes are anything else."""
    if raw[:8] != HEAD_MAGIC:
        raise ValueError("the head does not begin with HWHEAD1: it is not one, or of a newer layout; update the reader")
    try:
        d, p, count = struct.unpack_from("<3I", raw, 8)
        at, width, layers = 20, 2 * d, []
        for _ in range(count):
            rows, columns = struct.unpack_from("<2I", raw, at)
            weight = np.frombuffer(raw, DTYPE, rows * columns, at + 8).reshape(rows, columns)
            bias = np.frombuffer(raw, DTYPE, rows, at + 8 + weight.nbytes)
            if columns != width:
                raise ValueError(f"a layer of the head takes {columns} numbers where {width} come in: publish again")
            at, width = at + 8 + weight.nbytes + bias.nbytes, rows
            layers.append((weight, bias))
    except struct.error as error:
        raise ValueError("the head is cut short: publish again") from error
    if at != len(raw) or width != 1:
        raise ValueError("the head has bytes left over or more than one output: publish again")
    return Head(d, p, tuple(layers))
