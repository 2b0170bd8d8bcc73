"""`phases.jsonl`: one line for each phase, which the report, the plots and outside tools read.

The checkpoints are the truth and the log follows them: each manifest carries its phase's line, so a line that a crash
kept out of the log, or a damaged one, comes back from there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from service.durable import fsync_directory
from service.json_lines import JsonLines

Decision = Literal["promoted", "refused", "held", "empty"]
Offset = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
Offsets = dict[str, dict[Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)], Offset]]
"""Next offset to read: {topic: {partition: offset}}."""


class PhaseLine(msgspec.Struct, frozen=True, kw_only=True):
    """One phase. Times are epoch seconds; counts are of the interactions topic unless named otherwise."""

    phase: int
    """From 1, without gaps."""
    version: int | None
    decision: Decision
    reason: str
    start: Offsets
    """The last phase's `end`."""
    end: Offsets
    events: int
    duplicates: int
    rejected: int
    skipped: int
    """Offsets with no record: transaction markers, compaction."""
    lost: int
    """Offsets that Kafka had removed before they were read."""
    late: int
    items: int
    """Item events."""
    users: int
    """User events."""
    watermark: float | None
    opened_at: float
    closed_at: float
    over_limit: int = 0
    """Of the rejected ones, those that brought an id beyond a limit of `[events]`."""
    published_at: float | None = None
    """None until the version is the one in Redis."""
    metrics: Mapping[str, float | None] = {}
    stages: Mapping[str, float] = {}
    """Seconds of each step."""


class PhaseLog:
    """The file, for its one writer. Opening it cuts a torn last line and takes out damaged ones, see `problems`."""

    def __init__(self, path: Path) -> None:
        self._file = JsonLines(path, PhaseLine, points="phases")
        self.path = path
        self.problems: list[str] = []
        lines, bad = self._file.read()
        if bad:
            copy = path.with_name(path.name + ".damaged")
            os.replace(path, copy)  # noqa: PTH105
            fsync_directory(path.parent)
            self._file.rewrite(lines)
            numbers = ", ".join(map(str, bad))
            self.problems.append(
                f"Lines {numbers} of {path.name} were damaged and left out; the file as it was is {copy.name}."
            )
        self._last = lines[-1] if lines else None
        self._under_way: PhaseLine | None = None

    @property
    def last(self) -> PhaseLine | None:
        """The newest line."""
        return self._last

    def lines(self) -> list[PhaseLine]:
        """All lines, oldest first."""
        return self._file.read()[0]

    def append(self, line: PhaseLine) -> None:
        """Add a phase's line; lines of that phase or later go first: they belonged to checkpoints that are gone."""
        if self._last is not None and self._last.phase >= line.phase:
            kept = [old for old in self.lines() if old.phase < line.phase]
            self._file.rewrite([*kept, line])
        else:
            self._file.append(line)
        self._last = line

    def begin(self, line: PhaseLine) -> None:
        """Hold the line of a phase whose checkpoint is on disk until `end` knows the rest of it."""
        self._under_way = line

    def published(self, version: int, at: float) -> None:
        """Note when a version went live (epoch seconds); a version without a line (a rollback by hand) is no error."""
        if self._under_way is not None and self._under_way.version == version:
            self._under_way = msgspec.structs.replace(self._under_way, published_at=at)
            return
        lines = self.lines()
        if any(line.version == version for line in lines):
            self._file.rewrite(
                msgspec.structs.replace(line, published_at=at) if line.version == version else line for line in lines
            )
            self._last = self.lines()[-1]

    def end(self, stages: Mapping[str, float]) -> PhaseLine:
        """Add the line that `begin` was given, with how long every step took. Once, and not a part at a time: whoever
        reads along never sees a phase half done, or gone while its line is written anew."""
        assert self._under_way is not None
        line, self._under_way = msgspec.structs.replace(self._under_way, stages=dict(stages)), None
        self.append(line)
        return line

    def repair(self, lineage: Sequence[PhaseLine]) -> list[str]:
        """Make the log follow `lineage`, the kept checkpoints' lines: adds what is missing, drops what was undone.

        Phases older than the oldest kept checkpoint stay as they are. Returns a sentence for each thing mended.
        """
        if not lineage:
            return []
        before = self.lines()
        truth = {line.phase: line for line in lineage}
        newest = max(truth)
        merged = {line.phase: line for line in before if line.phase <= newest}
        undone = len({line.phase for line in before if line.phase > newest})
        rebuilt = [phase for phase, line in truth.items() if not _same(merged.get(phase), line)]
        merged.update({phase: truth[phase] for phase in rebuilt})
        after = [merged[phase] for phase in sorted(merged)]
        if after == before:
            return []
        if after[: len(before)] == before:
            self._file.append(*after[len(before) :])
        else:
            self._file.rewrite(after)
        self._last = after[-1]
        mended = [f"Phase {phase} was written into {self.path.name} from its checkpoint." for phase in sorted(rebuilt)]
        if undone:
            mended.append(f"{undone} phases after {newest} left {self.path.name}: their checkpoints are gone.")
        return mended


def read_phase_lines(path: Path) -> list[PhaseLine]:
    """The good lines of a log that a daemon may be writing to; changes nothing."""
    return JsonLines(path, PhaseLine, points="phases").read()[0]


def _same(logged: PhaseLine | None, saved: PhaseLine) -> bool:
    return logged is not None and _lasting(logged) == _lasting(saved)


def _lasting(line: PhaseLine) -> PhaseLine:
    """What of a line is known when the checkpoint is written."""
    return msgspec.structs.replace(line, published_at=None, stages={})
