"""What happened in a phase as its line of `phases.jsonl`."""

from __future__ import annotations

from collections.abc import Mapping

from service.arrivals import ClosedPhase
from service.catching_up import CAUGHT_UP
from service.collecting import Collected
from service.intent import Intent
from service.phase_log import Decision, PhaseLine
from service.promotion import Verdict
from service.trainer import Attempt
from streams.events import Item, User


def line_of(
    phase: ClosedPhase,
    collected: Collected,
    measured: Mapping[str, float],
    attempt: Attempt,
    verdict: Verdict | None,
    intent: Intent,
    stages: Mapping[str, float],
    *,
    watermark: float | None,
    topic: str,
) -> PhaseLine:
    """The line; `watermark` is that of the phase before, and `topic` the one of interactions."""
    decision: Decision = "empty" if verdict is None else verdict.decision
    return PhaseLine(
        phase=intent.phase,
        version=intent.version,
        decision=decision,
        reason="No new interactions; offsets and content are kept." if verdict is None else verdict.reason,
        start=intent.start,
        end=intent.end,
        events=len(collected.batch),
        duplicates=collected.duplicates,
        rejected=phase.rejected + collected.over_limit,
        over_limit=collected.over_limit,
        skipped=phase.skipped(topic),
        lost=phase.lost,
        late=collected.late,
        items=sum(isinstance(arrival.event, Item) for arrival in collected.content),
        users=sum(isinstance(arrival.event, User) for arrival in collected.content),
        watermark=intent.watermark if intent.watermark is not None else watermark,
        opened_at=intent.opened_at,
        closed_at=intent.now,
        metrics={
            **measured,
            **attempt.metrics,
            CAUGHT_UP: float(intent.caught_up),
            **({} if verdict is None else verdict.metrics),
        },
        stages=dict(stages),
    )
