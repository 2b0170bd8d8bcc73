"""The table of `docs/reliability.md`: what runs found, each row of the newest run that played its fault."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tests.faults.stage import SCHEDULE, Fault, Outcome, abridged

HEAD = ["| | fault | outcome | s | lost | what it said |", "|---|---|---|---|---|---|"]
Cells = tuple[str, ...]
"""Fault, outcome, seconds, lost, what it said."""


def cells(fault: Fault, outcome: Outcome | str) -> Cells:
    """One row; `outcome` is a sentence where there is none."""
    if isinstance(outcome, str):
        return fault.name, outcome, "", "", ""
    seconds = "stops" if outcome.seconds is None else f"{outcome.seconds:.1f}"
    return fault.name, outcome.what, seconds, str(outcome.lost), f"`{abridged(outcome.said)}`"


def row(heading: str, found: Cells) -> str:
    """As Markdown."""
    return f"| {heading} | {' | '.join(found)} |"


def table(found: Mapping[str, Cells]) -> str:
    """The rows by name of fault, in the schedule's order; faults that are not on it any more are left out."""
    lines, group = list(HEAD), ""
    for fault in SCHEDULE:
        if fault.name in found:
            lines.append(row("" if fault.group == group else f"**{fault.group}**", found[fault.name]))
            group = fault.group
    return "\n".join(lines)


def rows_of(lines: Iterable[str]) -> dict[str, Cells]:
    """The rows of a table that an earlier run wrote."""
    found = {}
    for line in lines:
        parts = line.replace("\\|", "\0").split("|")
        if len(parts) == 8 and parts[2].strip() not in ("fault", "---"):
            kept = tuple(part.strip().replace("\0", "\\|") for part in parts[2:7])
            found[kept[0]] = kept
    return found
