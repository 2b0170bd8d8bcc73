"""What the demo shows while it runs: one live panel on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from service.demo_probes import Freshness
from service.phase_log import PhaseLine

RECALL, NDCG = "recall_at_20", "ndcg_at_20"
"""Names in `phases.jsonl` of what the demo follows."""
_SHOWN_PHASES = 8


@dataclass(frozen=True, kw_only=True)
class Picture:
    """Everything shown at one moment."""

    stage: str
    total: int
    """Interactions there will be."""
    sent: int
    lines: Sequence[PhaseLine]
    first: int
    """How many of the lines are of earlier demos in the same directory."""
    freshness: Freshness
    elapsed_s: float

    @property
    def learned(self) -> int:
        """Interactions in phases that are over."""
        return sum(line.events for line in self.lines)

    @property
    def rate(self) -> float:
        """Interactions learned per second of this demo."""
        return sum(line.events for line in self.lines[self.first :]) / max(self.elapsed_s, 1e-9)

    @property
    def promoted(self) -> int:
        """Versions that passed the judge."""
        return sum(line.decision == "promoted" for line in self.lines)


class View:
    """Shows pictures; a context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
        self._phases, self._stage = 0, ""

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, picture: Picture) -> None:
        """Show it; without a terminal, only what is new in it."""
        if self._live is not None:
            self._live.update(panel(picture))
            return
        if picture.stage != self._stage:
            self._stage = picture.stage
            self._say(f"[{picture.elapsed_s:5.1f} s] {picture.stage}")
        for line in picture.lines[max(self._phases, picture.first) :]:
            self._say(f"[{picture.elapsed_s:5.1f} s] {phase_sentence(line)}")
        self._phases = max(self._phases, len(picture.lines))

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def phase_sentence(line: PhaseLine) -> str:
    """One phase in one line."""
    quality = f"recall@20 {_number(line.metrics.get(RECALL))}, NDCG@20 {_number(line.metrics.get(NDCG))}"
    seconds = sum(line.stages.values())
    return (
        f"phase {line.phase}: version {line.version} {line.decision}, {line.events} events"
        f" and {line.items} items in {seconds:.1f} s; {quality}"
    )


def panel(picture: Picture) -> RenderableType:
    """The live panel."""
    bars = Table.grid(padding=(0, 2))
    for name, count in (("sent", picture.sent), ("learned", picture.learned)):
        bars.add_row(name, ProgressBar(total=max(picture.total, 1), completed=count, width=40), f"{count:,}")
    phases = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("phase", "version", "decision", "events", "seconds", "recall@20", "NDCG@20"):
        phases.add_column(column, justify="left" if column == "decision" else "right")
    for line in picture.lines[-_SHOWN_PHASES:]:
        style = "green" if line.decision == "promoted" else "yellow"
        phases.add_row(
            *(str(line.phase), str(line.version), Text(line.decision, style=style), f"{line.events:,}"),
            *(f"{sum(line.stages.values()):.1f}", _number(line.metrics.get(RECALL)), _number(line.metrics.get(NDCG))),
        )
    served = _freshness(picture.freshness)
    summary = f"{picture.promoted} versions promoted · {picture.rate:,.0f} events/s · served after {served}"
    title = f"headwater demo · {picture.elapsed_s:.0f} s · {picture.stage}"
    return Panel(Group(bars, Text(), phases, Text(), Text(summary)), title=title, title_align="left", width=100)


def _freshness(found: Freshness) -> str:
    users, items = (found.percentile(50, "new_user", "user"), found.percentile(50, "item"))
    return f"{milliseconds(users)} for users, {milliseconds(items)} for new items (median)"


def milliseconds(seconds: float) -> str:
    """`87 ms`, `1.4 s`, `never` or `–` where nothing was measured."""
    if math.isnan(seconds):
        return "–"
    if math.isinf(seconds):
        return "never"
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _number(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.3f}"
