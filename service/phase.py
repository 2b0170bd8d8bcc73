"""The story: what Headwater does with one phase, in order. Start reading here.

From its intent on, a phase is a pure function of (parent checkpoint, intent, records). So a crash anywhere below is
mended by doing the same phase again: the same events, in the same order, give the same weights bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

import structlog

from service.arrivals import ClosedPhase
from service.crash_points import crash_point
from service.engine import Engine
from service.intent import Intent
from service.phase_log import PhaseLine

log = structlog.get_logger(__name__)


class Stopwatch:
    """Seconds of each step, for `phases.jsonl` and the metrics; nothing that is learned depends on it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        started = perf_counter()
        try:
            yield
        finally:
            self.seconds[step] = round(perf_counter() - started, 4)


def run_phase(phase: ClosedPhase, engine: Engine, *, resumed: Intent | None = None) -> PhaseLine:
    """Learns one phase and publishes the result if it is no worse. `resumed`: the intent of a phase that a crash
    cut short."""
    step = Stopwatch()

    # 1. Collect. The intent is on disk before anything is touched; then order, duplicates and lateness are decided.
    with step("collect"):
        intent = resumed or engine.intend(phase)
        crash_point("phase.intended")
        collected = engine.collect(phase, intent)
        crash_point("phase.collected")

    # 2. Evaluate first: the parent ranks events that nothing has learned from yet.
    with step("evaluate"):
        measured = engine.evaluate(collected, intent)
        crash_point("phase.evaluated")

    # 3. Learn and 4. judge, on what is held out. A refusal gives the parent's weights back; the phase is still over.
    with step("learn"):
        attempt = engine.learn(collected, intent)
        crash_point("phase.learned")
    with step("judge"):
        verdict = engine.judge(attempt, intent)
        crash_point("phase.judged")

    # 5. Checkpoint: weights and offsets together, so that no event is lost and none is learned twice.
    with step("checkpoint"):
        line = engine.checkpoint(phase, collected, measured, attempt, verdict, intent, step.seconds)
        crash_point("phase.checkpointed")

    # 6. Load back what is on disk: what is served is what a restart would serve.
    with step("load_back"):
        snapshot = engine.load_back(line)
        crash_point("phase.loaded_back")

    # 7. Publish and 8. swap, if the judge agreed; Redis may be away, and then it follows on its return.
    if line.decision == "promoted":
        with step("publish"):
            engine.served.publish(snapshot, intent.end, line.watermark, goes_on=True)
            crash_point("phase.published")

    # 9. Commit to the consumer group, for lag tools only, and tidy up.
    with step("commit"):
        line = engine.finish(intent, step.seconds)
        crash_point("phase.finished")

    log.info(
        f"phase {line.phase} {line.decision}",
        version=line.version,
        reason=line.reason,
        events=line.events,
        **{name: round(value, 4) for name, value in measured.items() if name in engine.headline},
        seconds=round(sum(step.seconds.values()), 2),
    )
    return line
