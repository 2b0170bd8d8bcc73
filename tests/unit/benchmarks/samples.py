"""Small streams for the tests of the benchmarks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.prequential import Past
from benchmarks.stream import Stream


def rows(events: int = 240, users: int = 12, items: int = 30, seed: int = 0) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    taste = rng.integers(0, 3, users)
    out: list[dict[str, Any]] = []
    for number in range(events):
        user = int(rng.integers(users))
        item = int(rng.integers(items // 3)) * 3 + int(taste[user])
        out.append({
            "user_id": f"u{user}", "item_id": f"i{item}", "action": "rating",
            "value": float(1 + taste[user]), "time": 1_700_000_000 + number // 2,
        })  # fmt: skip
    return out


def contents(items: int = 30) -> list[dict[str, Any]]:
    return [
        {
            "item_id": f"i{item}", "time": 1_700_000_000 + item,
            "features": {"text": np.eye(3)[item % 3].tolist(), "image": [1.0, float(item % 2)]},
        }
        for item in range(items)
    ]  # fmt: skip


def write_folder(folder: Path) -> Path:
    """Interactions and items as files."""
    for name, lines in (("interactions", rows()), ("items", contents())):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return folder


def columns(user_items: list[tuple[int, int]], times: list[float] | None = None) -> Stream:
    users, items = (np.array(column) for column in zip(*user_items, strict=True))
    n = len(users)
    return Stream(
        u=users, i=items, v=np.ones(n, np.float32), t=np.array(times or range(n), float), actions=["view"] * n,
        positive=np.ones(n, bool), announced=np.full(items.max() + 1, np.inf), features={},
    )  # fmt: skip


def past_of(stream: Stream) -> Past:
    past = Past(stream)
    past.announce(np.inf)
    return past


def told(entrant: Any, past: Past, stop: int) -> Any:
    for j in range(past.n, stop):
        past.reveal(j)
        entrant.event(j)
    return entrant
