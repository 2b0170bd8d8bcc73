"""A phase comes into memory: in order, without duplicates, and what was deleted stays deleted."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from models.memory import Memory
from models.spec import ModelSpec
from service.arrivals import Arrival, ClosedPhase
from service.collecting import apply_content, collect, remember
from service.config_tables import EventsConfig
from service.dedupe import Deduplicator
from service.id_limits import IdLimits
from streams.events import Interaction, Item, User


def memory() -> Memory:
    return Memory(ModelSpec(dim=4), {"default": 1.0})


def click(offset: int, time: float, user: str = "u", item: str = "i", *, event_id: str | None = None) -> Arrival:
    event = Interaction(user_id=user, item_id=item, action="view", value=1.0, time=time, event_id=event_id)
    return Arrival("interactions", 0, offset, time, event)


def item(offset: int, time: float, *, deleted: bool = False) -> Arrival:
    return Arrival(
        "items", 0, offset, time, Item(item_id="i", time=None, features={}, text=None, attributes={}, deleted=deleted)
    )


def user(offset: int, time: float, *, deleted: bool = False) -> Arrival:
    return Arrival("users", 0, offset, time, User(user_id="u", time=None, features={}, deleted=deleted))


def learn(
    into: Memory, clicks: Sequence[Arrival], items: Sequence[Arrival] = (), users: Sequence[Arrival] = ()
) -> tuple[range, int]:
    """Log positions of the phase, and how many tombstones it left."""
    phase = ClosedPhase(
        start={}, end={}, interactions=list(clicks), items=list(items), users=list(users),
        opened_at=0, closed_at=0, closed_by="count",
    )  # fmt: skip
    collected = collect(
        phase, dedupe=Deduplicator(capacity=100), late_before=None, limits=IdLimits(EventsConfig()), memory=into
    )
    stones = apply_content(into, collected.content, cluster_id=None)
    return remember(into, collected), len(stones)


def test_clicks_count_in_the_order_of_time_and_once() -> None:
    into = memory()
    clicks = [click(0, 3.0, event_id="b"), click(1, 1.0, event_id="a"), click(2, 4.0, event_id="a")]
    assert learn(into, clicks)[0] == range(0, 2)
    assert into.view().time.tolist() == [1.0, 3.0]


@pytest.mark.parametrize("kind", ["items", "users"])
def test_what_was_done_before_a_deletion_does_not_bring_the_id_back(kind: str) -> None:
    into = memory()
    gone = {"items": [item(0, 2.0, deleted=True)]} if kind == "items" else {"users": [user(0, 2.0, deleted=True)]}
    positions, stones = learn(into, [click(0, 1.0), click(1, 2.0), click(2, 1.5, "other", "another")], **gone)
    assert (positions, stones) == (range(0, 3), 1)
    known = into.item_index("i") if kind == "items" else into.user_index("u")
    assert known is None
    blank = into.view().item if kind == "items" else into.view().user
    assert blank.tolist() == [-1, 1, -1]


def test_who_comes_back_after_a_deletion_is_somebody_new() -> None:
    into = memory()
    learn(into, [click(0, 1.0), click(1, 3.0, item="later")], users=[user(0, 2.0, deleted=True)])
    assert into.user_items("u") == {"later"}


def test_items_of_one_moment_get_the_same_rows_whatever_partition_they_come_from() -> None:
    def announced(partitions: Sequence[int]) -> list[str | None]:
        into, offsets = memory(), dict.fromkeys(range(3), 0)
        arrivals = []
        for number, partition in enumerate(partitions):
            event = Item(item_id=f"i{number}", time=7.0, features={}, text=None, attributes={}, deleted=False)
            arrivals.append(Arrival("items", partition, offsets[partition], 7.0, event))
            offsets[partition] += 1
        learn(into, [], items=arrivals)
        return list(into.items.ids)

    assert announced([0, 0, 1, 1, 2]) == announced([2, 1, 0, 2, 0])


def test_an_item_announced_again_after_its_deletion_is_there() -> None:
    into = memory()
    learn(into, [click(0, 1.0)], items=[item(0, 0.5, deleted=True), item(1, 4.0)])
    assert into.item_index("i") is not None
    learn(into, [click(1, 5.0)], items=[item(2, 6.0), item(3, 7.0, deleted=True)])
    assert into.item_index("i") is None


def test_many_deletions_at_different_times_leave_each_its_own_later_clicks() -> None:
    into = memory()
    clicks = [click(n, float(n), user=f"u{n % 2}", item=f"i{n}") for n in range(8)]
    stones = [
        Arrival("users", 0, 0, 5.0, User(user_id="u0", time=None, features={}, deleted=True)),
        Arrival("users", 0, 1, 2.0, User(user_id="u1", time=None, features={}, deleted=True)),
    ]
    assert learn(into, clicks, users=stones)[0] == range(0, 8)
    assert (into.user_items("u0"), into.user_items("u1")) == ({"i6"}, {"i3", "i5", "i7"})
