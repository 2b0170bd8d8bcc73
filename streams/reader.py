"""`Reader`: what a ranking service in Python uses to look vectors up and score them.

    reader = Reader("redis://localhost:6379", namespace="headwater")
    with reader.pinned() as view:
        ids, scores = view.score("user-7", ["item-1", "item-2"])

A `View` is one request: everything it returns is of one version. `docs/redis.md` states the algorithm for other
languages. Every method may raise `SinkUnavailable` or `SinkRefused`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Self

import numpy as np

from streams import redis_keys
from streams.redis_connection import Password, connect, translated
from streams.redis_keys import DTYPE, Floats, Head, Pointer
from streams.redis_pipeline import run
from streams.sink_types import Kind, SinkRefused
from streams.user_ids import UserIds, plain

_SCAN_FIELDS = 500


class NothingPublished(Exception):  # noqa: N818 - the name says what is so
    """The namespace has no version yet: wait for the daemon's first one, or check the namespace's name."""


class VersionExpired(Exception):  # noqa: N818
    """The pinned version vanished under a request that had already used it: pin again and repeat the request."""


class Reader:
    """Looks up what the daemon publishes; safe to share between threads.

    The pointer is read again when it is older than `refresh_s`, and on every miss. `clock` gives seconds, monotonic.
    `url`, `username`, `password` and `timeout_s`: see `streams.redis_connection.connect`. Where the daemon hashes user
    ids, `user_ids` is `streams.user_ids.keyed(key)`.
    """

    def __init__(
        self,
        url: str,
        *,
        namespace: str = "headwater",
        username: str | None = None,
        password: Password = None,
        timeout_s: float = 1.0,
        refresh_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
        user_ids: UserIds = plain,
    ) -> None:
        self.user_ids = user_ids
        self.namespace = redis_keys.check_namespace(namespace)
        self._refresh_s, self._clock = refresh_s, clock
        self._known: tuple[Pointer, float] | None = None
        self._head_known: tuple[tuple[int, str, str], Head] | None = None
        # Any, since redis-py annotates replies with unions over all its forms.
        self._client: Any = connect(url, username=username, password=password, timeout_s=timeout_s)

    def pointer(self, *, max_age_s: float = 0.0) -> Pointer:
        """What is served now, read at most `max_age_s` ago. Raises `NothingPublished` if nothing is."""
        known, now = self._known, self._clock()
        if known is not None and now - known[1] < max_age_s:
            return known[0]
        with translated():
            raw = self._client.get(redis_keys.current_key(self.namespace))
        return self._learn(raw, now)

    @contextmanager
    def pinned(self) -> Iterator[View]:
        """One request's view of one version. Raises `NothingPublished` if there is none yet."""
        yield View(self, self.pointer(max_age_s=self._refresh_s))

    def follow(self, on_change: Callable[[Pointer], None], stop: threading.Event, *, poll_s: float = 1.0) -> None:
        """Call `on_change` with each new version until `stop` is set; blocks, so give it a thread of its own.

        Listens to the announcements, and reads the pointer every `poll_s` besides, for pub/sub may lose some.
        """
        last: int | None = None
        with self._client.pubsub(ignore_subscribe_messages=True) as announcements:
            with translated():
                announcements.subscribe(redis_keys.changes_channel(self.namespace))
            while not stop.is_set():
                with suppress(NothingPublished):
                    pointer = self.pointer()
                    if pointer.version != last:
                        last = pointer.version
                        on_change(pointer)
                with translated():
                    announcements.get_message(timeout=poll_s)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _learn(self, raw: bytes | None, now: float) -> Pointer:
        if raw is None:
            self._known = None
            raise NothingPublished(f"nothing is published under {self.namespace}: wait for the first version")
        try:
            pointer = redis_keys.decode_pointer(raw)
        except ValueError as error:
            raise SinkRefused(f"{redis_keys.current_key(self.namespace)} cannot be used: {error}") from error
        self._known = (pointer, now)
        return pointer

    def _head(self, pointer: Pointer) -> Head | None:
        # Not the version alone: a namespace that was emptied and taken over may count from 1 again.
        identity = (pointer.version, pointer.writer, pointer.published_at)
        known = self._head_known
        if known is None or known[0] != identity:
            with translated():
                raw = self._client.get(redis_keys.head_key(self.namespace, pointer.version))
            if raw is None:
                return None
            self._head_known = known = (identity, redis_keys.unpack_head(raw))
        return known[1]

    def _fetch(self, pointer: Pointer, kind: Kind, ids: Sequence[str]) -> list[bytes | None]:
        wanted: dict[int, list[int]] = {}
        for row, id_ in enumerate(ids):
            wanted.setdefault(redis_keys.bucket_of(id_, pointer.buckets), []).append(row)
        replies = run(
            self._client,
            (
                (
                    "HMGET",
                    redis_keys.bucket_key(self.namespace, kind, bucket, pointer.version),
                    *(ids[row] for row in rows),
                )
                for bucket, rows in wanted.items()
            ),
        )
        found: list[bytes | None] = [None] * len(ids)
        for rows, values in zip(wanted.values(), replies, strict=True):
            for row, value in zip(rows, values, strict=True):
                found[row] = value
        return found

    def _exists(self, pointer: Pointer) -> bool:
        keys = redis_keys.version_keys(self.namespace, pointer.version, pointer.buckets)
        return any(run(self._client, (("EXISTS", key) for key in keys)))


class View:
    """One request, pinned to one version.

    On a miss the pointer is read again. If it moved and nothing was returned yet, the view moves along and looks once
    more; if something was, the pinned version is kept for as long as it exists, and `VersionExpired` tells of its end.
    """

    def __init__(self, reader: Reader, pointer: Pointer) -> None:
        self._reader = reader
        self._pointer = pointer
        self._used = False

    @property
    def version(self) -> int:
        """The version that this view reads."""
        return self._pointer.version

    @property
    def pointer(self) -> Pointer:
        """The pointer that this view reads by."""
        return self._pointer

    def item(self, item_id: str) -> Floats | None:
        """The item's vector `(dim,)`, or None if it is unknown."""
        return self._vector(self._look_up("items", [item_id])[0])

    def items(self, item_ids: Sequence[str]) -> tuple[list[str], Floats]:
        """The known ones among the ids, in the given order, and their vectors `(n, dim)`."""
        return self._matrix(item_ids, self._look_up("items", item_ids))

    def user(self, user_id: str) -> Floats:
        """The user's vector `(dim,)`; for someone unknown the version's `default_user`."""
        vector = self._vector(self._look_up("users", [self._reader.user_ids(user_id)])[0])
        self._used = True
        return self._pointer.default_vector() if vector is None else vector

    def score(self, user: str | Floats, item_ids: Sequence[str]) -> tuple[list[str], Floats]:
        """The known ones among the items, in the given order, and the user's scores for them `(n,)`."""
        vector = self.user(user) if isinstance(user, str) else user
        ids, matrix = self.items(item_ids)
        return ids, self.scores(vector, matrix)

    def scores(self, user: Floats, items: Floats) -> Floats:
        """Scores `(n,)` of item vectors `(n, dim)` for a user's vector `(dim,)`, by the version's head."""
        if self._pointer.head == "dot":
            scores: Floats = items @ user
            return scores
        head = self._reader._head(self._pointer)
        if head is None:
            raise self._expired()
        return head.scores(user, items)

    def candidates(self) -> Iterator[tuple[list[str], Floats]]:
        """Every item of the version, in batches of ids and vectors `(n, dim)`; each id once.

        Raises `VersionExpired` if the version vanished meanwhile, for the last batches would then be missing.
        """
        self._used = True
        for bucket in range(self._pointer.buckets):
            key = redis_keys.bucket_key(self._reader.namespace, "items", bucket, self.version)
            cursor, seen = 0, set[bytes]()
            while True:
                with translated():
                    cursor, fields = self._reader._client.hscan(key, cursor, count=_SCAN_FIELDS)
                new = {name: raw for name, raw in fields.items() if name not in seen}
                seen.update(new)
                if new:
                    yield self._matrix([name.decode() for name in new], list(new.values()))
                if not cursor:
                    break
        self._require_alive()

    def _look_up(self, kind: Kind, ids: Sequence[str]) -> list[bytes | None]:
        found = self._reader._fetch(self._pointer, kind, ids)
        if None in found:
            newest = self._reader.pointer()
            if newest.version != self._pointer.version:
                if self._used:
                    self._require_alive()
                else:
                    self._pointer = newest
                    found = self._reader._fetch(newest, kind, ids)
        self._used = self._used or any(raw is not None for raw in found)
        return found

    def _require_alive(self) -> None:
        if not self._reader._exists(self._pointer):
            raise self._expired()

    def _expired(self) -> VersionExpired:
        self._reader._known = None  # or pinning again would give the same version until `refresh_s` is over
        return VersionExpired(f"version {self.version} is gone: pin again and repeat the request")

    def _vector(self, raw: bytes | None) -> Floats | None:
        return None if raw is None else redis_keys.vector_from_bytes(raw)

    def _matrix(self, ids: Sequence[str], raws: Sequence[bytes | None]) -> tuple[list[str], Floats]:
        known = [(id_, raw) for id_, raw in zip(ids, raws, strict=True) if raw is not None]
        matrix = np.frombuffer(b"".join(raw for _, raw in known), DTYPE).reshape(len(known), self._pointer.dim)
        return [id_ for id_, _ in known], matrix
