"""Measures freshness from outside: how long after an event was sent does Redis serve what it tells?

Three kinds of events show it without doubt:

- `item`: the announcement of an item, served when the item has a vector;
- `new_user`: the first event of a user without features, served when the user has a vector;
- `user`: the next event of a user who has been quiet for a while, served when the user's vector changes. Within a
  version nothing else changes it; where a new version comes in between, nobody outside can tell: it is set aside.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from streams.redis_keys import Pointer
from streams.simulator_messages import Message
from streams.sink_types import Kind, SinkUnavailable

ProbeKind = Literal["item", "new_user", "user"]
KINDS: tuple[ProbeKind, ...] = ("item", "new_user", "user")


class Lookups(Protocol):
    """What is needed of Redis; `streams.publisher.RedisSink` and `streams.memory_sink.MemorySink` have it."""

    def pointer(self) -> Pointer | None: ...

    def read(self, version: int, kind: Kind, ids: Sequence[str]) -> list[bytes | None]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One event on its way; times are of the monotonic and the wall clock when it was sent."""

    kind: ProbeKind
    id: str
    sent: float
    sent_at: float
    version: int
    before: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """One event that has arrived: `seconds` after `sent_at` (epoch seconds)."""

    kind: ProbeKind
    id: str
    sent_at: float
    seconds: float
    across_flip: bool
    """Whether the version changed on the way."""


@dataclass(slots=True)
class Freshness:
    """What the probes have found."""

    served: list[Served] = field(default_factory=list)
    set_aside: int = 0
    """Returning users whose version changed on the way: nothing can be said of them."""
    missed: list[Probe] = field(default_factory=list)
    """Events that were not served within the patience."""

    def seconds(self, *kinds: ProbeKind) -> list[float]:
        """Freshness of these kinds, in seconds; a missed event counts as infinite."""
        found = [one.seconds for one in self.served if one.kind in kinds]
        return found + [float("inf") for one in self.missed if one.kind in kinds]

    def percentile(self, share: float, *kinds: ProbeKind) -> float:
        """Nearest-rank percentile (share in 0 to 100) of `seconds`; NaN where there is none."""
        found = self.seconds(*kinds)
        return float(np.percentile(found, share, method="inverted_cdf")) if found else float("nan")

    def during(self, spans: Sequence[tuple[float, float]], *kinds: ProbeKind) -> int:
        """How many served events of these kinds were sent within one of the spans of epoch seconds."""
        sent = [one.sent_at for one in self.served if one.kind in kinds]
        return sum(any(begin <= at <= end for begin, end in spans) for at in sent)


class Watch:
    """Polls Redis for the probes under way, in a thread of its own between `start` and `stop`."""

    def __init__(
        self,
        lookups: Lookups,
        *,
        poll_s: float = 0.005,
        patience_s: float = 30.0,
        most: int = 1_000,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._lookups, self._poll_s, self._patience_s, self._most = lookups, poll_s, patience_s, most
        self._clock, self._wall = clock, wall_clock
        self._lock = threading.Lock()
        self._waiting: list[Probe] = []
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self.found = Freshness()
        """Grows while the watch runs; complete after `stop`."""

    def send(self, kind: ProbeKind, id_: str) -> None:
        """Say that an event is sent right after this call. Nothing is watched before the first version is served."""
        with self._lock:
            if len(self._waiting) >= self._most:
                return
        try:
            pointer = self._lookups.pointer()
            if pointer is None:
                return
            before = self._lookups.read(pointer.version, _kind(kind), [id_])[0]
        except SinkUnavailable:
            return
        if (before is None) != (kind != "user"):
            return  # something "new" that is there already, or a user whom this version does not have
        probe = Probe(
            kind=kind, id=id_, sent=self._clock(), sent_at=self._wall(), version=pointer.version, before=before
        )
        with self._lock:
            self._waiting.append(probe)

    def look(self) -> None:
        """One look at Redis."""
        with self._lock:
            waiting = list(self._waiting)
        if not waiting:
            return
        try:
            pointer = self._lookups.pointer()
            found = {} if pointer is None else self._read(pointer.version, waiting)
        except SinkUnavailable:
            return
        if pointer is None:
            return
        now, done = self._clock(), set[int]()
        for at, probe in enumerate(waiting):
            flipped = pointer.version != probe.version
            value = found[_kind(probe.kind), probe.id]
            if probe.kind == "user" and flipped:
                self.found.set_aside += 1
            elif value is not None and value != probe.before:
                self.found.served.append(
                    Served(
                        kind=probe.kind,
                        id=probe.id,
                        sent_at=probe.sent_at,
                        seconds=now - probe.sent,
                        across_flip=flipped,
                    )
                )
            elif now - probe.sent > self._patience_s:
                self.found.missed.append(probe)
            else:
                continue
            done.add(at)
        with self._lock:
            # New ones have only been added at the end meanwhile.
            self._waiting = [probe for at, probe in enumerate(self._waiting) if at not in done]

    def waiting(self) -> int:
        """How many events are under way."""
        with self._lock:
            return len(self._waiting)

    def start(self) -> None:
        """Begin to poll."""
        self._thread = threading.Thread(target=self._run, name="freshness", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop polling; what is still under way was missed. May be called twice."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
        with self._lock:
            self.found.missed += self._waiting
            self._waiting = []

    def _run(self) -> None:
        while not self._stopping.wait(self._poll_s):
            self.look()

    def _read(self, version: int, waiting: Sequence[Probe]) -> dict[tuple[Kind, str], bytes | None]:
        found: dict[tuple[Kind, str], bytes | None] = {}
        kinds: tuple[Kind, ...] = ("items", "users")
        for kind in kinds:
            ids = [probe.id for probe in waiting if _kind(probe.kind) == kind]
            found |= {
                (kind, id_): value for id_, value in zip(ids, self._lookups.read(version, kind, ids), strict=True)
            }
        return found


def _kind(kind: ProbeKind) -> Kind:
    return "items" if kind == "item" else "users"


class Picker:
    """Decides which messages of the stream are probes, and tells the watch right before they are sent.

    `quiet`: how many interactions a returning user must have been away for, so that nothing of theirs is still under
    way. `every`: of so many interactions, at most one is a returning user's probe. `plain` says of a user id that no
    features of that user are sent, which could be served before the first event is.
    """

    def __init__(self, watch: Watch, *, quiet: int, every: int, plain: Callable[[str], bool]) -> None:
        self._watch, self._quiet, self._every, self._plain = watch, quiet, every, plain
        self._last: dict[str, int] = {}
        self._picked = -every

    def __call__(self, message: Message, *, live: bool) -> None:
        """Call it with every message in order, `live` for those of the constant stream."""
        if message.kind == "items":
            if live:
                self._watch.send("item", message.key.decode())
            return
        if message.kind == "users":
            return
        user, number = message.key.decode(), message.number
        last = self._last.get(user)
        self._last[user] = number
        if not live:
            return
        if last is None:
            if self._plain(user):
                self._watch.send("new_user", user)
        elif number - last >= self._quiet and number - self._picked >= self._every:
            self._picked = number
            self._watch.send("user", user)
