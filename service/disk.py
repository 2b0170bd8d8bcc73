"""Waiting for a disk that took no more: full, read-only, or not ours to write to any longer."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import structlog

from service.durable import TEMPORARY_SUFFIX, NewFile, disk_errors_explained
from service.errors import DiskTrouble
from service.metrics import Metrics

log = structlog.get_logger(__name__)

LOOK_S = 2.0
"""How often a disk that took no more is tried."""
LEAST_BYTES = 1 << 20


class DiskWatch:
    """Whether learning may go on. After a phase that could not be saved it may not, until as much as a checkpoint can
    be written again: trying the phase over and over would cost its learning each time."""

    def __init__(
        self, root: Path, metrics: Metrics, *, trouble: str = "", ticks: Callable[[], float] = time.monotonic
    ) -> None:
        """`trouble`: why the last phase could not be saved; empty if it was."""
        self._path = root / f".room{TEMPORARY_SUFFIX}"  # as everything temporary, removed at the next start
        self._up = metrics.disk_up
        self._ticks = ticks
        self._looked = float("-inf")
        self.trouble = trouble
        """Why learning waits; empty if it does not."""
        self._up.set(not trouble)

    def ready(self, *, room: int) -> bool:
        """Whether `room` bytes can be written, if that was ever in doubt."""
        if not self.trouble:
            return True
        now = self._ticks()
        if now - self._looked < LOOK_S:
            return False
        self._looked = now
        try:
            self._try(max(room, LEAST_BYTES))
        except DiskTrouble as error:
            self.trouble = str(error)
            return False
        self.trouble = ""
        self._up.set(1)
        log.warning("the disk has room again; learning goes on from the last checkpoint")
        return True

    def _try(self, size: int) -> None:
        block = bytes(LEAST_BYTES)
        with disk_errors_explained(self._path):
            try:
                with NewFile(self._path) as file:
                    for _ in range(-(-size // len(block))):
                        file.write(block)
            finally:
                self._path.unlink(missing_ok=True)
