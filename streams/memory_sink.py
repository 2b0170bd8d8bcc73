"""`MemorySink`: the store of vectors in memory, for tests, `--once` runs without a server, and replays.

It keeps every promise of `RedisSink` (both pass `tests/contracts/test_sink.py`); several sinks on one `MemoryStore` are
like several daemons on one Redis.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Self

import msgspec
import numpy as np
import numpy.typing as npt

from streams import redis_keys
from streams.redis_keys import DTYPE, Pointer
from streams.sink_types import Fenced, Kind, SinkUnavailable


@dataclass
class _Version:
    fields: dict[Kind, dict[str, bytes]] = field(default_factory=lambda: {"items": {}, "users": {}})
    head: bytes | None = None
    expires_at: float | None = None

    @property
    def empty(self) -> bool:
        return self.head is None and not any(self.fields.values())


class MemoryStore:
    """What the sinks of one namespace share."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.lock = threading.RLock()
        self.epoch = 0
        self.pointer: Pointer | None = None
        self.versions: dict[int, _Version] = {}
        self.flips: list[Pointer] = []
        """Every pointer announced, in order."""
        self.available = True
        """Set to False to make every call raise `SinkUnavailable`, as if the server were down."""

    def wipe(self) -> None:
        """Forget everything, as a Redis does that was restarted without its disk."""
        with self.lock:
            self.epoch, self.pointer = 0, None
            self.versions.clear()


class MemorySink:
    """One daemon's view of a `MemoryStore`; methods and errors as in `RedisSink`."""

    def __init__(self, store: MemoryStore | None = None, *, namespace: str = "headwater", buckets: int = 64) -> None:
        self.namespace = redis_keys.check_namespace(namespace)
        self.store = store or MemoryStore()
        self._buckets = buckets
        self._epoch: int | None = None

    def claim(self) -> int:
        """Take the store over: a fencing epoch above every earlier one; earlier owners' flips now raise `Fenced`."""
        with self._open() as store:
            store.epoch = max(store.epoch, store.pointer.epoch if store.pointer else 0) + 1
            if store.pointer is not None:
                store.pointer = msgspec.structs.replace(store.pointer, epoch=store.epoch)
            self._epoch = store.epoch
            return store.epoch

    def still_mine(self) -> bool:
        """Whether nobody has claimed the store since our `claim`."""
        with self._open() as store:
            return self._epoch is not None and store.epoch <= self._epoch

    def pointer(self) -> Pointer | None:
        """What is served, or None if nothing is yet."""
        with self._open() as store:
            return store.pointer

    def flip(self, pointer: Pointer) -> None:
        """Serve `pointer.version` from now on; the same refusals as `RedisSink.flip`."""
        with self._open() as store:
            if pointer.buckets != self.buckets_of(pointer.version):
                raise ValueError(
                    f"version {pointer.version} was written into {self._buckets} buckets, not {pointer.buckets}"
                )
            old = store.pointer
            if old is not None:
                if old.epoch > pointer.epoch:
                    raise Fenced(
                        f"another daemon owns {self.namespace} (epoch {old.epoch}, ours {pointer.epoch}): stop this one"
                    )
                same = all(
                    getattr(old, name) == getattr(pointer, name) for name in ("writer", "dim", "buckets", "head")
                )
                if (old.version == pointer.version and not same) or (
                    old.version > pointer.version and old.writer == pointer.writer
                ):
                    raise Fenced(
                        f"{self.namespace} serves version {old.version}: {pointer.version} needs a number above it"
                    )
            store.pointer = pointer
            store.flips.append(pointer)

    def buckets_of(self, version: int) -> int:
        """The number of buckets a pointer to this version must state."""
        pointer = self.store.pointer
        return pointer.buckets if pointer is not None and pointer.version == version else self._buckets

    def write(self, version: int, kind: Kind, ids: Sequence[str], vectors: npt.ArrayLike) -> None:
        """Write the vectors `(n, dim)` of `ids`. Raises ValueError for shapes that do not fit or for NaN and Inf."""
        matrix = np.ascontiguousarray(vectors, dtype=DTYPE)
        if matrix.ndim != 2 or len(matrix) != len(ids) or (len(ids) and not matrix.shape[1]):
            raise ValueError(f"{len(ids)} ids need as many vectors, not an array of shape {matrix.shape}")
        if not np.isfinite(matrix).all():
            raise ValueError("NaN or Inf among the vectors to publish")
        with self._open() as store:
            if len(ids):
                fields = store.versions.setdefault(version, _Version()).fields[kind]
                fields.update(zip(ids, (row.tobytes() for row in matrix), strict=True))

    def delete(self, version: int, kind: Kind, ids: Sequence[str]) -> None:
        """Take ids out of a version; those not there are passed over."""
        with self._open() as store:
            for id_ in ids:
                if version in store.versions:
                    store.versions[version].fields[kind].pop(id_, None)

    def write_head(self, version: int, head: bytes) -> None:
        """Store the scoring layers."""
        with self._open() as store:
            store.versions.setdefault(version, _Version()).head = head

    def read_head(self, version: int) -> bytes | None:
        """The scoring layers, or None."""
        with self._open() as store:
            return store.versions.get(version, _Version()).head

    def count(self, version: int, kind: Kind) -> int:
        """How many ids a version has."""
        with self._open() as store:
            return len(store.versions.get(version, _Version()).fields[kind])

    def bucket_counts(self, version: int, kind: Kind) -> list[int]:
        """How many ids each bucket of a version has."""
        counts = [0] * self.buckets_of(version)
        for id_ in self.ids(version, kind):
            counts[redis_keys.bucket_of(id_, len(counts))] += 1
        return counts

    def read(self, version: int, kind: Kind, ids: Sequence[str]) -> list[bytes | None]:
        """The stored bytes of each id, None where there are none."""
        with self._open() as store:
            fields = store.versions.get(version, _Version()).fields[kind]
            return [fields.get(id_) for id_ in ids]

    def ids(self, version: int, kind: Kind) -> Iterator[str]:
        """Every id of a version."""
        with self._open() as store:
            names = list(store.versions.get(version, _Version()).fields[kind])
        yield from names

    def expire(self, version: int, grace_s: float) -> None:
        """Let a superseded version vanish `grace_s` from now. Raises ValueError for the served one."""
        with self._open() as store:
            self._refuse_served(version)
            if version in store.versions:
                store.versions[version].expires_at = store.clock() + grace_s

    def drop(self, version: int) -> None:
        """Delete a version now. Raises ValueError for the served one."""
        with self._open() as store:
            self._refuse_served(version)
            store.versions.pop(version, None)

    def versions(self) -> set[int]:
        """Every version that holds anything."""
        with self._open() as store:
            return {version for version, content in store.versions.items() if not content.empty}

    def ping(self) -> None:
        """Raise if the store is set to be away."""
        with self._open():
            pass

    def close(self) -> None:
        """Nothing to close."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _refuse_served(self, version: int) -> None:
        if self.store.pointer is not None and self.store.pointer.version == version:
            raise ValueError(f"version {version} is being served from {self.namespace}: flip to another one first")

    def _open(self) -> _Held:
        return _Held(self.store)


class _Held:
    """The store, locked, without what has expired."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    def __enter__(self) -> MemoryStore:
        store = self._store
        store.lock.acquire()
        if not store.available:
            store.lock.release()
            raise SinkUnavailable("the in-memory store is set to be away: set `available` again")
        now = store.clock()
        for version in [
            v for v, content in store.versions.items() if content.expires_at is not None and content.expires_at <= now
        ]:
            del store.versions[version]
        return store

    def __exit__(self, *exc_info: object) -> None:
        self._store.lock.release()
