"""The contender is the daemon's learner: a judge finds of it what `headwater replay --judge` says of itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.contender import make
from benchmarks.prequential import evaluate
from benchmarks.stream import Stream
from models.spec import ModelSpec
from service.config import Config
from service.replay import replay

START = 1_700_000_000
MOMENT_S = 40
"""Time between two moments at which ten items are announced."""


def world(seed: int = 0, events: int = 240, users: int = 12) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Items, and events of items that are announced by then; their first events come in another order."""
    rng = np.random.default_rng(seed)
    ids = [f"i{number}" for number in rng.permutation(30)]
    items = [
        {
            "item_id": one, "time": START + place // 10 * MOMENT_S,
            "features": {"text": rng.normal(size=4).tolist(), "image": rng.normal(size=3).tolist()},
        }
        for place, one in enumerate(ids)
    ]  # fmt: skip
    interactions = [
        {
            "user_id": f"u{rng.integers(users)}", "item_id": ids[rng.integers(10 + number // 2 // MOMENT_S * 10)],
            "action": "view", "time": START + number // 2,
        }
        for number in range(events)
    ]  # fmt: skip
    touched = {one["item_id"] for one in interactions}  # a judge knows of no others
    return interactions, [item for item in items if item["item_id"] in touched]


@pytest.mark.slow
def test_a_judge_and_a_replay_agree_to_the_last_digit(tmp_path: Path) -> None:
    for name, lines in zip(("interactions", "items"), world(), strict=True):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    model = ModelSpec(dim=4, history=3, modalities={"text": 4, "image": 3})
    config = Config(namespace="test", state_dir=tmp_path / "state", model=model)
    files = [tmp_path / "items.jsonl", tmp_path / "interactions.jsonl"]
    assert replay(config, files, judge=True, json_out=tmp_path / "said.json") == 0
    said = json.loads((tmp_path / "said.json").read_text())["metrics"]

    found = evaluate(Stream.of_folder(tmp_path), lambda past: make(past, Config(model=ModelSpec(dim=4, history=3))))
    rank = np.array(found.rank)
    assert said["recall_at_20"] == pytest.approx((rank < 20).mean(), abs=1e-12)
    assert said["mrr"] == pytest.approx((1 / (rank + 1)).mean(), abs=1e-12)
