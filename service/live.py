"""The one thing that intake, learning and HTTP share: which version is served, and what has come since.

A `Serving` is an immutable snapshot with its overlay. `Live` holds the current one and, while the next version is being
published, that one as well. Whoever reads or changes an overlay, flips the pointer or swaps the reference holds
`Live.lock`: this is what makes flip and swap one critical section for the fast path.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from models.explain import explain
from models.overlay import Overlay
from models.serving import Snapshot
from service.arrivals import Arrival, event_batch
from service.crash_points import crash_point
from service.errors import UnknownId
from streams.events import Interaction, Item, User
from streams.redis_keys import Pointer
from streams.sink_types import SinkRefused, SinkUnavailable
from streams.user_ids import UserIds, plain

Kind = Literal["items", "users"]

SINK_TROUBLE = (SinkUnavailable, SinkRefused)
"""What does not stop learning: the sink is away, or refuses (memory, rights, read-only) until a person mends that. Both
are said, and tried again."""

KNOWN_ITEMS = "Items are known from their announcement or first event on."
KNOWN_USERS = "Users are known from their first event or features on; everyone else is recommended what anyone is."


class VectorSink(Protocol):
    """Where versions are published: Redis, or memory. Raises SinkUnavailable while it cannot be reached, SinkRefused
    while it will not."""

    def claim(self) -> int: ...
    def still_mine(self) -> bool: ...
    def pointer(self) -> Pointer | None: ...
    def versions(self) -> set[int]: ...
    def buckets_of(self, version: int) -> int: ...
    def write(self, version: int, kind: Kind, ids: Sequence[str], vectors: NDArray[np.float32]) -> None: ...
    def delete(self, version: int, kind: Kind, ids: Sequence[str]) -> None: ...
    def write_head(self, version: int, head: bytes) -> None: ...
    def read_head(self, version: int) -> bytes | None: ...
    def count(self, version: int, kind: Kind) -> int: ...
    def bucket_counts(self, version: int, kind: Kind) -> list[int]: ...
    def read(self, version: int, kind: Kind, ids: Sequence[str]) -> list[bytes | None]: ...
    def ids(self, version: int, kind: Kind) -> Iterator[str]: ...
    def flip(self, pointer: Pointer) -> None: ...
    def expire(self, version: int, grace_s: float) -> None: ...
    def drop(self, version: int) -> None: ...
    def ping(self) -> None: ...
    def close(self) -> None: ...


@dataclass
class Touched:
    """Ids whose vectors a batch changed, and ids it removed; dicts keep the order of arrival."""

    items: dict[str, None] = field(default_factory=dict)
    users: dict[str, None] = field(default_factory=dict)
    gone_items: dict[str, None] = field(default_factory=dict)
    gone_users: dict[str, None] = field(default_factory=dict)


class Serving:
    """A version as it is served: its snapshot, and the overlay of what came after it."""

    def __init__(self, snapshot: Snapshot, *, most_new: int = sys.maxsize, predecessor: Serving | None = None) -> None:
        """`most_new`: users, and items, that are taken up beside the snapshot's, of each. `predecessor`: the version
        from which this one was learned on."""
        self.snapshot = snapshot
        self._most_new = most_new
        self._new: dict[Kind, set[str]] = {"users": set(), "items": set()}
        self.passed_over = 0
        """Events that would have brought more: they wait for their phase."""
        self.overlay: Overlay = Overlay(snapshot, None if predecessor is None else predecessor.overlay)
        self.touched = Touched()
        """Everything since the snapshot; what has to be written again should Redis lose it."""
        self.behind = False
        """The sink missed a write of this version: what its overlay knows has to be written again."""

    @property
    def version(self) -> int:
        return self.snapshot.version

    def observe(self, arrivals: Iterable[Arrival]) -> Touched:
        """Tells the overlay of these events; returns what they touched."""
        touched = Touched()
        interactions: list[Interaction] = []
        for arrival in arrivals:
            event = arrival.event
            if not self._has_room_for(event):
                self.passed_over += 1
                continue
            if isinstance(event, Interaction):
                interactions.append(event)
                continue
            if event.deleted:
                # What was done before a deletion must not bring the id back.
                self._observe_interactions(interactions, touched)
                interactions = []
            if isinstance(event, Item):
                self._observe_item(event, arrival.time, touched)
            else:
                self._observe_user(event, arrival.time, touched)
        self._observe_interactions(interactions, touched)
        self._remember(touched)
        return touched

    def _has_room_for(self, event: Interaction | Item | User) -> bool:
        """Whether what the event names is known, or may become so: an overlay must not grow with a flood of ids."""
        named: list[tuple[Kind, str]] = []
        if not isinstance(event, Item) and self.snapshot.user_row(event.user_id) < 0:
            named.append(("users", event.user_id))
        if not isinstance(event, User) and self.snapshot.item_row(event.item_id) < 0:
            named.append(("items", event.item_id))
        room = all(one in self._new[kind] or len(self._new[kind]) < self._most_new for kind, one in named)
        if room:
            for kind, one in named:
                self._new[kind].add(one)
        return room

    def _observe_interactions(self, interactions: list[Interaction], touched: Touched) -> None:
        if not interactions:
            return
        self.overlay.observe(event_batch(interactions))
        for event in interactions:
            _touch(event.item_id, touched.items, touched.gone_items)
            _touch(event.user_id, touched.users, touched.gone_users)

    def _observe_item(self, item: Item, time: float, touched: Touched) -> None:
        if item.deleted:
            self.overlay.forget_item(item.item_id)
            _touch(item.item_id, touched.gone_items, touched.items)
        else:
            self.overlay.announce(item.item_id, time, item.features, item.attributes)
            _touch(item.item_id, touched.items, touched.gone_items)

    def _observe_user(self, user: User, time: float, touched: Touched) -> None:
        if user.deleted:
            self.overlay.forget_user(user.user_id)
            _touch(user.user_id, touched.gone_users, touched.users)
        else:
            self.overlay.enrol(user.user_id, time, user.features)
            _touch(user.user_id, touched.users, touched.gone_users)

    def _remember(self, touched: Touched) -> None:
        for new, everything, opposite in (
            (touched.items, self.touched.items, self.touched.gone_items),
            (touched.users, self.touched.users, self.touched.gone_users),
            (touched.gone_items, self.touched.gone_items, self.touched.items),
            (touched.gone_users, self.touched.gone_users, self.touched.users),
        ):
            for one in new:
                _touch(one, everything, opposite)

    def write(self, sink: VectorSink, touched: Touched) -> None:
        """Writes the vectors of what was touched under this version, and of what time alone has changed, as this
        version's snapshot computes them."""
        if touched.gone_items:
            sink.delete(self.version, "items", list(touched.gone_items))
        if touched.gone_users:
            sink.delete(self.version, "users", list(touched.gone_users))
        for one in self.overlay.take_aged():
            _touch(one, self.touched.items, self.touched.gone_items)
            _touch(one, touched.items, touched.gone_items)
        ids, vectors = self.overlay.known_item_vectors(list(touched.items))
        if ids:
            sink.write(self.version, "items", ids, vectors)
        crash_point("fast.half")
        if touched.users:
            ids = list(touched.users)
            sink.write(self.version, "users", ids, self.overlay.user_vectors(ids))


def _touch(one: str, here: dict[str, None], not_there: dict[str, None]) -> None:
    here[one] = None
    not_there.pop(one, None)


class Live:
    """The shared reference. `lock` guards both servings' overlays and the moment of the swap."""

    def __init__(self, user_ids: UserIds = plain, *, most_new: int = sys.maxsize) -> None:
        """`user_ids`: under which id a user who is asked about is known. `most_new`: see `Serving`."""
        self._user_ids = user_ids
        self.most_new = most_new
        self.lock = threading.RLock()
        self.current: Serving | None = None
        self.next: Serving | None = None

    def swap(self, serving: Serving) -> None:
        """Makes `serving` current. The caller holds `lock` and has just flipped the pointer."""
        self.current = serving
        self.next = None

    @property
    def recalibrated(self) -> bool:
        """Whether users are served with scales that were fitted since the version was made."""
        current = self.current
        return current is not None and current.overlay.recalibrated

    def recommend(self, user_id: str, *, k: int, include_seen: bool) -> list[dict[str, Any]]:
        """The best `k` items for a user: `[{"item_id", "score", "attributes"}, …]`, best first."""
        with self.lock:
            if self.current is None:
                return []
            return self.current.overlay.recommend(self._user_ids(user_id), k=k, include_seen=include_seen)

    def similar(self, item_id: str, *, k: int) -> list[dict[str, Any]]:
        """The `k` items most alike by cosine of the personal part. Raises UnknownId."""
        with self.lock:
            found = None if self.current is None else self.current.overlay.similar(item_id, k=k)
        if found is None:
            raise UnknownId(f"No item is known as {item_id!r}.", hint=KNOWN_ITEMS)
        return found

    def explain(self, user_id: str, item_id: str) -> dict[str, Any]:
        """Why a pair scores as it does: see `models.explain`. Raises UnknownId."""
        with self.lock:
            overlay = None if self.current is None else self.current.overlay
            known_as = self._user_ids(user_id)
            if overlay is not None and not overlay.knows_user(known_as):
                raise UnknownId(f"No user is known as {user_id!r}.", hint=KNOWN_USERS)
            found = None if overlay is None else explain(overlay, known_as, item_id)
        if found is None:
            raise UnknownId(f"No item is known as {item_id!r}.", hint=KNOWN_ITEMS)
        return {**found, "user_id": user_id}
