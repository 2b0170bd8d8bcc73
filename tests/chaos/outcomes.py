"""What must be equal, bit for bit, between a run that was killed and one that was not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec
import torch

from service.catching_up import CAUGHT_UP
from service.phase_log import PhaseLine
from tests.chaos.remains import Remains
from tests.daemon_process import Place


@dataclass(frozen=True)
class Outcome:
    """All that a run has learned after a phase and that a crash may not change: not version numbers and clocks."""

    phase: int
    state: dict[str, Any]
    """Weights, optimizer, random numbers, counts, the judge's windows, the partitions' maxima."""
    segments: dict[str, bytes]
    """Vocabulary, contents, events, remembered event ids."""
    line: dict[str, Any]


def outcomes(left: Remains) -> dict[int, Outcome]:
    """Of every phase whose checkpoint is kept, by its number; verified while it is read."""
    return {one.phase: one for one in (_outcome(left, manifest.version) for manifest in left.store.lineage())}


def latest_outcome(left: Remains) -> Outcome | None:
    """Of the phase that the next start goes on from; None before the first."""
    return None if left.latest is None else _outcome(left, left.latest)


def _outcome(left: Remains, version: int) -> Outcome:
    checkpoint = left.checkpoint(version)
    line = checkpoint.manifest.line
    assert line is not None
    return Outcome(
        phase=line.phase,
        state=checkpoint.state,
        segments={name: b"".join(chunks) for name, chunks in checkpoint.segments.items()},
        line=_timeless(line),
    )


def differences(one: Outcome, other: Outcome) -> list[str]:
    """Where two runs differ after the same phase, bit for bit."""
    return [
        f"phase {one.phase}: {what}"
        for name in ("state", "segments", "line")
        for what in _unequal(getattr(one, name), getattr(other, name), name)
    ]


def log_differences(place: Place, other: Place) -> list[str]:
    """Where the `phases.jsonl` of two runs differ, clocks and version numbers aside."""
    mine, theirs = ([_timeless(line) for line in one.lines()] for one in (place, other))
    return list(_unequal(mine, theirs, "phases.jsonl"))


def _timeless(line: PhaseLine) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(line)
    plain["published_at"] = line.published_at is not None
    # Whether events waited when the phase began is a matter of the moment; a phase done again has it from its intent.
    plain["metrics"].pop(CAUGHT_UP, None)
    return {name: value for name, value in plain.items() if name not in ("version", "opened_at", "closed_at", "stages")}


def _unequal(one: Any, other: Any, where: str) -> Iterable[str]:
    if type(one) is not type(other):
        yield f"{where}: {type(one).__name__} and {type(other).__name__}"
    elif isinstance(one, torch.Tensor):
        if one.dtype != other.dtype or one.shape != other.shape or one.numpy().tobytes() != other.numpy().tobytes():
            yield f"{where}: tensors differ"
    elif isinstance(one, dict):
        if one.keys() != other.keys():
            yield f"{where}: keys {sorted(map(str, one.keys() ^ other.keys()))}"
        for key in one.keys() & other.keys():
            yield from _unequal(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        if len(one) != len(other):
            yield f"{where}: {len(one)} and {len(other)} entries"
        for number, (left, right) in enumerate(zip(one, other, strict=False)):
            yield from _unequal(left, right, f"{where}[{number}]")
    elif one != other and not (one != one and other != other):
        yield f"{where}: {str(one)[:60]!r} and {str(other)[:60]!r}"
