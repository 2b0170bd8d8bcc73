"""`RedisSink`: writes a version's vectors in small pipelined chunks, then moves the pointer by one fenced Lua call.

The keys and bytes are those of `streams.redis_keys`; what every sink promises is in `tests/contracts/test_sink.py`.
Every method may raise `SinkUnavailable` (Redis is away; each call can be repeated) or `SinkRefused` (needs a person).
Safe to use from several threads.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from streams import pointer_scripts, redis_keys
from streams.redis_connection import Password, connect, translated
from streams.redis_keys import DTYPE, Pointer
from streams.redis_pipeline import Command, run, stream
from streams.sink_types import Fenced, Kind, SinkRefused

_FIELDS_PER_COMMAND = 200
"""Enough that a command's overhead vanishes, few enough that none holds the server for half a millisecond."""
_COMMAND_BYTES = 128 * 1024
_ROWS_AT_ONCE = 65_536
"""Bounds this side's copies of a large catalogue."""


class RedisSink:
    """The store of vectors that ranking services read, in Redis.

    `buckets` is the number of hashes for versions written from now on; that of the served version is learned from the
    pointer. `url`, `username`, `password` and `timeout_s`: see `streams.redis_connection.connect`.
    """

    def __init__(
        self,
        url: str,
        *,
        namespace: str = "headwater",
        buckets: int = 64,
        username: str | None = None,
        password: Password = None,
        timeout_s: float = 5.0,
    ) -> None:
        if buckets < 1:
            raise ValueError(f"buckets must be at least 1, not {buckets}")
        self.namespace = redis_keys.check_namespace(namespace)
        self._buckets = buckets
        self._buckets_seen: dict[int, int] = {}
        self._leftover_buckets: dict[int, int] = {}
        self._epoch: int | None = None
        # Any, since redis-py annotates replies with unions over all its forms.
        self._client: Any = connect(url, username=username, password=password, timeout_s=timeout_s)

    # -- who may publish, and what is served

    def claim(self) -> int:
        """Take the namespace over: an epoch above every earlier one; flips of earlier owners raise `Fenced` now."""
        pointer = self.pointer()
        with translated():
            counter = redis_keys.epoch_key(self.namespace)
            epoch = int(self._client.eval(pointer_scripts.CLAIM_COUNTER, 1, counter, pointer.epoch if pointer else 0))
            self._client.eval(pointer_scripts.CLAIM_POINTER, 1, redis_keys.current_key(self.namespace), epoch)
        self._epoch = epoch
        return epoch

    def still_mine(self) -> bool:
        """Whether nobody has claimed the namespace since our `claim`. A wiped Redis is still ours."""
        if self._epoch is None:
            return False
        with translated():
            counter = self._client.get(redis_keys.epoch_key(self.namespace))
        pointer = self.pointer()
        return int(counter or 0) <= self._epoch and (pointer is None or pointer.epoch <= self._epoch)

    def pointer(self) -> Pointer | None:
        """What is served, or None if nothing is yet. Raises SinkRefused if the key holds something else."""
        with translated():
            raw = self._client.get(redis_keys.current_key(self.namespace))
        if raw is None:
            return None
        try:
            pointer = redis_keys.decode_pointer(raw)
        except ValueError as error:
            raise SinkRefused(f"{redis_keys.current_key(self.namespace)} cannot be used: {error}") from error
        self._buckets_seen[pointer.version] = pointer.buckets
        return pointer

    def flip(self, pointer: Pointer) -> None:
        """Serve `pointer.version` from now on, in one step, and announce it; repeating a flip does no harm.

        Raises `Fenced` if the stored epoch is above the pointer's, if this writer already served a later version, or
        if the served version has the same number but is another one.
        """
        if pointer.buckets != self.buckets_of(pointer.version):
            raise ValueError(
                f"version {pointer.version} has {self.buckets_of(pointer.version)} buckets, not {pointer.buckets}"
            )
        key, channel = redis_keys.current_key(self.namespace), redis_keys.changes_channel(self.namespace)
        with translated():
            answer = bytes(
                self._client.eval(pointer_scripts.FLIP, 1, key, redis_keys.encode_pointer(pointer), channel)
            ).decode()
        if answer.startswith("epoch"):
            raise Fenced(f"another daemon owns {self.namespace} ({answer}, ours {pointer.epoch}): stop one of the two")
        if answer != "ok":
            raise Fenced(f"{self.namespace} already serves {answer}: version {pointer.version} needs a number above it")
        self._buckets_seen[pointer.version] = pointer.buckets

    # -- a version's content

    def buckets_of(self, version: int) -> int:
        """Into how many hashes a version's ids are spread: as its pointer says, else as given to this sink."""
        return self._buckets_seen.get(version, self._buckets)

    def write(self, version: int, kind: Kind, ids: Sequence[str], vectors: npt.ArrayLike) -> None:
        """Write the vectors `(n, dim)` of `ids` over those already there; each is one hash field, never half there.

        Raises ValueError for shapes that do not fit or for NaN and Inf, before anything is written.
        """
        matrix = np.ascontiguousarray(vectors, dtype=DTYPE)
        if matrix.ndim != 2 or len(matrix) != len(ids) or (len(ids) and not matrix.shape[1]):
            raise ValueError(f"{len(ids)} ids need as many vectors, not an array of shape {matrix.shape}")
        if not np.isfinite(matrix).all():
            raise ValueError("NaN or Inf among the vectors to publish")
        for start in range(0, len(ids), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            stream(self._client, self._writes(version, kind, ids[rows], matrix[rows]))

    def _writes(
        self, version: int, kind: Kind, ids: Sequence[str], matrix: npt.NDArray[np.float32]
    ) -> Iterator[Command]:
        names = [id_.encode() for id_ in ids]
        order, runs = self._by_bucket(version, kind, names, most=_COMMAND_BYTES // matrix[0].nbytes)
        names = [names[row] for row in order]
        # An unstructured void of a row's size: the quickest way from a matrix to a list of bytes objects.
        values: list[Any] = matrix[order].view(np.dtype((np.void, matrix[0].nbytes))).ravel().tolist()
        for key, rows in runs:
            pairs: list[Any] = [None] * (2 * (rows.stop - rows.start))
            pairs[::2], pairs[1::2] = names[rows], values[rows]
            yield "HSET", key, *pairs

    def delete(self, version: int, kind: Kind, ids: Sequence[str]) -> None:
        """Take ids out of a version; those not there are passed over."""
        names = [id_.encode() for id_ in ids]
        order, runs = self._by_bucket(version, kind, names)
        self._run(("HDEL", key, *(names[row] for row in order[rows])) for key, rows in runs)

    def write_head(self, version: int, head: bytes) -> None:
        """Store the scoring layers (`redis_keys.pack_head`)."""
        self._run([("SET", redis_keys.head_key(self.namespace, version), head)])

    def read_head(self, version: int) -> bytes | None:
        """The scoring layers, or None if the version has none."""
        with translated():
            head: bytes | None = self._client.get(redis_keys.head_key(self.namespace, version))
        return head

    def count(self, version: int, kind: Kind) -> int:
        """How many ids a version has."""
        return sum(self.bucket_counts(version, kind))

    def bucket_counts(self, version: int, kind: Kind) -> list[int]:
        """How many ids each bucket of a version has."""
        keys = (
            redis_keys.bucket_key(self.namespace, kind, bucket, version) for bucket in range(self.buckets_of(version))
        )
        return self._run(("HLEN", key) for key in keys)

    def read(self, version: int, kind: Kind, ids: Sequence[str]) -> list[bytes | None]:
        """The stored bytes of each id, None where there are none; for verification rather than for serving."""
        names = [id_.encode() for id_ in ids]
        order, runs = self._by_bucket(version, kind, names)
        replies = self._run(("HMGET", key, *(names[row] for row in order[rows])) for key, rows in runs)
        found: list[bytes | None] = [None] * len(ids)
        for row, value in zip(order, itertools.chain.from_iterable(replies), strict=True):
            found[row] = value
        return found

    def ids(self, version: int, kind: Kind) -> Iterator[str]:
        """Every id of a version, by HSCAN; one written meanwhile may be missed, none comes twice."""
        for bucket in range(self.buckets_of(version)):
            key = redis_keys.bucket_key(self.namespace, kind, bucket, version)
            cursor, seen = 0, set[bytes]()
            while True:
                with translated():
                    cursor, fields = self._client.hscan(key, cursor, count=_FIELDS_PER_COMMAND)
                yield from (name.decode() for name in fields if name not in seen)
                seen.update(fields)
                if not cursor:
                    break

    # -- the end of a version

    def expire(self, version: int, grace_s: float) -> None:
        """Let a superseded version vanish `grace_s` from now, all at once. Raises ValueError for the served one."""
        self._refuse_served(version)
        with translated():
            seconds, microseconds = self._client.time()
        # An absolute time of the server's own clock: readers never see a version of which some buckets are gone.
        at_ms = seconds * 1000 + microseconds // 1000 + round(grace_s * 1000)
        self._run(("PEXPIREAT", key, at_ms) for key in self._keys(version))

    def drop(self, version: int) -> None:
        """Delete a version now: never served, or its grace is over. Raises ValueError for the served one."""
        self._refuse_served(version)
        self._run(("UNLINK", key) for key in self._keys(version))
        self._buckets_seen.pop(version, None)

    def versions(self) -> set[int]:
        """Every version that has keys, by SCAN: what a start sweeps for publications that were cut short."""
        found: dict[int, int] = {}
        with translated():
            for key in self._client.scan_iter(match=f"{self.namespace}:*:v*", count=1000):
                parsed = redis_keys.parse_versioned_key(self.namespace, key.decode(errors="replace"))
                if parsed is not None:
                    version, buckets = parsed
                    found[version] = max(found.get(version, 0), buckets)
        # So that `drop` reaches all buckets of a version that was written with another configuration and never served.
        self._leftover_buckets = found
        return set(found)

    def ping(self) -> None:
        """Raise if Redis cannot be used."""
        with translated():
            self._client.ping()

    def close(self) -> None:
        """Close the connections; a later call opens them again."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _keys(self, version: int) -> list[str]:
        buckets = max(self.buckets_of(version), self._leftover_buckets.get(version, 0))
        return redis_keys.version_keys(self.namespace, version, buckets)

    def _refuse_served(self, version: int) -> None:
        pointer = self.pointer()
        if pointer is not None and pointer.version == version:
            raise ValueError(f"version {version} is being served from {self.namespace}: flip to another one first")

    def _by_bucket(
        self, version: int, kind: Kind, names: Sequence[bytes], *, most: int = _FIELDS_PER_COMMAND
    ) -> tuple[list[int], list[tuple[str, slice]]]:
        """The rows of `names` ordered by bucket, and for each command its key and its slice of that order.

        The order is stable, so that the last of an id given twice wins; a slice has at most `most` rows.
        """
        most = max(1, min(most, _FIELDS_PER_COMMAND))
        buckets = np.fromiter(map(zlib.crc32, names), np.uint32, len(names)) % self.buckets_of(version)
        order = np.argsort(buckets, kind="stable")
        starts = np.flatnonzero(np.diff(buckets[order], prepend=-1)).tolist()
        runs = []
        for start, stop in itertools.pairwise([*starts, len(names)]):
            key = redis_keys.bucket_key(self.namespace, kind, int(buckets[order[start]]), version)
            runs += [(key, slice(at, min(at + most, stop))) for at in range(start, stop, most)]
        return order.tolist(), runs

    def _run(self, commands: Iterable[Command]) -> list[Any]:
        return run(self._client, commands)
