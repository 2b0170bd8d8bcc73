"""The table of `docs/reliability.md`: what a run found, between two markers, and nothing else of the page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from tests.faults.stage import Fault, Outcome, abridged

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"


def table(results: Sequence[tuple[Fault, Outcome | str]]) -> str:
    """Rows of faults with their outcomes, or with why they were not played."""
    rows = ["| | fault | outcome | s | lost | what it said |", "|---|---|---|---|---|---|"]
    group = ""
    for fault, outcome in results:
        heading = "" if fault.group == group else f"**{fault.group}**"
        group = fault.group
        if isinstance(outcome, str):
            rows.append(f"| {heading} | {fault.name} | not played: {outcome} | | | |")
            continue
        seconds = "stops" if outcome.seconds is None else f"{outcome.seconds:.1f}"
        said = f"`{abridged(outcome.said)}`"
        rows.append(f"| {heading} | {fault.name} | {outcome.what} | {seconds} | {outcome.lost} | {said} |")
    return "\n".join(rows)


def write_section(name: str, text: str, page: Path = PAGE) -> None:
    """Puts `text` between `<!-- NAME -->` and `<!-- end of NAME -->`. Raises ValueError where the page lacks them."""
    before = page.read_text(encoding="utf-8")
    pattern = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end of {re.escape(name)} -->)", re.DOTALL)
    after, found = pattern.subn(lambda match: f"{match[1]}\n{text}\n\n{match[2]}", before)
    if found != 1:
        raise ValueError(f"{page} has no section between <!-- {name} --> and <!-- end of {name} -->")
    page.write_text(after, encoding="utf-8")
