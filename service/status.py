"""What the state directory says of itself: `headwater status` and `versions`, with or without a daemon."""

from __future__ import annotations

from typing import Any

from service.checkpoints import CheckpointStore
from service.config import Config
from service.hold import Hold
from service.phase_log import read_phase_lines
from service.publication import rfc3339
from service.tombstones import Tombstones


def status_of(config: Config, store: CheckpointStore, tombstones: Tombstones, *, now: float) -> dict[str, Any]:
    """Versions, the last phase, whether promotion is held, and deletions that are not complete."""
    latest, champion = store.named()
    hold = Hold(store.layout.root)
    lines = read_phase_lines(store.layout.phases) if store.layout.phases.exists() else []
    last = lines[-1] if lines else None
    return {
        "namespace": config.namespace,
        "state_dir": str(store.layout.root),
        "latest": latest,
        "champion": champion,
        "phases": len(lines),
        "events": sum(line.events for line in lines),
        "promotion": "held" if hold.held or config.promotion.mode == "hold" else "on",
        "held_because": hold.reason,
        "last_phase": None
        if last is None
        else {
            "phase": last.phase,
            "decision": last.decision,
            "reason": last.reason,
            "age_s": round(now - last.closed_at, 1),
            "metrics": dict(last.metrics),
        },
        "deletions_pending": len(tombstones),
    }


def versions_of(store: CheckpointStore) -> list[dict[str, Any]]:
    """Lineage, decision and reason of every checkpoint on disk, oldest first."""
    latest, champion = store.named()
    return [
        {
            "version": manifest.version,
            "parent": manifest.parent,
            "phase": None if manifest.line is None else manifest.line.phase,
            "decision": manifest.decision if manifest.line is not None else "by hand",
            "weights_of": manifest.weights_of or manifest.version,
            "reason": manifest.reason,
            "is": " ".join(name for name, v in (("latest", latest), ("champion", champion)) if v == manifest.version),
            "created_at": rfc3339(manifest.created_at),
        }
        for manifest in store.versions()
    ]
