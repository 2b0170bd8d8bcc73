"""What Redis has lost of the served version: found bucket by bucket, and written again where it was.

Keys vanish when somebody deletes them, when Redis evicts, or when a failover forgets the last writes. A version's
vectors are the snapshot's and what the fast path made of them since, so they can be computed again at any time; readers
find either nothing or the vector that belongs there, as before.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from service.live import Kind, Live, Serving, VectorSink
from streams.redis_keys import bucket_of

KINDS: tuple[Kind, ...] = ("items", "users")

Counts = NDArray[np.int64]
Lost = dict[Kind, set[int]]
"""Buckets that hold too little; without the kinds that lack nothing."""


class Drift:
    """Watches one version at a time; owned by learning."""

    def __init__(self, live: Live, sink: VectorSink, *, users_active_days: float) -> None:
        self._live = live
        self._sink = sink
        self._active_days = users_active_days
        self._watched: Serving | None = None
        self._least: dict[Kind, Counts] = {}
        """What each bucket held at least, when last looked at."""
        self._gone: dict[Kind, set[str]] = {}
        """What the fast path had deleted by then."""

    def look(self, serving: Serving) -> Lost:
        """Buckets of the served version that hold less than they should. Raises what the sink raises.

        A version seen for the first time is held against its ids. From then on no bucket may shrink but by what the
        fast path deletes: this costs one number a bucket, whatever the size of the catalogue.
        """
        # Deletions are noted before they are written: what is gone after counting explains any count before.
        before = self._deleted(serving)
        counts = {kind: np.array(self._sink.bucket_counts(serving.version, kind), np.int64) for kind in KINDS}
        after = self._deleted(serving)
        lost: Lost = {}
        for kind in KINDS:
            buckets = len(counts[kind])
            if serving is self._watched and len(self._least[kind]) == buckets:
                least = self._least[kind] - _by_bucket(after[kind] - self._gone[kind], buckets)
            else:
                known = (one for one in self._ids(serving, kind) if one not in after[kind])
                least = _by_bucket(known, buckets)
            short = set(np.flatnonzero(counts[kind] < least).tolist())
            if short:
                lost[kind] = short
        if not lost:
            self._watched, self._least, self._gone = serving, counts, before
        return lost

    def write_again(self, serving: Serving, lost: Lost) -> dict[Kind, int]:
        """Writes the vectors of these buckets under the served version; how many. Raises what the sink raises."""
        written: dict[Kind, int] = {}
        for kind, buckets in lost.items():
            total = self._sink.buckets_of(serving.version)
            mine = [one for one in self._ids(serving, kind) if bucket_of(one, total) in buckets]
            gone = self._deleted(serving)[kind]
            ids = [one for one in mine if one not in gone]
            snapshot = serving.snapshot
            if kind == "items":
                vectors = snapshot.vectors_NV[[snapshot.item_row(one) for one in ids]]
            else:
                vectors = snapshot.user_vectors(ids)
            self._sink.write(serving.version, kind, ids, vectors)
            written[kind] = len(ids)
        with self._live.lock:
            # The fast path may have written a newer vector, or deleted one, while the older was under way.
            serving.write(self._sink, serving.touched)
        self._watched = None  # held against the ids once more, to see that it worked
        return written

    def _ids(self, serving: Serving, kind: Kind) -> list[str]:
        if kind == "items":
            return serving.snapshot.item_ids
        return serving.snapshot.user_ids(active_days=self._active_days)

    def _deleted(self, serving: Serving) -> dict[Kind, set[str]]:
        with self._live.lock:
            touched = serving.touched
            return {"items": set(touched.gone_items), "users": set(touched.gone_users)}


def _by_bucket(ids: Iterable[str], buckets: int) -> Counts:
    """How many of the ids are in each bucket."""
    return np.bincount(np.fromiter((bucket_of(one, buckets) for one in ids), np.int64), minlength=buckets)
