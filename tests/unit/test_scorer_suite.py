"""One suite for every fusion × objective × head: what holds for any scorer."""

import copy
import io
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.examples import Examples
from models.learner import Learner, LearnReport
from models.memory import EventBatch, Memory
from models.objective import Step
from models.overlay import Overlay
from models.spec import ModelSpec, TrainSpec
from tests.unit.scorer_cases import ACTIONS, CASES, HEADS, ONE_FUSION, Case, case_id, snapshot_of

pytestmark = pytest.mark.usefixtures("one_thread")

USERS, ITEMS, EVENTS, HISTORY = 7, 12, 80, 4
TRAIN = TrainSpec(batch=32, learning_rate=1e-2, actions=ACTIONS)


@pytest.fixture(params=CASES, ids=case_id)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def spec(case: Case) -> ModelSpec:
    return spec_of(case)


@cache
def learned(case: Case) -> Learner:
    """One that has learned all of the world, in two phases; for tests that only look at it."""
    spec = spec_of(case)
    learner = Learner(spec, TRAIN, world(spec), 0)
    learn(learner, 0, EVENTS // 2)
    learn(learner, EVENTS // 2)
    return learner


def spec_of(case: Case) -> ModelSpec:
    fusion, objective, head = case
    return ModelSpec(
        dim=8, history=HISTORY, fusion=fusion, objective=objective, head=head,
        modalities={"text": 5, "clip": 3}, frames={"clip": 2}, user_features={"profile": 3},
    )  # fmt: skip


def features_of(item: int) -> dict[str, NDArray[np.float32]]:
    """Text, frames, both or none, in turn; of zero to two frames."""
    rng = np.random.default_rng(item)
    text = rng.normal(size=5).astype(np.float32)
    clip = rng.normal(size=(1 + item // 2 % 2, 3)).astype(np.float32)
    return [{"text": text, "clip": clip}, {"text": text}, {"clip": clip}, {}][item % 4]


def events(seed: int = 0, count: int = EVENTS) -> EventBatch:
    """Random interactions with baskets of one time, values here and there, and some skips."""
    rng = np.random.default_rng(seed)
    values = rng.uniform(1, 5, count).astype(np.float32)
    values[::5] = np.nan
    return EventBatch(
        users=[f"u{u}" for u in rng.integers(USERS, size=count)],
        items=[f"i{i}" for i in rng.integers(ITEMS, size=count)],
        actions=["skip" if x < 0.2 else "view" for x in rng.random(count)],
        values=values,
        times=1_000.0 + np.sort(rng.integers(count // 2, size=count)).astype(np.float64),
    )


def world(spec: ModelSpec) -> Memory:
    memory = Memory(spec, ACTIONS)
    for item in range(ITEMS):
        memory.announce(f"i{item}", 900.0 + item, features_of(item), {})
    memory.announce("untouched", 950.0, features_of(0), {})
    memory.announce("empty", 950.0, {}, {})
    for user in range(0, USERS, 2):
        memory.enrol(f"u{user}", 900.0, {"profile": np.full(3, user, np.float32)})
    memory.append(events())
    return memory


def learn(learner: Learner, start: int = 0, stop: int = EVENTS) -> LearnReport:
    return learner.learn(np.arange(start, stop), replay_ratio=1.0)


def flat(state: Any, at: str = "") -> dict[str, Any]:
    """A nested state as path → tensor or number."""
    if isinstance(state, dict):
        return {path: leaf for key, one in state.items() for path, leaf in flat(one, f"{at}/{key}").items()}
    if isinstance(state, list | tuple):
        return {path: leaf for key, one in enumerate(state) for path, leaf in flat(one, f"{at}/{key}").items()}
    return {at: state}


def differing(first: Any, second: Any) -> list[str]:
    one, other = flat(first), flat(second)
    assert one.keys() == other.keys()
    return [path for path in one if not np.array_equal(np.asarray(one[path]), np.asarray(other[path]), equal_nan=False)]


def test_the_same_seed_learns_the_same_and_another_does_not(case: Case) -> None:
    first, spec = learned(case), spec_of(case)
    again, other = (Learner(spec, TRAIN, world(spec), seed) for seed in (0, 1))
    reports = [learn(again, 0, EVENTS // 2), learn(again, EVENTS // 2)]
    learn(other, 0, 40)
    assert all(report.finite for report in reports)
    assert sum(report.steps for report in reports) == first.steps > 0
    assert not differing(first.state_dict(), again.state_dict())
    assert differing(first.state_dict()["scorer"], other.state_dict()["scorer"])


@pytest.mark.parametrize("case", ONE_FUSION, ids=case_id)
def test_learning_does_not_depend_on_or_move_the_global_random_state(spec: ModelSpec) -> None:
    states = []
    for seed in (5, 6):
        torch.manual_seed(seed)
        np.random.seed(seed)
        before = torch.get_rng_state()
        learner = Learner(spec, TRAIN, world(spec), 0)
        learn(learner, 0, 40)
        assert torch.equal(before, torch.get_rng_state())
        states.append(learner.state_dict())
    assert not differing(*states)


@pytest.mark.parametrize("case", ONE_FUSION, ids=case_id)
def test_learning_leaves_its_inputs_unchanged(spec: ModelSpec) -> None:
    memory = world(spec)
    segments = world(spec).drain()
    positions = np.arange(EVENTS)
    Learner(spec, TRAIN, memory, 0).learn(positions, replay_ratio=1.0)
    assert np.array_equal(positions, np.arange(EVENTS))
    assert memory.drain() == segments
    for item in range(ITEMS):
        kept = memory.item_features.get(item)
        assert all(np.array_equal(np.atleast_2d(kept[m]), np.atleast_2d(x)) for m, x in features_of(item).items())


def test_a_run_resumed_from_disk_ends_bit_for_bit_where_an_uninterrupted_one_does(spec: ModelSpec) -> None:
    whole = Learner(spec, TRAIN, world(spec), 3)
    learn(whole, 0, 50)
    file = io.BytesIO()
    torch.save(whole.state_dict(), file)
    chunks = {name: [chunk] for name, chunk in whole.memory.drain().items()}
    file.seek(0)
    memory = Memory.restore(spec, ACTIONS, chunks)
    resumed = Learner(spec, TRAIN, memory, 99)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert not differing(whole.state_dict(), resumed.state_dict())
    assert learn(whole, 50) == learn(resumed, 50)
    assert not differing(whole.state_dict(), resumed.state_dict())
    served = [snapshot_of(learner) for learner in (whole, resumed)]
    assert np.array_equal(served[0].check_scores(), served[1].check_scores())


@pytest.mark.parametrize("case", ONE_FUSION, ids=case_id)
def test_a_state_is_a_copy_that_later_learning_does_not_touch(spec: ModelSpec) -> None:
    learner = Learner(spec, TRAIN, world(spec), 0)
    learn(learner, 0, 40)
    state = learner.state_dict()
    kept = copy.deepcopy(state)
    learn(learner, 40)
    assert not differing(state, kept)


def test_gradients_reach_every_parameter(case: Case) -> None:
    learner = learned(case)
    still = [
        name
        for name, parameter in learner.scorer.named_parameters()
        if float(learner.optimizer.state[parameter].get("exp_avg_sq", torch.zeros(1)).sum()) == 0
    ]
    assert not still
    assert float(learner.residual.power.sum()) > 0
    assert float(learner.bias.power.sum()) > 0


@pytest.mark.parametrize("case", ONE_FUSION, ids=case_id)
def test_no_example_sees_its_target_or_what_came_with_or_after_it(spec: ModelSpec) -> None:
    """Every history of every step against one written out from the raw events; and counts stop before the new ones."""
    memory, raw = world(spec), events()
    learner = Learner(spec, TRAIN, memory, 0)
    forward, steps = learner.objective.forward, 0

    def checked(examples: Examples) -> Step:
        nonlocal steps
        steps += 1
        new = examples.position_B[: examples.fresh]
        assert learner.popularity.position <= new.min(initial=EVENTS)
        for row, position in enumerate(examples.position_B.tolist()):
            earlier = [
                j
                for j in range(EVENTS)
                if raw.users[j] == raw.users[position] and raw.times[j] < raw.times[position]
            ]  # fmt: skip
            length = spec.events_read
            expected = [memory.item_index(raw.items[j]) for j in reversed(earlier)][:length]
            history = examples.histories
            assert history.item_BL[row].tolist() == expected + [-1] * (length - len(expected))
            assert history.count_B[row] == len(earlier)
            known = [float(raw.values[j]) for j in earlier if np.isfinite(raw.values[j])]
            assert history.value_sum_B[row] == pytest.approx(sum(known), abs=1e-3)
            counted = min(position, learner.popularity.position)  # a step's own events are counted after it
            before = [j for j in range(counted) if raw.items[j] == raw.items[position] and raw.actions[j] != "skip"]
            assert examples.cold_B[row] == (not before)
        return forward(examples)

    learner.objective.forward = checked  # type: ignore[method-assign]
    assert learn(learner).steps == steps > 0


@pytest.mark.parametrize("trained", [False, True])
def test_what_is_missing_or_unknown_still_gets_a_finite_score(case: Case, trained: bool) -> None:
    learner = learned(case) if trained else Learner(spec_of(case), TRAIN, world(spec_of(case)), 0)
    snapshot = snapshot_of(learner)
    overlay = Overlay(snapshot)
    assert np.array_equal(overlay.user_vectors(["nobody"])[0], snapshot.default_user)
    overlay.announce("new", 2_000.0, features_of(0))
    overlay.announce("bare", 2_000.0, {})
    overlay.observe(EventBatch(["nobody"], ["new"], ["view"], np.array([4], np.float32), np.array([2_001.0])))
    assert not np.array_equal(overlay.user_vectors(["nobody"])[0], snapshot.default_user)
    for user in ("nobody", "stranger", "u0", "u1"):
        scores = overlay.scores(user)
        assert scores.shape == (snapshot.n_items + 2,)
        assert np.isfinite(scores).all()


EVENT_OF: list[tuple[str | None, str | None]] = [("u", "i"), ("u", None), (None, None)]
"""One user and one item with events, without any, and neither of them."""


@pytest.mark.parametrize(
    ("case", "event_of"),
    [(case, one) for case in CASES for one in EVENT_OF[: 3 if case in ONE_FUSION else 1]],
    ids=lambda value: "-".join(str(part) for part in value),
)
def test_one_item_and_one_user_or_none_of_them_are_enough(case: Case, event_of: tuple[str | None, str | None]) -> None:
    user, item = event_of
    spec = spec_of(case)
    memory = Memory(spec, ACTIONS)
    if user:
        memory.enrol(user, 900.0, {"profile": np.ones(3, np.float32)})
        memory.announce("i", 900.0, features_of(0))
    nan, values = np.full(1, np.nan, np.float32), np.array([4], np.float32)
    batches = [EventBatch(["u"], ["i"], ["view"], one, np.array([1_000.0 + n])) for n, one in enumerate((values, nan))]
    learner = Learner(spec, TRAIN, memory, 0)
    for batch in batches if item else ():
        report = learner.learn(np.asarray(memory.append(batch)), replay_ratio=1.0)
        assert report.finite
    snapshot = snapshot_of(learner)
    known = int(user is not None)
    for kind in ("items", "users"):
        vectors = snapshot.vectors(kind)
        assert vectors.shape == (known, snapshot.dim)
        assert np.isfinite(vectors).all()
    assert Overlay(snapshot).scores("u").shape == (known,)
    assert len(Overlay(snapshot).recommend("u", k=3)) == known * (item is None)


def test_an_item_nobody_touched_is_its_content_alone(case: Case) -> None:
    """So it has the vector that a newcomer with the same content gets, and without content none."""
    learner = learned(case)
    overlay = Overlay(snapshot_of(learner))
    overlay.announce("newcomer", 950.0, features_of(0))
    personal = overlay.item_vectors(["untouched", "newcomer", "empty"])[:, : learner.spec.dim]
    np.testing.assert_allclose(personal[0], personal[1], atol=1e-6)
    assert personal[0].any()
    assert not personal[2].any()


def test_published_vectors_give_the_models_own_score(case: Case) -> None:
    """With the `dot` head a plain dot product; with `mlp` the published layers, written out."""
    snapshot = snapshot_of(learned(case))
    users, items = snapshot.vectors("users").astype(np.float64), snapshot.vectors("items").astype(np.float64)
    d = snapshot.spec.dim
    by_hand = users @ items.T
    if snapshot.spec.head == "mlp":
        (w1, b1), (w2, b2) = snapshot.head_layers()
        pairs = np.array([[np.concatenate((user[:d], item[:d])) for item in items] for user in users])
        network = (np.maximum(pairs @ w1.T + b1, 0) @ w2.T + b2)[..., 0]
        by_hand = network + users[:, d:] @ items[:, d:].T
    overlay = Overlay(snapshot)
    for row, user in enumerate(snapshot.user_ids()):
        np.testing.assert_allclose(overlay.scores(user), by_hand[row], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("head", HEADS)
def test_replayed_clicks_do_not_give_themselves_away(head: Any) -> None:
    """Every item has one event, liked or not by the toss of a coin: only its own count could tell which."""
    count = 1_000
    spec = ModelSpec(dim=8, history=HISTORY, fusion="mean", head=head, objective="click", modalities={"text": 4})
    memory = Memory(spec, ACTIONS)
    rng = np.random.default_rng(0)
    for item in range(count + 100):
        memory.announce(f"i{item}", 900.0, {"text": rng.normal(size=4).astype(np.float32)})
    batch = EventBatch(
        users=[f"u{n % 50}" for n in range(count)],
        items=[f"i{n}" for n in range(count)],
        actions=["view" if liked else "skip" for liked in rng.random(count) < 0.5],
        values=np.full(count, np.nan, np.float32),
        times=1_000.0 + np.arange(count, dtype=np.float64),
    )
    positions = memory.append(batch)
    learner = Learner(spec, TRAIN, memory, 0)
    for phase in np.split(np.asarray(positions), 4):
        learner.learn(phase, replay_ratio=2.0)
    overlay = Overlay(snapshot_of(learner))
    untouched = np.concatenate([overlay.scores(f"u{user}")[count:] for user in range(50)])
    assert 0.35 < (1 / (1 + np.exp(-untouched))).mean() < 0.65
