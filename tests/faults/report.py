"""The table of `docs/reliability.md`: what a run found."""

from __future__ import annotations

from collections.abc import Sequence

from tests.faults.stage import Fault, Outcome, abridged


def table(results: Sequence[tuple[Fault, Outcome | str]]) -> str:
    """Rows of faults with their outcomes, or with why there is none."""
    rows = ["| | fault | outcome | s | lost | what it said |", "|---|---|---|---|---|---|"]
    group = ""
    for fault, outcome in results:
        heading = "" if fault.group == group else f"**{fault.group}**"
        group = fault.group
        if isinstance(outcome, str):
            rows.append(f"| {heading} | {fault.name} | {outcome} | | | |")
            continue
        seconds = "stops" if outcome.seconds is None else f"{outcome.seconds:.1f}"
        said = f"`{abridged(outcome.said)}`"
        rows.append(f"| {heading} | {fault.name} | {outcome.what} | {seconds} | {outcome.lost} | {said} |")
    return "\n".join(rows)
