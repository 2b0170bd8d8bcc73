"""The fast path over an in-memory sink: nothing that arrives is lost, whenever a version is offered, flipped to or
given up, and whatever the sink does meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from models.learner import Learner
from models.memory import Memory
from models.serving import Snapshot
from models.spec import ModelSpec, TrainSpec
from service.arrivals import Arrival, Offsets, event_batch
from service.fast_path import FastPath
from service.live import Kind, Live, Serving, VectorSink
from service.metrics import Metrics
from streams.events import Interaction, Item, User
from streams.memory_sink import MemorySink
from streams.sink_types import SinkRefused

pytestmark = pytest.mark.usefixtures("one_thread")

SPEC = ModelSpec(dim=4, history=3, modalities={"text": 3}, user_features={"profile": 2})
TRAIN = TrainSpec(threads=1)
SLICE = 2
TOPICS = {"click": "interactions", "item": "items", "user": "users"}


class Told(Serving):
    """Remembers in which slices it was told what; a fresh one is told the same and writes it elsewhere at once.

    At once, since a deletion that is learned later also disappears from the snapshot that they share.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        super().__init__(snapshot)
        self.slices: list[list[Arrival]] = []
        self.fresh, self.elsewhere = Serving(snapshot), MemorySink()
        publish(self.fresh, self.elsewhere)

    def observe(self, arrivals: Iterable[Arrival]) -> Any:
        self.slices.append(list(arrivals))
        self.fresh.write(self.elsewhere, self.fresh.observe(self.slices[-1]))
        return super().observe(self.slices[-1])

    @property
    def all(self) -> list[Arrival]:
        return [arrival for told in self.slices for arrival in told]


class World:
    """A catalogue with a little history, and what arrives: one partition a topic, offsets in order of arrival."""

    def __init__(self) -> None:
        self.memory = Memory(SPEC, TRAIN.actions)
        self.learner = Learner(SPEC, TRAIN, self.memory, seed=0)
        self.offsets = dict.fromkeys(TOPICS.values(), 0)
        self.arrived: list[Arrival] = []
        self.learn([self.item(n) for n in range(4)] + [self.user(n) for n in range(2)])
        self.learn([self.click(n % 3, n % 4) for n in range(8)])
        self.arrived.clear()
        self.base = dict(self.offsets)

    def ends(self, learned: int) -> Offsets:
        """Next offsets to read after the first so many arrivals."""
        ends = dict(self.base)
        for arrival in self.arrived[:learned]:
            ends[arrival.topic] = arrival.offset + 1
        return {topic: {0: end} for topic, end in ends.items()}

    def _next(self, kind: str, event: Interaction | Item | User) -> Arrival:
        topic = TOPICS[kind]
        arrival = Arrival(topic, 0, self.offsets[topic], 1000.0 + sum(self.offsets.values()), event)
        self.offsets[topic] += 1
        self.arrived.append(arrival)
        return arrival

    def click(self, user: int, item: int) -> Arrival:
        time = 1000.0 + sum(self.offsets.values())
        who, what = f"u{user}", f"i{item}"
        return self._next(
            "click", Interaction(user_id=who, item_id=what, action="view", value=2.0, time=time, event_id=None)
        )

    def item(self, n: int, *, deleted: bool = False) -> Arrival:
        seed = np.random.default_rng([n, len(self.arrived)])
        features = {} if deleted else {"text": seed.normal(size=3).astype(np.float32)}
        return self._next(
            "item", Item(item_id=f"i{n}", time=None, features=features, text=None, attributes={}, deleted=deleted)
        )

    def user(self, n: int, *, deleted: bool = False) -> Arrival:
        features = {} if deleted else {"profile": np.array([n, len(self.arrived)], np.float32)}
        return self._next("user", User(user_id=f"u{n}", time=None, features=features, deleted=deleted))

    def learn(self, arrivals: Sequence[Arrival]) -> None:
        """A phase: from here on snapshots contain these."""
        for arrival in arrivals:
            event = arrival.event
            if isinstance(event, Interaction):
                self.memory.append(event_batch([event]))
            elif isinstance(event, Item):
                if event.deleted:
                    self.memory.forget_item(event.item_id)
                else:
                    self.memory.announce(event.item_id, arrival.time, event.features, event.attributes)
            elif event.deleted:
                self.memory.forget_user(event.user_id)
            else:
                self.memory.enrol(event.user_id, arrival.time, event.features)

    def snapshot(self, version: int) -> Snapshot:
        return Snapshot.build(SPEC, self.learner.state_dict(), self.memory, version=version)


class Daemon:
    """The fast path with a current version 1, already published."""

    def __init__(self, sink: MemorySink | None = None) -> None:
        self.world = World()
        self.sink = sink or MemorySink()
        self.live = Live()
        self.fast_path = FastPath(
            live=self.live,
            sink=self.sink,
            metrics=Metrics(CollectorRegistry()),
            clock=lambda: 2000.0,
            slice_size=SLICE,
        )
        self.first = Told(self.world.snapshot(1))
        publish(self.first, self.sink)
        self.live.swap(self.first)
        self.given = self.learned = 0

    def arrive(self, count: int | None = None) -> None:
        """Hands the next arrivals over, as one poll: all that there are, or so many."""
        stop = len(self.world.arrived) if count is None else self.given + count
        self.fast_path.apply(self.world.arrived[self.given : stop])
        self.given = min(stop, len(self.world.arrived))

    def offer(self, learned: int) -> Told:
        """A new version that contains the first `learned` arrivals, written and offered."""
        self.world.learn(self.world.arrived[self.learned : learned])
        self.learned = learned
        serving = Told(self.world.snapshot(2))
        publish(serving, self.sink)
        self.fast_path.offer(serving, self.world.ends(learned))
        return serving

    def withdraw(self) -> None:
        self.fast_path.withdraw()
        self.sink.drop(2)

    def forget(self) -> None:
        """The phase whose version was offered last is committed."""
        self.fast_path.forget(self.world.ends(self.learned))

    def missed_a_write(self) -> bool:
        return self.fast_path.sink_lost

    def flip(self, serving: Serving) -> bool:
        with self.live.lock:
            if not self.fast_path.up_to_date(serving):
                return False
            self.live.swap(serving)
            return True


def publish(serving: Serving, sink: VectorSink) -> None:
    for ids, vectors in serving.snapshot.items_in_chunks():
        sink.write(serving.version, "items", ids, vectors)
    for ids, vectors in serving.snapshot.users_in_chunks():
        sink.write(serving.version, "users", ids, vectors)


def stored(sink: MemorySink, version: int) -> dict[Kind, dict[str, bytes]]:
    kinds: tuple[Kind, ...] = ("items", "users")
    return {kind: dict(sink.store.versions[version].fields[kind]) for kind in kinds}


def as_if_fresh(serving: Told) -> dict[Kind, dict[str, bytes]]:
    """What a fresh overlay of the same snapshot has written, told the same."""
    return stored(serving.elsewhere, serving.version)


kinds = st.sampled_from(["click"] * 6 + ["item", "user", "no item", "no user"])
arriving = st.lists(st.tuples(kinds, st.integers(0, 3), st.integers(0, 5)), min_size=1, max_size=24)
turns = st.lists(st.sampled_from(["arrive", "arrive", "offer", "flip", "withdraw", "forget"]), max_size=30)


def simulate(world: World, stream: Sequence[tuple[str, int, int]]) -> None:
    for kind, user, item in stream:
        if kind == "click":
            world.click(user, item)
        elif kind.endswith("item"):
            world.item(item, deleted=kind == "no item")
        else:
            world.user(user, deleted=kind == "no user")


@settings(max_examples=60, deadline=None)
@given(stream=arriving, turns=turns, data=st.data())
def test_a_version_that_is_flipped_to_has_been_told_everything(
    stream: list[tuple[str, int, int]], turns: list[str], data: st.DataObject
) -> None:
    daemon = Daemon()
    simulate(daemon.world, stream)
    offered: Told | None = None
    contains = 0
    flipped_at: int | None = None
    for turn in [*turns, "offer", *["flip"] * (len(stream) + 2)]:
        if turn == "arrive":
            daemon.arrive(data.draw(st.integers(0, 4)))
        elif turn == "offer" and offered is None:
            contains = data.draw(st.integers(daemon.learned, daemon.given))
            offered = daemon.offer(contains)
        elif turn == "withdraw" and offered is not None and flipped_at is None:
            daemon.withdraw()
            offered = None
        elif turn == "forget":
            daemon.forget()
        elif turn == "flip" and offered is not None and flipped_at is None:
            if daemon.flip(offered):
                flipped_at = daemon.given
            else:
                daemon.arrive(0)
    assert offered is not None
    assert flipped_at is not None
    daemon.arrive()

    assert daemon.first.all == daemon.world.arrived[:flipped_at]
    assert offered.all == daemon.world.arrived[contains:], "each arrival once, in order, and none of the phase's own"
    assert stored(daemon.sink, 1) == as_if_fresh(daemon.first)
    assert stored(daemon.sink, 2) == as_if_fresh(offered)


def test_while_a_version_is_offered_both_are_written() -> None:
    daemon = Daemon()
    offered = daemon.offer(0)
    daemon.world.item(7)
    daemon.world.click(0, 7)
    daemon.arrive()
    daemon.world.item(1, deleted=True)
    daemon.world.user(1, deleted=True)
    daemon.arrive()
    daemon.arrive(0)
    for version in (1, 2):
        there = stored(daemon.sink, version)
        assert "i7" in there["items"]
        assert "i1" not in there["items"]
        assert "u1" not in there["users"]
    assert daemon.flip(offered)
    daemon.world.click(2, 3)
    before = stored(daemon.sink, 1)
    daemon.arrive()
    assert stored(daemon.sink, 1) == before, "what was left is not written any more"


def test_a_new_item_and_a_touched_user_are_in_the_sink_after_one_poll() -> None:
    daemon = Daemon()
    before = stored(daemon.sink, 1)
    daemon.world.item(9)
    daemon.world.click(0, 9)
    daemon.world.click(5, 1)
    daemon.arrive()
    after = stored(daemon.sink, 1)
    changed = {kind: {one for one in after[kind] if after[kind][one] != before[kind].get(one)} for kind in after}
    assert changed == {"items": {"i9", "i1"}, "users": {"u0", "u5"}}
    assert np.frombuffer(after["items"]["i9"], "<f4") == pytest.approx(daemon.first.overlay.item_vectors(["i9"])[0])


def test_a_sink_that_was_away_gets_what_it_missed() -> None:
    daemon = Daemon()
    daemon.sink.store.available = False
    daemon.world.click(0, 3)
    daemon.world.item(2, deleted=True)
    daemon.arrive()
    daemon.world.item(9)
    daemon.arrive()
    assert daemon.missed_a_write()
    daemon.sink.store.available = True
    daemon.fast_path.rewrite()
    assert not daemon.missed_a_write()
    fresh, sink = Serving(daemon.first.snapshot), MemorySink()
    publish(fresh, sink)
    fresh.write(sink, fresh.observe(daemon.first.all))
    assert stored(daemon.sink, 1) == stored(sink, 1)
    daemon.world.click(1, 9)
    daemon.arrive()
    assert "i9" in stored(daemon.sink, 1)["items"]


def test_a_version_can_take_over_from_one_that_missed_writes() -> None:
    daemon = Daemon()
    daemon.sink.store.available = False
    daemon.world.click(0, 3)
    daemon.arrive()
    daemon.sink.store.available = True
    assert daemon.missed_a_write()
    offered = daemon.offer(0)
    daemon.arrive(0)
    assert daemon.flip(offered)
    assert not daemon.missed_a_write()
    assert stored(daemon.sink, 2) == as_if_fresh(offered)


def test_a_version_that_missed_a_write_itself_is_not_flipped_to() -> None:
    daemon = Daemon()
    offered = daemon.offer(0)
    daemon.sink.store.available = False
    daemon.world.click(0, 3)
    daemon.arrive()
    daemon.sink.store.available = True
    daemon.fast_path.rewrite()
    assert not daemon.flip(offered)
    daemon.withdraw()
    again = daemon.offer(0)
    daemon.arrive(0)
    assert daemon.flip(again)
    assert stored(daemon.sink, 2) == as_if_fresh(again)


class Full(MemorySink):
    """Refuses to write, as a Redis does that is out of memory."""

    full = False

    def write(self, version: int, kind: Kind, ids: Sequence[str], vectors: npt.ArrayLike) -> None:
        if self.full:
            raise SinkRefused("Redis refused: it is out of memory")
        super().write(version, kind, ids, vectors)


def test_a_sink_that_refuses_does_not_stop_what_arrives() -> None:
    sink = Full()
    daemon = Daemon(sink)
    sink.full = True
    daemon.world.click(0, 3)
    daemon.arrive()
    assert daemon.missed_a_write()
    with pytest.raises(SinkRefused):
        daemon.fast_path.rewrite()
    assert daemon.missed_a_write()
    sink.full = False
    daemon.fast_path.rewrite()
    assert stored(sink, 1) == as_if_fresh(daemon.first)


def test_nobody_waits_for_a_version_that_nobody_will_bring_up_to_date() -> None:
    daemon = Daemon()
    offered = daemon.offer(0)
    daemon.fast_path.end()
    assert not daemon.fast_path.wait_caught_up(60.0)
    assert not daemon.flip(offered)
