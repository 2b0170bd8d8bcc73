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
from tests.unit.benchmarks.samples import rows


def announcements(seed: int = 0, items: int = 30) -> list[dict[str, Any]]:
    """Items of random content, several of each moment, in another order than that of their first events."""
    rng = np.random.default_rng(seed)
    return [
        {
            "item_id": f"i{item}", "time": 1_700_000_000 + int(place) // 10 * 40,
            "features": {"text": rng.normal(size=4).tolist(), "image": rng.normal(size=3).tolist()},
        }
        for place, item in enumerate(rng.permutation(items))
    ]  # fmt: skip


@pytest.mark.slow
def test_a_judge_and_a_replay_agree_to_the_last_digit(tmp_path: Path) -> None:
    for name, lines in (("interactions", rows()), ("items", announcements())):
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
