"""Another `[model]` over real checkpoints: modalities and user features come and go, everything else is refused."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from prometheus_client import CollectorRegistry

from models.serving import Snapshot
from models.spec import ModelSpec, TrainSpec
from service.config import Config
from service.config_tables import PhaseConfig, PromotionConfig
from service.engine import Engine
from service.errors import StateError
from service.interventions import reconcile, rollback
from service.live import Live
from service.metrics import Metrics
from service.publication import Publisher
from service.replay import replay
from service.state_dir import StateDirectory
from streams.memory_sink import MemorySink, MemoryStore

TEXT = ModelSpec(dim=4, history=3, modalities={"text": 2}, user_features={"age": 1})
BOTH = replace(TEXT, modalities={"text": 2, "image": 3})
IMAGE = replace(TEXT, modalities={"image": 3}, user_features={})


def test_a_table_has_no_order() -> None:
    turned = replace(TEXT, modalities={"image": 3, "text": 2})
    assert list(turned.modalities) == list(BOTH.modalities)
    read = Config.model_validate({"model": {"modalities": {"text": 2, "image": 3}}})
    assert list(read.model.modalities) == list(BOTH.modalities)


def config_of(directory: Path, model: ModelSpec) -> Config:
    return Config(
        namespace="test",
        state_dir=directory / "state",
        model=model,
        train=TrainSpec(batch=32, threads=1),
        phase=PhaseConfig(max_events=50),
        promotion=PromotionConfig(tolerance=0.99, min_events=1_000_000),
    )


def write(directory: Path, name: str, rows: list[dict[str, Any]]) -> Path:
    path = directory / f"{name}.jsonl"
    path.write_bytes(b"\n".join(map(msgspec.json.encode, rows)) + b"\n")
    return path


def learn(directory: Path, model: ModelSpec, *, last: int) -> None:
    """Replays the first `last` events; each text is announced at the start, each image after 100 events."""
    rng = np.random.default_rng(0)
    start = 1_700_000_000
    rows: list[dict[str, Any]] = []
    for item in range(11):
        text, image = rng.normal(size=2).tolist(), rng.normal(size=3).tolist()
        rows.append({"item_id": f"i{item}", "time": start, "features": {"text": text}})
        rows.append({"item_id": f"i{item}", "time": start + 100, "features": {"text": text, "image": image}})
    rows += [
        {"user_id": f"u{n % 7}", "item_id": f"i{(n * 5) % 11}", "action": "view", "time": start + n}
        for n in range(last)
    ]
    rows = [row for row in rows if row["time"] < start + last]
    rows.sort(key=lambda row: (row["time"], "user_id" in row))
    assert replay(config_of(directory, model), [write(directory, "events", rows)]) == 0


def scorer_of(directory: Path) -> dict[str, torch.Tensor]:
    newest = sorted((directory / "state" / "checkpoints").iterdir())[-1]
    state = torch.load(newest / "weights.pt", weights_only=True)
    weights: dict[str, torch.Tensor] = state["trainer"]["learner"]["scorer"]
    return weights


def open_engine(state: StateDirectory, directory: Path, model: ModelSpec) -> Engine:
    metrics = Metrics(CollectorRegistry())
    return Engine(config=config_of(directory, model), state=state, metrics=metrics, clock=time.time)


def with_engine(directory: Path, model: ModelSpec) -> tuple[Snapshot, dict[str, Any]]:
    config = config_of(directory, model)
    with StateDirectory.open(config.state_dir, config.namespace) as state:
        engine = open_engine(state, directory, model)
        return engine.parent_snapshot, engine.trainer.state_dict()["learner"]


def test_an_added_modality_leaves_everything_as_it_was_until_it_is_announced(tmp_path: Path) -> None:
    learn(tmp_path, TEXT, last=100)
    before, state = with_engine(tmp_path, TEXT)
    after, wider = with_engine(tmp_path, BOTH)
    for kind in ("items", "users"):
        np.testing.assert_allclose(before.vectors(kind), after.vectors(kind), atol=1e-6)
    assert all(
        torch.equal(value, wider["scorer"][name]) for name, value in state["scorer"].items() if "gate" not in name
    )
    learn(tmp_path, BOTH, last=200)
    weights = scorer_of(tmp_path)
    assert int(weights["encoders.text.norm.seen"]) == 11, "texts that are told again are no others"
    assert int(weights["encoders.image.norm.seen"]) == 11


def test_a_removed_modality_takes_only_its_own_with_it_and_may_come_back(tmp_path: Path) -> None:
    learn(tmp_path, BOTH, last=150)
    _, state = with_engine(tmp_path, BOTH)
    _, left = with_engine(tmp_path, IMAGE)
    gone = {name for name in state["scorer"] if name not in left["scorer"]}
    assert {name.split(".")[1] for name in gone} == {"text", "age"}
    assert torch.equal(state["scorer"]["encoders.image.mlp.0.weight"], left["scorer"]["encoders.image.mlp.0.weight"])
    learn(tmp_path, IMAGE, last=200)
    assert not any("text" in name for name in scorer_of(tmp_path))
    snapshot, _ = with_engine(tmp_path, BOTH)
    assert np.isfinite(snapshot.vectors("items")).all()


def test_what_is_served_is_published_again_as_a_version_of_its_own(tmp_path: Path) -> None:
    learn(tmp_path, BOTH, last=150)
    config = config_of(tmp_path, IMAGE)
    sink = MemorySink(MemoryStore(clock=time.time))
    with StateDirectory.open(config.state_dir, config.namespace) as state:
        for model in (BOTH, IMAGE):
            engine = open_engine(state, tmp_path, model)
            engine.served.publisher = Publisher(
                sink=sink, live=Live(), fast_path=None, store=engine.store, config=engine.config.publish,
                metrics=engine.metrics, clock=time.time, writer=state.identity.state_id,
            )  # fmt: skip
            engine.served.publisher.claim()
            served = engine.store.champion()
            said = reconcile(engine)
            pointer = sink.pointer()
            assert pointer is not None
            assert pointer.version == served or model is IMAGE
        assert pointer is not None
        assert said is not None
        assert "carried over" in said
        assert served is not None
        assert pointer.version > served
        assert engine.store.manifest(pointer.version).weights_of == served
        assert reconcile(engine) is None, "once"
        earlier = engine.store.promoted()[0]
        assert rollback(engine, to=earlier, relearn=False, dry_run=False)["published"], "a version of both modalities"


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (replace(TEXT, modalities={"text": 5, "image": 3}), r"\[model\.modalities\] text is 5, .* with 2"),
        (replace(TEXT, frames={"text": 3}), r"\[model\.frames\] text is 3, .* without it"),
        (replace(TEXT, user_features={"age": 2}), r"\[model\.user_features\] age is 2, .* with 1"),
        (replace(BOTH, dim=8), r"\[model\] dim is 8, .* with 4"),
        (replace(BOTH, fusion="sum"), r"\[model\] fusion is sum, .* with gated"),
        (replace(TEXT, head="mlp"), r"\[model\] head is mlp, .* with dot"),
        (replace(TEXT, objective="click"), r"\[model\] objective is click, .* with ranking"),
    ],
)
def test_other_changes_are_refused_in_a_sentence(tmp_path: Path, model: ModelSpec, words: str) -> None:
    learn(tmp_path, TEXT, last=50)
    with pytest.raises(StateError, match=words):
        with_engine(tmp_path, model)
