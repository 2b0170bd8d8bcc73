"""The learner: the same events give the same weights, wherever it was cut; and it learns what there is to learn."""

from __future__ import annotations

import io
import itertools
from typing import Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.examples import Examples
from models.fusion import FUSIONS
from models.learner import Learner
from models.memory import EventBatch, Memory
from models.objectives import OBJECTIVES
from models.ranking_objective import Ranking
from models.serving import Snapshot
from models.spec import ModelSpec, TrainSpec

ACTIONS = {"default": 1.0, "skip": -1.0}
TRAIN = TrainSpec(batch=48, actions=ACTIONS)


def spec_of(**changes: object) -> ModelSpec:
    shape = {"text": 5, "video": 3}
    base: dict[str, object] = {
        "dim": 8, "history": 5, "modalities": shape, "frames": {"video": 2}, "user_features": {"age": 2}
    }  # fmt: skip
    return ModelSpec(**{**base, **changes})  # type: ignore[arg-type]


def world(spec: ModelSpec, events: int = 240, *, items: int = 30, seed: int = 0, unit: float = 1.0) -> Memory:
    """Items of two halves, users who stay in one, some of it unannounced, unrated or skipped."""
    draw = np.random.default_rng(seed)
    memory = Memory(spec, ACTIONS)
    for n in range(items - 4):
        features = {"text": draw.normal(size=5) + n % 2, "video": draw.normal(size=(n % 2 + 1, 3))}
        kept = {name: vector.astype(np.float32) for name, vector in features.items() if name in spec.modalities}
        memory.announce(str(n), float(n), kept if n % 3 else {})
    for user_id, age in (("1", 1.0), ("2", -1.0)):
        memory.enrol(user_id, 0.0, {"age": np.full(2, age, np.float32)} if spec.user_features else {})
    user = draw.integers(0, 12, events)
    item = draw.integers(0, items // 2, events) * 2 + user % 2
    memory.append(
        EventBatch(
            [str(u) for u in user],
            [str(i) for i in item],
            ["skip" if n % 9 == 8 else "view" for n in range(events)],
            np.where(draw.random(events) < 0.8, unit * (user % 2 + draw.random(events)), np.nan).astype(np.float32),
            np.sort(draw.integers(30, 30 + events, events)).astype(np.float64),
        )
    )
    return memory


def assert_same(one: object, other: object) -> None:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict) and isinstance(other, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list) and isinstance(other, list):
        for left, right in zip(one, other, strict=True):
            assert_same(left, right)
    else:
        assert one == other


def stored(state: dict[str, object]) -> dict[str, object]:
    """Through a file, as a checkpoint goes."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)  # type: ignore[no-any-return]


KINDS = [*itertools.product(OBJECTIVES, ("dot", "mlp"), ("gated",)), *(("ranking", "dot", name) for name in FUSIONS)]


@pytest.mark.parametrize(("objective", "head", "fusion"), dict.fromkeys(KINDS))
def test_resumed_learning_is_uninterrupted_learning_bit_for_bit(objective: str, head: str, fusion: str) -> None:
    spec = spec_of(objective=objective, head=head, fusion=fusion)
    memory = world(spec)
    whole, first = (Learner(spec, TRAIN, memory, seed=3) for _ in range(2))
    for learner in (whole, first):
        learner.learn(np.arange(100), replay_ratio=1.0)
    torch.manual_seed(99)  # nothing of it may enter
    resumed = Learner(spec, TRAIN, memory, seed=77)
    resumed.load_state_dict(stored(first.state_dict()))
    before = torch.random.get_rng_state()
    reports = [one.learn(np.arange(100, 240), replay_ratio=2.0) for one in (whole, resumed)]
    assert reports[0] == reports[1]
    assert reports[0].finite
    assert reports[0].new == 140
    assert (reports[0].replayed > 100) == (objective != "rating"), "a value is learned from once"
    assert_same(whole.state_dict(), resumed.state_dict())
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_work_beside_the_steps_is_the_same_whenever_it_is_done(
    objective: Literal["ranking", "rating", "click"], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.learner.BLOCK", 60)
    spec = spec_of(objective=objective)
    memory = world(spec)
    now, late = (Learner(spec, TRAIN, memory, seed=3) for _ in range(2))
    for part in (np.arange(100), np.arange(100, 240)):
        reports = [
            now.learn(part, replay_ratio=1.0),
            late.learn(part, replay_ratio=1.0, beside=lambda work: work),  # not before the steps are over
        ]
        assert reports[0] == reports[1]
        assert_same(now.state_dict(), late.state_dict())
    assert (objective == "ranking") == bool(now.calibration.evidence.any())


def test_learning_needs_no_modalities_and_bears_events_that_teach_nothing() -> None:
    spec = spec_of(modalities={}, frames={}, user_features={})
    memory = world(spec)
    memory.quarantine(range(50, 60))
    memory.forget_user("3")
    memory.forget_item("4")
    learner = Learner(spec, TRAIN, memory, seed=0)
    report = learner.learn(np.arange(240), replay_ratio=0.0)
    assert report.finite
    assert report.replayed == 0
    empty = learner.learn(np.empty(0, np.int64), replay_ratio=2.0)
    assert (empty.steps, empty.new, empty.finite) == (0, 0, True)


def test_state_is_a_copy() -> None:
    spec = spec_of()
    learner = Learner(spec, TRAIN, world(spec), seed=0)
    learner.learn(np.arange(100), replay_ratio=1.0)
    state, again = learner.state_dict(), learner.state_dict()
    learner.learn(np.arange(100, 240), replay_ratio=1.0)
    assert_same(state, again)
    other = Learner(spec, TRAIN, learner.memory, seed=0)
    other.load_state_dict(state)
    other.learn(np.arange(100, 240), replay_ratio=1.0)
    assert_same(state, again)
    assert_same(learner.state_dict(), other.state_dict())


def test_poisoned_weights_are_reported_and_the_parent_state_heals_them() -> None:
    spec = spec_of()
    learner = Learner(spec, TRAIN, world(spec), seed=0)
    parent = learner.state_dict()
    learner.scorer.tower.outer.bias.data.fill_(torch.nan)
    assert not learner.learn(np.arange(100), replay_ratio=0.0).finite
    learner.load_state_dict(parent)
    assert learner.learn(np.arange(100), replay_ratio=0.0).finite


def test_sampled_softmax_learns_a_catalogue_too_large_for_the_full_one() -> None:
    spec = spec_of()
    memory = world(spec, 600)
    learner = Learner(spec, TrainSpec(batch=48, full_softmax_items=5, negatives=16, actions=ACTIONS), memory, seed=0)
    first = learner.learn(np.arange(300), replay_ratio=0.0).loss
    for _ in range(6):
        last = learner.learn(np.arange(300), replay_ratio=0.0).loss
    assert last < first - 0.3


@pytest.mark.parametrize("rare", [0.0, 0.8])
def test_how_likely_a_candidate_is_said_to_be_drawn_is_how_often_it_is(rare: float) -> None:
    """Items are popular for a while, one group after another: what is replayed is of all groups, what is new of one."""
    spec = spec_of(modalities={}, frames={}, user_features={})
    memory, draw = Memory(spec, ACTIONS), np.random.default_rng(0)
    events, groups, each, fresh, replayed, drawn = 40_000, 8, 100, 60, 120, 200
    group = np.arange(events) * groups // events
    item = group * each + (each * draw.random(events) ** 3).astype(np.int64)
    memory.append(
        EventBatch(
            [f"u{n % 4_000}" for n in range(events)], [f"i{one}" for one in item], ["view"] * events,
            np.full(events, np.nan, np.float32), np.arange(events, dtype=np.float64),
        )
    )  # fmt: skip
    train = TrainSpec(
        full_softmax_items=5, negatives=drawn, replay_half_life=30_000, replay_rare=rare, actions=ACTIONS
    )  # fmt: skip
    learner, log = Learner(spec, train, memory, seed=0), memory.log.view()
    learner._grow()
    learner.advance(log, events - 1_000)
    objective = Ranking(learner)
    found, said = np.zeros(groups * each), np.zeros(groups * each)
    for _ in range(300):
        new = events - 1_000 + draw.choice(1_000, fresh, replace=False)
        old = learner._replayed(log, replayed, before=events - 1_000)
        lead, offset = objective._sample(Examples.build(log, learner.popularity, np.sort(new), old, 5))
        rows = memory_rows(memory, lead)
        found[rows] += 1 / 300
        said[rows] = np.exp(-offset.numpy())
    kinds = {"popular now": np.arange(700, 720), "popular once": np.arange(0, 20), "seldom": np.arange(180, 200)}
    for kind, rows in kinds.items():
        assert said[rows].mean() == pytest.approx(found[rows].mean(), rel=0.2), kind


def memory_rows(memory: Memory, lead: torch.Tensor) -> NDArray[np.int64]:
    """The numbers of these items' ids."""
    return np.array([int(str(memory.items.ids[row])[1:]) for row in lead.tolist()])


def test_a_network_too_learns_nothing_of_popularity_from_what_is_replayed() -> None:
    spec = spec_of(head="mlp")
    learner = Learner(spec, TRAIN, world(spec), seed=3)
    learner.learn(np.arange(100), replay_ratio=1.0)
    objective, log = Ranking(learner), learner.memory.log.view()
    scorer = learner.scorer
    of_popularity = [*scorer.popular.parameters(), *scorer.item_popularity.parameters(), *scorer.taste.parameters()]

    def moved(fresh: NDArray[np.int64], replayed: NDArray[np.int64]) -> float:
        learner.optimizer.zero_grad()
        step = objective.forward(objective.examples(log, fresh, replayed))
        step.loss.backward()  # type: ignore[no-untyped-call]
        return sum(0.0 if one.grad is None else float(one.grad[..., :].abs().sum()) for one in of_popularity)

    nothing = np.empty(0, np.int64)
    assert moved(np.arange(100), nothing) > 0
    assert moved(nothing, np.arange(100)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("unit", [1e-2, 1e4, 1e8])
def test_values_may_be_of_any_size(unit: float) -> None:
    spec, errors = spec_of(objective="rating"), []
    for by in (1.0, unit):
        memory = world(spec, 600, unit=by)
        learner = Learner(spec, TRAIN, memory, seed=0)
        reports = [learner.learn(np.arange(at, at + 200), replay_ratio=1.0) for at in range(0, 600, 200)]
        assert all(report.finite for report in reports)
        errors.append(reports[-1].loss)
    assert errors[0] < 1
    assert errors[1] == pytest.approx(errors[0], rel=0.5), "in standard deviations"


@pytest.mark.parametrize("broken", [1e6, -9e8])
def test_one_broken_value_does_not_end_learning(broken: float) -> None:
    spec = spec_of(objective="rating")
    memory = world(spec, 1_800)
    memory.log.view().value[450] = broken
    learner = Learner(spec, TRAIN, memory, seed=0)
    reports = [learner.learn(np.arange(at, at + 200), replay_ratio=1.0) for at in range(0, 1_800, 200)]
    assert all(report.finite for report in reports)
    sound = Learner(spec, TRAIN, world(spec, 1_800), seed=0)
    beside = [sound.learn(np.arange(at, at + 200), replay_ratio=1.0) for at in range(0, 1_800, 200)]
    assert learner.values.deviation == pytest.approx(sound.values.deviation, rel=0.1)
    assert reports[-1].loss == pytest.approx(beside[-1].loss, rel=0.3), "soon it is as if it had not been"


def test_where_negatives_are_sampled_steps_are_fewer_and_longer() -> None:
    spec = spec_of()
    memory = world(spec, 600)
    steps, rates = {}, {}
    for items in (5, 5_000):
        train = TrainSpec(batch=48, sampled_batch=4 * 48, full_softmax_items=items, negatives=16, actions=ACTIONS)
        learner = Learner(spec, train, memory, seed=0)
        steps[items] = learner.learn(np.arange(192), replay_ratio=0.0).steps
        rates[items] = learner.optimizer.param_groups[-1]["lr"]
    assert steps == {5: 1, 5_000: 4}
    assert rates[5_000] == train.learning_rate < rates[5] <= 2 * train.learning_rate


def test_a_step_of_few_examples_is_no_longer_for_sampling() -> None:
    spec = spec_of()
    train = TrainSpec(batch=48, sampled_batch=4 * 48, full_softmax_items=5, negatives=16, actions=ACTIONS)
    learner = Learner(spec, train, world(spec, 600), seed=0)
    learner.learn(np.arange(40), replay_ratio=0.0)
    assert learner.optimizer.param_groups[-1]["lr"] == train.learning_rate


@pytest.mark.parametrize("full", [True, False], ids=["full", "sampled"])
@pytest.mark.parametrize("head", ["dot", "mlp"])
def test_a_first_interaction_teaches_the_encoders_what_is_wanted(head: Literal["dot", "mlp"], full: bool) -> None:
    spec = ModelSpec(dim=8, history=5, modalities={"text": 2}, head=head)
    memory = Memory(spec, ACTIONS)
    # nothing but what is taken has content, so that nothing else can have taught the encoder
    for n in range(40):
        memory.announce(f"i{n}", 0.0, {"text": np.array([1, -1], np.float32)} if n == 7 else {})
    train = TrainSpec(full_softmax_items=1_000 if full else 10, weight_decay=0.0, dropout=0.0, actions=ACTIONS)
    memory.append(EventBatch(["u"], ["i7"], ["view"], np.array([np.nan], np.float32), np.array([1.0])))
    learner = Learner(spec, train, memory, seed=0)
    before = [one.detach().clone() for one in learner.scorer.encoders.parameters()]
    learner.learn(np.arange(1), replay_ratio=0.0)
    after = list(learner.scorer.encoders.parameters())
    assert any(not torch.equal(one, now) for one, now in zip(before, after, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(("head", "passes"), [("dot", 4), ("mlp", 12)])
def test_checkerboard_ranks_the_half_that_a_user_lives_in(head: str, passes: int) -> None:
    # A network over the pair has to find the product that the dot product is given: it takes longer.
    spec = spec_of(head=head)
    memory = world(spec, 1000)
    learner = Learner(spec, TRAIN, memory, seed=0)
    for _ in range(passes):
        learner.learn(np.arange(1000), replay_ratio=0.0)
    snapshot = Snapshot.build(spec, learner.state_dict(), memory, version=1)
    users = [str(user) for user in range(12)]
    scores = snapshot.scores(snapshot.user_vectors(users), snapshot.vectors("items"))
    items = np.array([int(item) for item in snapshot.item_ids])
    for user, line in zip(users, scores, strict=True):
        best = items[np.argsort(-line)[:10]]
        assert (best % 2 == int(user) % 2).mean() >= 0.9
