"""The daemon of the demo: the same program as `headwater run`, in a process of its own that ends with the demo."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from service.errors import NotRunning
from streams.embedded import ServerProcess


class DemoDaemon(ServerProcess):
    """`headwater run` on a configuration that `write_config` writes once the HTTP port is chosen."""

    name = "daemon"

    def __init__(self, *, directory: Path, config: Path, write_config: Callable[[int], None]) -> None:
        # Loading torch and the newest checkpoint on a busy machine takes a while.
        super().__init__(directory=directory, ready_timeout_s=90.0)
        self._config, self._write_config = config, write_config

    def command(self, port: int) -> list[str]:
        self._write_config(port)
        return [sys.executable, "-m", "service.cli", "run", "-c", str(self._config)]

    @property
    def address(self) -> str:
        return f"http://{super().address}"

    def check(self) -> None:
        """Raise `NotRunning` if it has ended, with its last words."""
        if not self.running:
            raise NotRunning(
                f"the daemon ended {self.ended} before the demo was over.",
                hint=f"The end of {self.log} says: {self._last_words()}",
            )

    def _last_words(self) -> str:
        """What the last line of the log says and why, without all else that it holds."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        for line in reversed(lines):
            try:
                said = msgspec.json.decode(line, type=dict[str, Any])
            except msgspec.DecodeError:
                break  # a traceback, or what a library wrote: nothing is left out of that
            if "event" in said:
                return ": ".join(str(said[part]) for part in ("event", "error") if said.get(part))
        return super()._last_words()
