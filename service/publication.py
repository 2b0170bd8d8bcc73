"""Publishing a version: every vector, then proof that they are there, then the pointer.

A reader follows the pointer, so nothing of a version is seen before the flip, and after it everything is.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from time import monotonic

import msgspec
import numpy as np
import structlog
from numpy.typing import NDArray

from models.serving import Snapshot
from service.arrivals import Offsets, passed
from service.checkpoints import CheckpointStore
from service.config_tables import PublishConfig
from service.crash_points import crash_point
from service.drift import Drift
from service.errors import HeadwaterError
from service.fast_path import FastPath
from service.live import SINK_TROUBLE, Live, Serving, VectorSink
from service.metrics import VECTOR_KINDS, Metrics
from streams.redis_keys import Pointer, pack_head, vector_bytes

log = structlog.get_logger(__name__)

READ_BACK = 64
"""Vectors of each kind that are read back and compared before the pointer moves."""
HAND_OVER = 100
"""So few arrivals the next version may lack when the fast path takes it over: about what one poll brings."""
ROUNDS = 20
"""Most times that what arrived during the last one is caught up with; each should have less to do."""
CATCH_UP_S = 30.0
"""Longest wait for the fast path to bring the next version up to date before publication is tried again later."""


class PublicationError(HeadwaterError):
    """What Redis holds of the new version is not what was written; the old version stays."""


@dataclass(kw_only=True)
class Publisher:
    """Puts snapshots into the sink and moves the pointer; owned by learning."""

    sink: VectorSink
    live: Live
    fast_path: FastPath | None
    """None where nothing arrives meanwhile: replay, and verbs that run without a daemon."""
    store: CheckpointStore
    config: PublishConfig
    metrics: Metrics
    clock: Callable[[], float]
    writer: str
    """Id of the state directory: tells a daemon whether a pointer is its own."""
    epoch: int = 0
    _pointed: Pointer | None = field(default=None, init=False)
    """The pointer to the served version, as it should be found in the sink."""

    def __post_init__(self) -> None:
        """Nothing is watched before something is served."""
        self._drift = Drift(self.live, self.sink, users_active_days=self.config.users_active_days)

    def publish(
        self,
        snapshot: Snapshot,
        *,
        learned: Offsets,
        event_time: float | None,
        champion: bool = True,
        goes_on: bool = False,
    ) -> float:
        """Publishes and swaps to `snapshot`; returns when, in seconds since the epoch.

        `learned` are the offsets it contains. `goes_on`: it was learned on from what is served, and is no step back
        from it. Raises PublicationError or what the sink raises, with the old version
        still served.
        """
        if not self.epoch:
            self.claim()
        before = self.live.current if goes_on else None
        serving = Serving(snapshot, most_new=self.live.most_new, predecessor=before)
        superseded = self.sink.pointer()
        # 1. Whatever an interrupted attempt left under this number is gone first: what we count below is ours.
        if superseded is None or superseded.version != snapshot.version:
            self.sink.drop(snapshot.version)
        crash_point("publish.dropped")
        # 2. All vectors, in small chunks, so that readers of the current version hardly notice.
        self._write(snapshot)
        # 3. Counts and a sample, before anything else may write under this version.
        self._verify(snapshot)
        crash_point("publish.verified")
        try:
            # 4. What arrived since the phase closed; from now on the fast path writes to both versions.
            self._catch_up(serving, learned)
            crash_point("publish.caught_up")
            # 5. The champion on disk before the pointer: a crash between the two is mended at start.
            if champion:
                self.store.set_champion(snapshot.version)
            crash_point("flip.before")
            # 6. Flip and swap as one for the fast path: no click is written to the version that was just left.
            at = self._flip(serving, superseded, event_time)
        except BaseException:
            if self.fast_path is not None:
                self.fast_path.withdraw()
            raise
        crash_point("flip.after")
        # 7. Readers that pinned the old version have `grace_s` to finish.
        if superseded is not None and superseded.version != snapshot.version:
            self.sink.expire(superseded.version, self.config.grace_s)
        crash_point("publish.expired")
        self.metrics.champion_version.set(snapshot.version)
        return at

    def claim(self) -> None:
        """Takes the namespace over: from now on an older daemon's flips are refused. Raises what the sink raises."""
        epoch = self.sink.claim()
        crash_point("publish.claimed")
        # What a crash left of a version that nobody was ever pointed to, or kept from expiring, goes now.
        pointer = self.sink.pointer()
        for version in self.sink.versions() - {None if pointer is None else pointer.version}:
            self.sink.expire(version, self.config.grace_s)
        self.epoch = epoch

    def mend(self) -> str | None:
        """Gives readers back what Redis has lost of the served version, under the same number; returns what that was.

        Vectors first, the pointer last. Raises what the sink raises.
        """
        serving = self.live.current
        assert serving is not None
        lost: dict[str, int] = {}
        if buckets := self._drift.look(serving):
            for kind, count in self._drift.write_again(serving, buckets).items():
                lost[kind] = count
        layers = serving.snapshot.head_layers()
        if layers and self.sink.read_head(serving.version) is None:
            self._write_head(serving.snapshot)
            lost["head"] = 1
        if self._pointed is not None and self.sink.pointer() is None:
            self.sink.flip(msgspec.structs.replace(self._pointed, epoch=self.epoch))
            lost["pointer"] = 1
        for what in lost:
            self.metrics.redis_repairs.labels(what=what).inc()
        if not lost:
            return None
        named = [f"{count} {what}" if what in VECTOR_KINDS else f"the {what}" for what, count in lost.items()]
        return (
            f"keys of version {serving.version} were gone or short; wrote {' and '.join(named)} again. "
            "If it loses more, see whether Redis evicts (maxmemory-policy) or somebody deletes there."
        )

    def adopt(self, snapshot: Snapshot, learned: Offsets) -> float:
        """Takes up a version that is whole in Redis already: no flip, only what arrived after `learned`.

        Returns when it was published, in seconds since the epoch.
        """
        pointer = self.sink.pointer()
        at = self.clock() if pointer is None else datetime.fromisoformat(pointer.published_at).timestamp()
        self._pointed = pointer
        serving = Serving(snapshot, most_new=self.live.most_new)
        try:
            self._catch_up(serving, learned)
            while True:
                with self.live.lock:
                    if self.fast_path is None or self.fast_path.up_to_date(serving):
                        self.live.swap(serving)
                        crash_point("publish.adopted")
                        self.metrics.champion_version.set(serving.version)
                        return at
                self._wait_again(serving)
        except BaseException:
            if self.fast_path is not None:
                self.fast_path.withdraw()
            raise

    def least_version(self) -> int:
        """The least number a new version may have: above what readers see, should another state directory have
        written it."""
        try:
            pointer = self.sink.pointer()
        except SINK_TROUBLE:
            return 1
        return 1 if pointer is None else pointer.version + 1

    def _write(self, snapshot: Snapshot) -> None:
        self._write_head(snapshot)
        started = monotonic()
        items, users = 0, 0
        for ids, vectors in snapshot.items_in_chunks():
            _require_finite(snapshot.version, "items", vectors)
            self.sink.write(snapshot.version, "items", ids, vectors)
            items += len(ids)
        crash_point("publish.half")
        for ids, vectors in snapshot.users_in_chunks(active_days=self.config.users_active_days):
            _require_finite(snapshot.version, "users", vectors)
            self.sink.write(snapshot.version, "users", ids, vectors)
            users += len(ids)
        self.metrics.published_vectors.labels(kind="items").set(items)
        self.metrics.published_vectors.labels(kind="users").set(users)
        self._written = {"items": items, "users": users}
        log.info("vectors written", version=snapshot.version, items=items, users=users, seconds=monotonic() - started)

    def _write_head(self, snapshot: Snapshot) -> None:
        layers = snapshot.head_layers()
        if layers:
            self.sink.write_head(snapshot.version, pack_head(snapshot.d, snapshot.dim - snapshot.d, layers))

    def _verify(self, snapshot: Snapshot) -> None:
        chunks = {
            "items": snapshot.items_in_chunks(),
            "users": snapshot.users_in_chunks(active_days=self.config.users_active_days),
        }
        for kind, expected in self._written.items():
            counted = self.sink.count(snapshot.version, kind)  # type: ignore[arg-type]
            if counted != expected:
                raise PublicationError(
                    f"Redis holds {counted} of the {expected} {kind} written for version {snapshot.version}.",
                    hint="Check maxmemory and the eviction policy (`headwater doctor`).",
                )
            first = next(iter(chunks[kind]), None)
            if first is None:
                continue
            ids, vectors = first
            sample = random.Random(snapshot.version).sample(range(len(ids)), min(READ_BACK, len(ids)))
            stored = self.sink.read(snapshot.version, kind, [ids[i] for i in sample])  # type: ignore[arg-type]
            wanted = [np.ascontiguousarray(vectors[i], dtype="<f4").tobytes() for i in sample]
            if stored != wanted:
                raise PublicationError(
                    f"A {kind[:-1]} vector of version {snapshot.version} in Redis differs from what was written.",
                    hint="See whether something else writes to this namespace.",
                )

    def _catch_up(self, serving: Serving, learned: Offsets) -> None:
        if self.fast_path is None:
            return
        # Nobody else has it yet: learning tells it the most of what arrived meanwhile, while intake keeps the served
        # version fresh. Only the little that is left is intake's, which would otherwise do nothing else for a while.
        for _ in range(ROUNDS):
            arrived = self.fast_path.arrived_since(learned)
            if len(arrived) <= HAND_OVER:
                break
            serving.write(self.sink, serving.observe(arrived))
            learned = passed(learned, arrived)
        self.fast_path.offer(serving, learned)
        if not self.fast_path.wait_caught_up(CATCH_UP_S):
            raise PublicationError(
                f"Events arrive faster than version {serving.version} can take them in.",
                hint="Lower the load or raise [phase] max_events; it is tried again in a moment.",
            )

    def _flip(self, serving: Serving, superseded: Pointer | None, event_time: float | None) -> float:
        while True:
            with self.live.lock:
                if self.fast_path is None or self.fast_path.up_to_date(serving):
                    at = self.clock()
                    pointer = self._pointer(serving, superseded, event_time, at)
                    self.sink.flip(pointer)
                    crash_point("flip.half")
                    self.live.swap(serving)
                    self._pointed = pointer
                    return at
            self._wait_again(serving)

    def _wait_again(self, serving: Serving) -> None:
        assert self.fast_path is not None
        if serving.behind or not self.fast_path.wait_caught_up(CATCH_UP_S):
            raise PublicationError(
                f"Version {serving.version} could not be kept up to date while it was published.",
                hint="Redis was away or slow; it is tried again.",
            )

    def _pointer(self, serving: Serving, superseded: Pointer | None, event_time: float | None, at: float) -> Pointer:
        snapshot = serving.snapshot
        return Pointer(
            schema=1,
            version=snapshot.version,
            previous=None if superseded is None else superseded.version,
            epoch=self.epoch,
            dim=snapshot.dim,
            dtype="float32",
            buckets=self.sink.buckets_of(snapshot.version),
            head=snapshot.spec.head,
            items=self._written["items"],
            users=self._written["users"],
            default_user=vector_bytes(snapshot.default_user),
            score="value" if snapshot.spec.objective == "rating" else "logit",
            published_at=rfc3339(at),
            event_time=None if event_time is None else rfc3339(event_time),
            writer=self.writer,
        )


def _require_finite(version: int, kind: str, vectors: NDArray[np.float32]) -> None:
    """Readers would rank by NaN: whatever let such a version come so far, it is not published."""
    if not np.isfinite(vectors).all():
        raise PublicationError(
            f"A vector of {kind} of version {version} is not finite, so it is not published.",
            hint="Promote or roll back to another version; see `headwater versions`.",
        )


def rfc3339(seconds: float) -> str:
    """Seconds since the epoch as RFC 3339 in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
