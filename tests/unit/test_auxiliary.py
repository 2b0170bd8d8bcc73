"""What is learned beside the main objective, and under which noise: exact resumption, and that it has an effect."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch

from models.learner import Learner
from models.losses import cosines
from models.memory import EventBatch, Memory
from models.spec import Alignment, Auxiliary, ModelSpec, TrainSpec

ACTIONS = {"default": 1.0, "skip": -1.0}
SPEC = ModelSpec(dim=8, history=5, modalities={"text": 4, "clip": 4}, frames={"clip": 2})
PLAIN = TrainSpec(batch=32, learning_rate=1e-2, actions=ACTIONS)
NOISY = replace(PLAIN, encoder_dropout=0.2, modality_dropout=0.3)
ITEMS, EVENTS = 16, 120


def world(spec: ModelSpec = SPEC, *, unit: float = 1.0) -> Memory:
    """Items of two kinds, users who like and rate high their own; text and clip of an item say the same of it."""
    memory = Memory(spec, ACTIONS)
    rng = np.random.default_rng(0)
    for item in range(ITEMS):
        signal = np.sign(item % 2 - 0.5) * np.array([1, 1, 0, 0]) + rng.normal(size=4)
        features = {"text": signal, "clip": np.stack((signal, -signal))}
        kept = features if item % 5 else {"text": signal}
        memory.announce(f"i{item}", 900.0, {name: x.astype(np.float32) for name, x in kept.items()})
    users, items = rng.integers(8, size=EVENTS), rng.integers(ITEMS, size=EVENTS)
    liked = users % 2 == items % 2
    memory.append(
        EventBatch(
            [f"u{user}" for user in users],
            [f"i{item}" for item in items],
            ["view" if like else "skip" for like in liked],
            np.where(rng.random(EVENTS) < 0.8, unit * (1 + 4 * liked), np.nan).astype(np.float32),
            1e3 + np.arange(EVENTS, dtype=np.float64),
        )
    )
    return memory


def learned(train: TrainSpec, spec: ModelSpec = SPEC, *, passes: int = 1) -> tuple[Learner, list[float]]:
    learner = Learner(spec, train, world(spec), 0)
    reports = [learner.learn(np.arange(EVENTS), replay_ratio=0.0) for _ in range(passes)]
    assert all(report.finite for report in reports)
    return learner, [report.loss for report in reports]


def everything(objective: str) -> TrainSpec:
    others: tuple[Auxiliary, Auxiliary] = ("rating", "click")
    return replace(
        NOISY,
        align={"infonce": 0.1, "cosine": 0.1, "triplet": 0.1},
        auxiliary={name: 0.5 for name in others if name != objective},
    )


@pytest.mark.parametrize("head", ["dot", "mlp"])
@pytest.mark.parametrize("objective", ["ranking", "rating", "click"])
def test_with_everything_on_a_resumed_run_ends_where_an_uninterrupted_one_does(objective: str, head: str) -> None:
    spec, train = replace(SPEC, objective=objective, head=head), everything(objective)  # type: ignore[arg-type]
    whole = Learner(spec, train, world(spec), 0)
    whole.learn(np.arange(60), replay_ratio=1.0)
    file = io.BytesIO()
    torch.save(whole.state_dict(), file)
    file.seek(0)
    resumed = Learner(spec, train, world(spec), 9)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    reports = [one.learn(np.arange(60, EVENTS), replay_ratio=1.0) for one in (whole, resumed)]
    assert reports[0] == reports[1]
    assert reports[0].finite
    files = []
    for one in (whole, resumed):
        files.append(io.BytesIO())
        torch.save(one.state_dict(), files[-1])
    assert files[0].getvalue() == files[1].getvalue()


def test_resumed_heads_keep_their_moments_and_take_the_settings_of_today() -> None:
    learner, _ = learned(replace(PLAIN, auxiliary={"rating": 0.5}))
    resumed = Learner(SPEC, replace(PLAIN, auxiliary={"rating": 0.5}, learning_rate=5e-3), world(SPEC), 0)
    resumed.load_state_dict(learner.state_dict())
    before, after = (one.state_dict()["auxiliary"]["rating"]["optimizer"] for one in (learner, resumed))
    assert [group["lr"] for group in after["param_groups"]] == [5e-3]
    assert after["state"][0]["exp_avg"].equal(before["state"][0]["exp_avg"])


def test_gradients_reach_the_heads_and_the_shared_vectors() -> None:
    alone, _ = learned(PLAIN)
    for name in ("rating", "click"):
        learner, _ = learned(replace(PLAIN, auxiliary={name: 0.5}))
        state = learner.state_dict()["auxiliary"]
        assert list(state) == [name]
        assert all((moments["exp_avg_sq"] > 0).all() for moments in state[name]["optimizer"]["state"].values())
        assert not torch.equal(learner.residual.values, alone.residual.values)


def test_an_auxiliary_rating_learns_the_values_that_ranking_does_not_look_at() -> None:
    learner, _ = learned(replace(PLAIN, auxiliary={"rating": 1.0}), passes=30)
    objective = learner.tasks[1][0]
    log = learner.memory.log.view(shared_tail=True)
    examples = objective.examples(log, np.arange(60, EVENTS), np.arange(0))
    with torch.no_grad():
        error = float(objective.forward(examples).loss)
    mean = float(np.mean((examples.value_B - learner.values.shrunken_mean(examples.histories)) ** 2))
    assert error < mean / learner.values.deviation**2 / 4


@pytest.mark.parametrize("unit", [0.01, 100.0])
def test_what_an_auxiliary_rating_weighs_does_not_depend_on_the_unit_of_values(unit: float) -> None:
    losses = []
    for by in (1.0, unit):
        learner = Learner(SPEC, replace(PLAIN, auxiliary={"rating": 1.0}), world(unit=by), 0)
        learner.learn(np.arange(60), replay_ratio=0.0)
        objective, log = learner.tasks[1][0], learner.memory.log.view(shared_tail=True)
        step = objective.forward(objective.examples(log, np.arange(60, EVENTS), np.arange(0)))
        losses.append(float(step.loss.detach()))
    assert losses[1] == pytest.approx(losses[0], rel=0.1)


@pytest.mark.parametrize("noise", [PLAIN, NOISY], ids=["plain", "noisy"])
def test_however_many_objectives_there_are_modalities_are_aligned_and_rows_averaged_once_a_step(
    noise: TrainSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, aligned = [], []
    for auxiliary in ((), ("rating",), ("rating", "click")):
        calls: list[int] = []

        def counted(x_CMD: torch.Tensor, *_: object, seen: list[int] = calls) -> torch.Tensor:
            seen.append(len(x_CMD))
            return x_CMD.new_zeros(())

        monkeypatch.setattr("models.content_steps.alignment", counted)
        train = replace(noise, align={"infonce": 0.1}, auxiliary=dict.fromkeys(auxiliary, 0.5))
        learner = Learner(SPEC, train, world(), 0)
        monkeypatch.setattr(learner.averages, "settle", lambda: None)
        report = learner.learn(np.arange(EVENTS), replay_ratio=0.0)
        kept.append([table._log_kept for table in learner.tables.values()])
        aligned.append(len(calls) / report.steps)
    assert aligned == [1.0] * 3
    assert kept[0] == kept[1] == kept[2]
    assert all(one < 0 for one in kept[0])


def test_untouched_items_reach_disturbed_encoders_too() -> None:
    """Of many items a sample goes through the encoders: what nobody has touched is in it, and all are stood for."""
    train = replace(NOISY, content_rows=40)
    memory = Memory(SPEC, ACTIONS)
    for item in range(200):
        memory.announce(f"i{item}", 900.0, {"text": np.ones(4, np.float32)})
    touched = [f"i{item}" for item in range(50)]
    values, times = np.full(50, np.nan, np.float32), np.arange(1_000, 1_050, dtype=np.float64)
    memory.append(EventBatch(["u"] * 50, touched, ["view"] * 50, values, times))
    learner = Learner(SPEC, train, memory, 0)
    learner.learn(np.arange(50), replay_ratio=0.0)
    contents_RD, target = torch.zeros(200, SPEC.dim), torch.tensor([3])
    found = torch.zeros(200)
    for _ in range(400):
        learner.content_steps.disturbed(None, contents_RD, target)
        encoded = learner.content_steps._encoded
        assert encoded is not None
        found[encoded.chosen_C] += encoded.weight_C / 400
    assert float(found[50:].mean()) == pytest.approx(1.0, abs=0.15)
    assert float(found[:50].mean()) == pytest.approx(1.0, abs=0.15)


@pytest.mark.parametrize("kind", ["infonce", "cosine", "triplet"])
def test_aligned_modalities_of_an_item_come_closer_than_those_of_others(kind: Alignment) -> None:
    def closeness(train: TrainSpec) -> float:
        learner, _ = learned(train, passes=10)
        with torch.no_grad():
            table = learner.memory.item_features
            rows = np.array([row for row in range(ITEMS) if row % 5])
            features = {name: tuple(map(torch.from_numpy, table.gather(name, rows))) for name in SPEC.modalities}
            x_BMD, _ = learner.scorer.encoded(features)  # type: ignore[arg-type]
            table_BB = cosines(x_BMD[:, 0], x_BMD[:, 1])
        return float((table_BB.argmax(1) == torch.arange(len(rows))).float().mean())

    assert closeness(replace(PLAIN, align={kind: 1.0})) > closeness(PLAIN)


def test_scores_are_taken_under_the_noise_that_the_encoders_learn_from() -> None:
    """What a step's loss saw is what its gradient goes through: contents differ from the table's only in that step."""
    learner = Learner(SPEC, NOISY, world(), 0)
    seen: list[torch.Tensor] = []
    forward = learner.objective.leaves

    def watched(rows: torch.Tensor | None, target_B: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        leaves = forward(rows, target_B)
        encoded = learner.content_steps._encoded
        if target_B is not None:
            assert encoded is not None
            own = learner.residual.values * leaves[2].unsqueeze(1)
            torch.testing.assert_close(leaves[0][encoded.chosen_C], (encoded.content_CD + own[encoded.chosen_C]))
            seen.append((encoded.content_CD - learner.contents[encoded.chosen_C]).abs().max())
        return leaves

    learner.objective.leaves = watched  # type: ignore[method-assign, assignment]
    learner.learn(np.arange(EVENTS), replay_ratio=0.0)
    assert seen
    assert all(float(one.detach()) > 0 for one in seen)
    assert learner.content_steps._encoded is None


@pytest.mark.parametrize("train", [NOISY, everything("ranking")], ids=["noise", "everything"])
def test_every_parameter_of_the_encoders_learns_under_noise(train: TrainSpec) -> None:
    learner, losses = learned(train, passes=10)
    assert losses[-1] < losses[0]
    still = [
        name
        for name, parameter in learner.scorer.named_parameters()
        if float(learner.optimizer.state[parameter].get("exp_avg_sq", torch.zeros(1)).sum()) == 0
    ]
    assert not still
