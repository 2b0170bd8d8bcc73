"""Memory: histories as of any event, and bytes that restore it bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.event_log import LEAP
from models.features import FeatureTable
from models.histories import Histories
from models.learner import Learner
from models.memory import ACTIONS as ACTION_ROWS
from models.memory import SEGMENTS, EventBatch, Memory
from models.scorer import observed
from models.spec import ModelSpec, TrainSpec
from tests.unit.test_learner import assert_same as assert_same_state

SPEC = ModelSpec(dim=4, history=3, modalities={"text": 3, "video": 2}, frames={"video": 4}, user_features={"age": 1})
ACTIONS = {"default": 1.0, "skip": -1.0}


def batch(*events: tuple[str, str, float]) -> EventBatch:
    return EventBatch(
        [e[0] for e in events],
        [e[1] for e in events],
        ["view"] * len(events),
        np.array([3.5] * len(events), np.float32),
        np.array([e[2] for e in events], np.float64),
    )


def filled() -> Memory:
    memory = Memory(SPEC, ACTIONS)
    memory.announce("a", 1.0, {"text": np.ones(3, np.float32)}, {"title": "A", "tags": ["x"]})
    memory.enrol("u", 1.0, {"age": np.array([0.5], np.float32)})
    memory.append(batch(("u", "a", 2.0), ("v", "b", 3.0), ("u", "c", 3.0), ("u", "b", 3.0), ("u", "a", 4.0)))
    memory.announce("b", 9.0, {"video": np.arange(6, dtype=np.float32).reshape(3, 2)}, {})
    return memory


def assert_same(one: Memory, other: Memory) -> None:
    assert (one.items.ids, one.users.ids, one.actions.ids) == (other.items.ids, other.users.ids, other.actions.ids)
    assert one.item_attributes == other.item_attributes
    np.testing.assert_array_equal(one.announced, other.announced)
    for name, column in vars(one.view()).items():
        np.testing.assert_array_equal(column, getattr(other.view(), name), err_msg=name)
    for table, same in ((one.item_features, other.item_features), (one.user_features, other.user_features)):
        for name in table.dims:
            rows = np.arange(10)
            for left, right in zip(table.gather(name, rows), same.gather(name, rows), strict=True):
                np.testing.assert_array_equal(left, right)


def test_history_of_an_event_has_strictly_earlier_events_newest_first() -> None:
    log = filled().view()
    history = Histories.from_log(log, log.before[[0, 2, 3, 4]], 3, until_B=log.time[[0, 2, 3, 4]])
    a, b, c = 0, 1, 2
    assert history.item_BL.tolist() == [[-1, -1, -1], [a, -1, -1], [a, -1, -1], [b, c, a]]
    assert history.count_B.tolist() == [0, 1, 1, 3]
    assert history.value_sum_B.tolist() == [0, 3.5, 3.5, 10.5]


def test_late_event_is_not_in_the_history_of_earlier_times() -> None:
    memory = Memory(SPEC, ACTIONS)
    memory.append(batch(("u", "a", 10.0), ("u", "b", 20.0)))
    memory.append(batch(("u", "late", 15.0), ("u", "c", 18.0)))
    log = memory.view()
    history = Histories.from_log(log, log.before[[2, 3]], 3, until_B=log.time[[2, 3]])
    assert history.item_BL.tolist() == [[0, -1, -1], [2, -1, 0]]


def test_view_does_not_see_what_comes_later() -> None:
    memory = filled()
    view = memory.view()
    tails = view.tails(np.array([0, 1, 2]))
    memory.append(batch(*[("u", f"i{n}", 5.0 + n) for n in range(100)]))
    assert len(view) == 5
    assert view.tails(np.array([0, 1, 2])).tolist() == tails.tolist() == [4, 1, -1]


def test_item_counts_as_announced_from_its_first_mention() -> None:
    memory = filled()
    assert memory.announced.tolist() == [1.0, 3.0, 3.0]
    assert memory.user_items("u") == {"a", "b", "c"}
    assert memory.attributes("a") == {"title": "A", "tags": ["x"]}


def test_drained_chunks_restore_the_same_memory() -> None:
    memory = Memory(SPEC, ACTIONS)
    memory.announce("a", 1.0, {"text": np.ones(3, np.float32)})
    chunks = [memory.drain()]
    memory.append(batch(("u", "a", 2.0), ("v", "b", 3.0)))
    chunks.append(memory.drain())
    memory.quarantine(range(1, 2))
    memory.announce("a", 0.5, {"text": np.zeros(3, np.float32)}, {"n": 1})
    memory.append(batch(("u", "b", 3.0), ("u", "d", 3.0)))
    memory.forget_item("b")
    memory.append(batch(("u", "b", 4.0)))
    memory.forget_user("v")
    chunks.append(memory.drain())
    stored = {name: [chunk[name] for chunk in chunks] for name in SEGMENTS}
    assert_same(memory, Memory.restore(SPEC, ACTIONS, stored))
    assert memory.drain() == dict.fromkeys(SEGMENTS, b"")


def test_restored_memory_drains_only_what_is_new() -> None:
    memory = filled()
    restored = Memory.restore(SPEC, ACTIONS, {name: [raw] for name, raw in memory.drain().items()})
    more = batch(("w", "e", 7.0))
    restored.append(more)
    memory.append(more)
    assert restored.drain() == memory.drain()


def test_chunks_may_be_cut_anywhere() -> None:
    memory = filled()
    drained = memory.drain()
    bytewise = {name: [raw[i : i + 1] for i in range(len(raw))] for name, raw in drained.items()}
    assert_same(memory, Memory.restore(SPEC, ACTIONS, bytewise))


@pytest.mark.parametrize("name", ["vocabulary", "events"])
def test_torn_segment_is_refused(name: str) -> None:
    drained = filled().drain()
    stored = {n: [raw[:-1] if n == name else raw] for n, raw in drained.items()}
    with pytest.raises(ValueError, match="restore an earlier version"):
        Memory.restore(SPEC, ACTIONS, stored)


def test_rewritten_memory_is_the_same_without_what_was_forgotten() -> None:
    memory = filled()
    memory.append(batch(("secret-user", "secret-item", 5.0), ("u", "secret-item", 6.0)))
    memory.quarantine(range(0, 1))
    memory.forget_user("secret-user")
    memory.forget_item("secret-item")
    rewritten = memory.rewrite()
    assert not any(b"secret" in raw for raw in rewritten.values())
    restored = Memory.restore(SPEC, ACTIONS, {name: [raw] for name, raw in rewritten.items()})
    assert_same(memory, restored)
    assert restored.user_index("secret-user") is None


def test_forgotten_id_that_comes_back_is_somebody_new() -> None:
    memory = filled()
    memory.forget_user("u")
    assert memory.user_items("u") == set()
    memory.append(batch(("u", "b", 9.0)))
    assert memory.user_items("u") == {"b"}
    assert memory.user_index("u") == 2


events = st.lists(
    st.tuples(st.sampled_from("uvwx"), st.sampled_from("abcdef"), st.integers(0, 9).map(float)), min_size=1, max_size=40
)


@settings(max_examples=60, deadline=None)
@given(events=events, cut=st.integers(0, 40))
def test_histories_are_those_of_a_plain_search_however_events_are_grouped(
    events: list[tuple[str, str, float]], cut: int
) -> None:
    memory, whole = Memory(SPEC, ACTIONS), Memory(SPEC, ACTIONS)
    whole.append(batch(*events))
    for part in (events[:cut], events[cut:]):
        if part:
            memory.append(batch(*part))
    assert_same(memory, whole)
    log = memory.view()
    for at, (user, _, time) in enumerate(events):
        earlier = [n for n in range(at) if events[n][0] == user]
        # the walk starts at the newest arrival that is strictly earlier in time
        while earlier and events[earlier[-1]][2] >= time:
            earlier.pop()
        assert log.before[at] == (earlier[-1] if earlier else -1)
        assert log.count[at] == sum(events[n][0] == user for n in range(at + 1))


@settings(max_examples=60, deadline=None)
@given(
    users=st.lists(st.integers(0, 2), min_size=1, max_size=150),
    cut=st.integers(0, 150),
    length=st.integers(1, 3 * LEAP),
    gone=st.sampled_from((None, "u", "v")),
)
def test_long_histories_are_the_ends_of_chains(users: list[int], cut: int, length: int, gone: str | None) -> None:
    memory = Memory(SPEC, ACTIONS)
    events = [("uvw"[user], f"i{at}", float(at)) for at, user in enumerate(users)]
    for part in (events[:cut], events[cut:]):
        if part:
            memory.append(batch(*part))
    if gone is not None:
        memory.forget_user(gone)
    log = memory.view()
    starts = np.array([-1, *(at for at in range(len(log)) if log.user[at] >= 0)])
    found = log.histories(starts, length)
    expected = [log.chain(start)[:length] for start in starts.tolist()]
    assert [row[row >= 0].tolist() for row in found] == expected
    assert found.shape[1] == max(map(len, expected))
    assert all((row[len(one) :] == -1).all() for row, one in zip(found, expected, strict=True))


def test_actions_of_the_configuration_keep_their_weights_however_many_others_came_first() -> None:
    memory = Memory(ModelSpec(dim=8), {"default": 1.0, "dislike": -1.0, "purchase": 5.0})
    others = 2 * ACTION_ROWS
    for names in ([f"a{n}" for n in range(others)], ["dislike", "purchase", "another"]):
        count = len(names)
        values, times = np.full(count, np.nan, np.float32), np.arange(count, dtype=np.float64)
        memory.append(EventBatch(["u"] * count, [f"i{n}" for n in range(count)], names, values, times))
    restored = Memory.restore(memory.spec, memory.weights, {name: [raw] for name, raw in memory.drain().items()})
    for one in (memory, restored):
        assert one.view().weight[-3:].tolist() == [-1.0, 5.0, 1.0]
        assert len(one.actions) == ACTION_ROWS
        assert len(set(one.view().action[-3:].tolist())) == 3


@pytest.mark.parametrize("rewritten", [True, False])
def test_when_an_item_was_met_is_known_though_who_met_it_is_forgotten(rewritten: bool) -> None:
    memory = Memory(ModelSpec(dim=8), {})
    memory.append(EventBatch(["u"], ["x"], ["view"], np.array([np.nan], np.float32), np.array([100.0])))
    memory.append(EventBatch(["v"], ["x"], ["view"], np.array([np.nan], np.float32), np.array([50.0])))
    for user in "uv":
        memory.forget_user(user)
    stored = memory.rewrite() if rewritten else memory.drain()
    restored = Memory.restore(memory.spec, {}, {name: [raw] for name, raw in stored.items()})
    assert restored.announced.tolist() == memory.announced.tolist() == [50.0]


def test_what_is_told_again_takes_no_more_room() -> None:
    table = FeatureTable({"text": 2, "clip": 2}, {"clip": 3})
    first = {"text": np.ones(2, np.float32), "clip": np.ones((2, 2), np.float32)}
    for _ in range(5):
        table.put(0, first)
    assert [len(table.since(name, 0)[0]) for name in table.dims] == [1, 1]
    longer = first | {"clip": np.concatenate((np.ones((2, 2)), np.zeros((1, 2)))).astype(np.float32)}
    table.put(0, longer)
    assert [len(table.since(name, 0)[0]) for name in table.dims] == [1, 2]
    assert table.get(0)["clip"].shape == (3, 2)


@pytest.mark.parametrize("restarts", [1, 2])
def test_after_a_deletion_and_a_restart_inputs_are_normalised_as_if_it_had_gone_on(restarts: int) -> None:
    spec = ModelSpec(dim=8, modalities={"text": 4}, user_features={"age": 1})
    draw, gone_on = np.random.default_rng(0), Memory(spec, {})
    for _ in range(2):
        for number in range(20):
            gone_on.announce(f"i{number}", 0.0, {"text": draw.normal(size=4).astype(np.float32)})
            gone_on.enrol(f"u{number}", 0.0, {"age": draw.normal(size=1).astype(np.float32)})
    learner = Learner(spec, TrainSpec(), gone_on, 0)
    learner._grow()
    restarted = gone_on
    for number in range(restarts):
        for memory in {id(one): one for one in (gone_on, restarted)}.values():
            memory.forget_item(f"i{number}")
            memory.forget_user(f"u{number}")
        stored = {name: [raw] for name, raw in restarted.rewrite().items()}
        restarted = Memory.restore(spec, {}, stored)
    other = Learner(spec, TrainSpec(), restarted, 0)
    other.load_state_dict(learner.state_dict())
    for number in range(10):
        text, age = (100 + draw.normal(size=size).astype(np.float32) for size in (4, 1))
        for memory in (gone_on, restarted):
            memory.announce(f"new {number}", 1.0, {"text": text})
            memory.enrol(f"new {number}", 1.0, {"age": age})
    for one in (learner, other):
        one._grow()
    assert observed(learner.scorer.encoders["text"]) == 50
    assert_same_state(learner.state_dict()["scorer"], other.state_dict()["scorer"])
