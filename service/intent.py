"""The intent: what a phase is about to do, written ahead, so that a crash anywhere later repeats the same phase.

From here on the phase is a pure function of (parent checkpoint, intent, records): nothing it does may depend on a
clock, the load, or how many records a poll happened to return.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from service.crash_points import crash_point
from service.durable import replace_file
from service.errors import CorruptCheckpoint
from service.phase_log import Offsets
from service.sealed import Sealed, seal, unseal


class Intent(Sealed, frozen=True, kw_only=True):
    """One phase, as decided before it began. Times are epoch seconds."""

    parent: int | None
    """The version it learns from; None for the very first phase."""
    phase: int
    version: int
    """Allotted for its checkpoint."""
    start: Offsets
    end: Offsets
    """Next offset after the phase, of every topic."""
    now: float
    """The only clock the phase knows."""
    opened_at: float
    watermark: float | None
    replay_ratio: float
    caught_up: bool = False
    """See `service.catching_up`."""
    threads: int
    gate: str
    """`auto`, or `hold` where candidates that pass are kept back."""


class IntentFile:
    """`intent.json`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, intent: Intent) -> None:
        """Replace the intent; it is on disk when this returns."""
        replace_file(self.path, seal(intent), before_replace=lambda: crash_point("intent.temporary"))
        crash_point("intent.written")

    def read(self, parent: int | None) -> Intent | None:
        """The intent to carry out again on top of checkpoint `parent`.

        None if there is none, if it belongs to another parent (its phase was completed, or its parent is gone), or if
        it cannot be read: nothing was committed under it, so the phase may as well be cut anew. Raises OtherFormat.
        """
        try:
            intent = unseal(self.path.read_bytes(), Intent, self.path)
        except (FileNotFoundError, CorruptCheckpoint):
            return None
        return intent if intent.parent == parent else None

    def with_version(self, intent: Intent, version: int) -> Intent:
        """The same phase under another version number, written."""
        renamed = msgspec.structs.replace(intent, version=version)
        self.write(renamed)
        return renamed
