"""Whether promotion is held: after a rollback or `pause`, until `promote` or `resume`. A small file, so that it
outlives the daemon."""

from __future__ import annotations

from pathlib import Path

from service.durable import fsync_directory, replace_file


class Hold:
    """`HELD` in the state directory: its content is the reason."""

    def __init__(self, root: Path) -> None:
        self._path = root / "HELD"

    @property
    def held(self) -> bool:
        """Whether candidates that pass are kept back."""
        return self._path.exists()

    @property
    def reason(self) -> str:
        """Who asked for it and why; empty if it is not held."""
        return self._path.read_text().strip() if self.held else ""

    def set(self, reason: str) -> None:
        """From the next phase on, candidates that pass are held."""
        replace_file(self._path, reason.encode() + b"\n")

    def release(self) -> None:
        """From the next phase on, candidates that pass are promoted."""
        self._path.unlink(missing_ok=True)
        fsync_directory(self._path.parent)
