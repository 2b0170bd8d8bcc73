"""A folder of events, or a simulated world, as columns in order of time: what `benchmarks.prequential` walks through.

Shape suffixes: N events, I items, D length of a modality's vectors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.spec import TrainSpec
from streams.event_values import frame_vectors, vector
from streams.files import FileEvent, read_events
from streams.simulator import Simulator, World
from streams.simulator_messages import messages

Ints = NDArray[np.int64]
SUFFIXES = (".jsonl", ".ndjson", ".csv", ".parquet")


@dataclass(frozen=True, kw_only=True, eq=False)
class Stream:
    """Interactions as columns, and the items that they are about."""

    u: Ints
    """User of each event, (N,), numbered as they first come."""
    i: Ints
    """Item, numbered likewise."""
    v: NDArray[np.float32]
    """Value; NaN where an event has none."""
    t: NDArray[np.float64]
    """Seconds since 1970, ascending."""
    actions: list[str]
    positive: NDArray[np.bool_]
    """Whether the action's weight is positive by the default configuration; others are known, but never ranked."""
    announced: NDArray[np.float64]
    """Time of each item's first announcement, (I,); infinite where there is none."""
    features: dict[str, NDArray[np.float32]]
    """Modality → (I, D); zeros where an item has none. Frames are averaged."""

    def __len__(self) -> int:
        return len(self.u)

    @property
    def users(self) -> int:
        """How many users there are."""
        return int(self.u.max(initial=-1)) + 1

    @property
    def items(self) -> int:
        """How many items there are: those of the events alone, whatever else was announced."""
        return len(self.announced)

    @classmethod
    def of_folder(cls, folder: Path, limit: int | None = None) -> Stream:
        """The first `limit` events of all event files in a folder. Raises `ValueError` where there are none."""
        files = sorted(path for path in folder.iterdir() if _is_table(path)) if folder.is_dir() else []
        if not files:
            raise ValueError(f"{folder} holds no {', '.join(SUFFIXES)} (or those with .gz).")
        return cls.of_events((event for path in files for event in read_events(path)), limit)

    @classmethod
    def of_world(cls, world: World) -> Stream:
        """What a simulated world tells; its users' features are left out."""
        sent = messages(Simulator(world))
        return cls.of_events(FileEvent(one.kind, one.key.decode(), one.time, one.value) for one in sent)

    @classmethod
    def of_events(cls, events: Iterable[FileEvent], limit: int | None = None) -> Stream:
        """Events in any order; those of one time keep theirs."""
        rows: list[tuple[str, str, float, float, str]] = []
        items: dict[str, tuple[float, Mapping[str, Any]]] = {}
        for event in events:
            body = msgspec.json.decode(event.value)
            if event.kind == "items" and not body.get("deleted"):
                time = -np.inf if event.time is None else event.time
                earlier = items.get(event.key, (np.inf,))[0]
                items[event.key] = (min(earlier, time), body.get("features") or {})
            elif event.kind == "interactions" and event.time is not None:
                value = body.get("value")
                value = np.nan if value is None else float(value)
                rows.append((event.key, str(body["item_id"]), event.time, value, body.get("action") or ""))
        if not rows:
            raise ValueError("There is no interaction with a user, an item and a time.")
        rows.sort(key=lambda row: row[2])
        rows = rows[:limit]
        user_rows: dict[str, int] = {}
        item_rows: dict[str, int] = {}
        weights = TrainSpec().actions
        actions = [row[4] for row in rows]
        return cls(
            u=np.array([user_rows.setdefault(row[0], len(user_rows)) for row in rows]),
            i=np.array([item_rows.setdefault(row[1], len(item_rows)) for row in rows]),
            v=np.array([row[3] for row in rows], np.float32),
            t=np.array([row[2] for row in rows]),
            actions=actions,
            positive=np.array([weights.get(one, weights["default"]) > 0 for one in actions]),
            announced=np.array([items.get(one, (np.inf,))[0] for one in item_rows]),
            features=_tables(item_rows, items),
        )

    def cuts(self, warm: float, phases: int) -> list[int]:
        """Where phases begin and end: the first is the share `warm`, the rest are equal, and no basket is parted."""
        n = len(self)
        first = int(n * warm)
        cuts = [0]
        for number in range(phases + 1):
            cut = first + int((n - first) * number / phases)
            while 0 < cut < n and self.t[cut] == self.t[cut - 1]:
                cut += 1
            if cut > cuts[-1]:
                cuts.append(cut)
        return cuts


def _is_table(path: Path) -> bool:
    return path.name.removesuffix(".gz").endswith(SUFFIXES)


def _tables(
    rows: Mapping[str, int], items: Mapping[str, tuple[float, Mapping[str, Any]]]
) -> dict[str, NDArray[np.float32]]:
    tables: dict[str, NDArray[np.float32]] = {}
    for item_id, row in rows.items():
        for name, value in items[item_id][1].items() if item_id in items else ():
            one = _vector(value, name, tables[name].shape[1] if name in tables else None)
            tables.setdefault(name, np.zeros((len(rows), len(one)), np.float32))[row] = one
    return tables


def _vector(value: Any, name: str, length: int | None) -> NDArray[np.float32]:
    """A vector or the mean of its frames; the first one's length is everyone's. Raises `BadValueError`."""
    if isinstance(value, list) and value and not isinstance(value[0], int | float):
        length = length or len(value[0])
        return np.asarray(frame_vectors(value, name, length=length, most=len(value)).mean(0))
    if length is None:
        length = len(value) if isinstance(value, list) else len(value.rstrip("=")) * 3 // 4 // 4
    return vector(value, name, length=length)
