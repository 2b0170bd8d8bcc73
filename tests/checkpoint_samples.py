"""Small checkpoints for tests: what is saved can be told from the version's number alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from service.checkpoints import CheckpointStore
from service.manifest import CheckpointFacts, Manifest
from service.phase_log import Decision, PhaseLine


def line(phase: int, version: int | None = None, *, decision: Decision = "promoted", **changes: Any) -> PhaseLine:
    """A phase of ten events."""
    fields: dict[str, Any] = {
        "phase": phase,
        "version": phase if version is None else version,
        "decision": decision,
        "reason": "",
        "start": {"interactions": {0: 10 * (phase - 1)}},
        "end": {"interactions": {0: 10 * phase}},
        "events": 10,
        "duplicates": 0,
        "rejected": 0,
        "skipped": 0,
        "lost": 0,
        "late": 0,
        "items": 0,
        "users": 0,
        "watermark": 1e9 + phase,
        "opened_at": 1e9 + phase,
        "closed_at": 1e9 + phase + 0.5,
    }
    return PhaseLine(**(fields | changes))


def facts(version: int, *, decision: Decision = "promoted", **changes: Any) -> CheckpointFacts:
    """What a phase would say of `version`."""
    fields: dict[str, Any] = {
        "created_at": 1e9 + version,
        "decision": decision,
        "reason": "better",
        "offsets": {"interactions": {0: 10 * version}, "items": {0: version}},
        "cluster_id": "cluster",
        "line": line(version, decision=decision),
    }
    return CheckpointFacts(**(fields | changes))


def state(version: int) -> dict[str, Any]:
    """The weights of `version`."""
    return {"weight": torch.full((4,), float(version)), "steps": version, "names": ["a", ("b", None)]}


def save(store: CheckpointStore, version: int, *, parent: int | None, **more: Any) -> Manifest:
    """Save `version`, with one chunk of its own in the log."""
    decision = more.pop("decision", "promoted")
    arguments: dict[str, Any] = {
        "segments": {"log": chunk(version)},
        "state": state(version),
        "facts": facts(version, decision=decision),
    }
    return store.save(version, parent=parent, **(arguments | more))


def chunk(version: int) -> bytes:
    """What `version` adds to the log."""
    return b"events of %d;" % version


def history(root: Path, count: int) -> CheckpointStore:
    """A store with versions 1 to `count`, each promoted on top of the one before."""
    root.mkdir(exist_ok=True)
    store = CheckpointStore(root, keep_versions=3)
    for _ in range(count):
        version = store.allot()
        save(store, version, parent=version - 1 or None)
        store.set_champion(version)
    return store


def content(store: CheckpointStore, version: int) -> tuple[int, bytes]:
    """What loading `version` gives: its step count (equal to the version saved) and the whole log."""
    loaded = store.load(version)
    steps: int = loaded.state["steps"]
    assert loaded.state["weight"].tolist() == [float(steps)] * 4
    return steps, b"".join(loaded.segments["log"])
