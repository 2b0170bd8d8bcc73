"""What Prometheus is told of a finished phase."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

from models.memory import Memory
from service.metrics import Metrics
from service.phase_log import PhaseLine
from service.promotion import Verdict


def count_phase(metrics: Metrics, line: PhaseLine, verdict: Verdict | None, memory: Memory) -> None:
    """Counts, decision and quality of a phase whose checkpoint is saved."""
    metrics.events.inc(line.events)
    metrics.duplicates.inc(line.duplicates)
    metrics.late.inc(line.late)
    metrics.skipped.inc(line.skipped)
    metrics.phases.labels(decision=line.decision).inc()
    if verdict is not None and verdict.decision == "refused":
        metrics.refusals.labels(reason=verdict.slug).inc()
    if line.watermark is not None:
        metrics.watermark_timestamp_seconds.set(line.watermark)
    metrics.catalogue_items.set(memory.n_items)
    metrics.known_users.set(memory.n_users)
    metrics.examples.labels(kind="new").inc(line.metrics.get("learn_new") or 0.0)
    metrics.examples.labels(kind="replayed").inc(line.metrics.get("learn_replayed") or 0.0)
    if (loss := line.metrics.get("learn_loss")) is not None:
        metrics.learn_loss.set(loss)
    for name, value in line.metrics.items():
        if value is not None and not name.startswith(("gate_", "learn_", "shadow_", "floor_")):
            metrics.prequential.labels(metric=name).set(value)
    for who in ("candidate", "champion", "popularity", "decayed_popularity"):
        value = line.metrics.get(f"gate_{who}")
        if value is not None:
            metrics.quality.labels(metric="gate", who=who).set(value)
    if (score := line.metrics.get("shadow_score")) is not None:
        metrics.quality.labels(metric="gate", who="shadow").set(score)
    for name in ("change", "low", "high"):
        if (value := line.metrics.get(f"floor_{name}")) is not None:
            metrics.floor_change.labels(figure=name).set(value)
    for who, name in product(("candidate", "champion"), ("change", "low", "high")):
        if (value := line.metrics.get(f"shadow_{who}_{name}")) is not None:
            metrics.shadow_change.labels(against=who, figure=name).set(value)


def time_phase(metrics: Metrics, stages: Mapping[str, float]) -> None:
    """How long each step of a finished phase took, in seconds."""
    for stage, seconds in stages.items():
        metrics.phase_stage_seconds.labels(stage=stage).observe(seconds)
    metrics.phase_seconds.observe(sum(stages.values()))
    metrics.checkpoint_seconds.observe(stages.get("checkpoint", 0.0))
    if "publish" in stages:
        metrics.publish_seconds.observe(stages["publish"])
