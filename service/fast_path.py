"""The fast path: new items, touched users and popularity reach Redis at the next poll, not at the next phase.

Owned by intake. Every batch of arrivals is observed by the current version's overlay and written under it; while the
next version is being published, also by and under that one. Each write is one hash field, so no reader sees half a
vector.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence

import structlog

from service.arrivals import Arrival, Offsets
from service.crash_points import crash_point
from service.live import SINK_TROUBLE, Live, Serving, VectorSink
from service.metrics import Metrics
from streams.events import Interaction, Item

log = structlog.get_logger(__name__)


class FastPath:
    """Keeps the served vectors as fresh as the last poll."""

    def __init__(
        self, *, live: Live, sink: VectorSink, metrics: Metrics, clock: Callable[[], float], slice_size: int = 1000
    ) -> None:
        self._live = live
        self._sink = sink
        self._metrics = metrics
        self._clock = clock
        self._slice = slice_size
        self._pending: deque[Arrival] = deque()
        """Arrivals that no finished phase contains: what the next snapshot's overlay starts from."""
        self._backlog: deque[Arrival] = deque()
        """What the next version's overlay has still to be told."""
        self._next: Serving | None = None
        self._offer: tuple[Serving, Offsets] | None = None
        self._caught_up = threading.Event()
        self._forget: Offsets | None = None
        self._ended = False
        metrics.recalibrated.set_function(lambda: live.recalibrated)

    @property
    def sink_lost(self) -> bool:
        """Whether Redis missed a write of the current version, so that `rewrite` is due."""
        current = self._live.current
        return current is not None and current.behind

    @property
    def known_ids(self) -> tuple[int, int]:
        """Users and items of the served version's snapshot."""
        current = self._live.current
        return (0, 0) if current is None else (current.snapshot.n_users, current.snapshot.n_items)

    def apply(self, arrivals: Sequence[Arrival]) -> None:
        """Intake: these have just arrived."""
        with self._live.lock:
            self._forget_learned()
            self._pending.extend(arrivals)
            self._accept_offer(arrivals)
            if self._live.current is not None and arrivals:
                self._serve(self._live.current, arrivals)
        if arrivals:
            self._measure(arrivals)

    def arrived_since(self, learned: Offsets) -> list[Arrival]:
        """Learning: what has arrived, and is not in a snapshot that ends at `learned`."""
        with self._live.lock:
            pending = list(self._pending)
        return [arrival for arrival in pending if not arrival.before(learned)]

    def offer(self, serving: Serving, learned: Offsets) -> None:
        """Learning: `serving` is written; bring it up to date with what came after `learned`, and keep it so."""
        if not self._ended:
            self._caught_up.clear()
        self._offer = (serving, learned)

    def wait_caught_up(self, timeout_s: float) -> bool:
        """Learning: waits until the offered version has had everything that has arrived, at most `timeout_s`."""
        return self._caught_up.wait(timeout_s) and not self._ended

    def end(self) -> None:
        """Intake: there will be no more `apply`, so that nobody waits for it."""
        self._ended = True
        self._caught_up.set()

    def up_to_date(self, serving: Serving) -> bool:
        """Learning, holding `Live.lock`: whether `serving` lacks nothing that has arrived, so that it may be
        flipped to."""
        return self._next is serving and not self._backlog and not serving.behind and not self._ended

    def withdraw(self) -> None:
        """Learning: the offered version will not be published after all."""
        with self._live.lock:
            self._offer = None
            self._next = None
            self._live.next = None
            self._backlog.clear()

    def forget(self, learned: Offsets) -> None:
        """Learning: a phase up to these offsets is committed, so every later snapshot contains it."""
        self._forget = learned

    def rewrite(self) -> None:
        """Writes all that the current overlay has touched again, after Redis was away. Raises what the sink raises."""
        with self._live.lock:
            current = self._live.current
            if current is not None:
                current.write(self._sink, current.touched)
                current.behind = False

    def _forget_learned(self) -> None:
        learned, self._forget = self._forget, None
        if learned is not None:
            self._pending = deque(arrival for arrival in self._pending if not arrival.before(learned))

    def _accept_offer(self, arrivals: Sequence[Arrival]) -> None:
        if self._next is not None and self._live.next is not self._next:
            self._next = None  # it was flipped to, which needs an empty backlog: from here on it is the current version
        if self._offer is not None:
            serving, learned = self._offer
            self._offer = None
            self._backlog = deque(arrival for arrival in self._pending if not arrival.before(learned))
            self._next = self._live.next = serving
        elif self._next is not None:
            self._backlog.extend(arrivals)
        if self._next is None:
            return
        crash_point("fast.two_versions")
        # A slice at a time, so that the current version's readers do not wait for the next one's; with much to catch up
        # on, larger ones, since a user touched often in a slice is computed once.
        size = min(max(self._slice, len(self._backlog) // 8), 10 * self._slice, len(self._backlog))
        if size:
            self._serve(self._next, [self._backlog.popleft() for _ in range(size)])
        if self._backlog:
            self._caught_up.clear()
        else:
            self._caught_up.set()

    def _serve(self, serving: Serving, arrivals: Sequence[Arrival]) -> None:
        passed_over = serving.passed_over
        touched = serving.observe(arrivals)
        self._metrics.fast_path_passed_over.inc(serving.passed_over - passed_over)
        if serving.behind:
            return
        try:
            serving.write(self._sink, touched)
        except SINK_TROUBLE as error:
            serving.behind = True
            self._metrics.redis_up.set(0)
            log.warning(
                "redis takes no vectors; learning goes on, and they will be written when it does", error=str(error)
            )

    def _measure(self, arrivals: Sequence[Arrival]) -> None:
        if self._live.current is None or self.sink_lost:
            return
        now = self._clock()
        for arrival in arrivals:
            event = arrival.event
            kind = "user" if isinstance(event, Interaction) else "item" if isinstance(event, Item) else "profile"
            self._metrics.freshness_seconds.labels(kind=kind).observe(max(0.0, now - arrival.timestamp_s))
