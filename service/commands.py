"""Verbs that change what is served, handed from HTTP to learning, which alone may carry them out, between two
phases."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import Empty, Queue
from typing import Any

from service.errors import CommandRefused

PATIENCE_S = 120.0
"""Longest wait for learning to finish its phase and carry a verb out."""


@dataclass(frozen=True)
class Command:
    """One verb with its arguments, and where its answer goes."""

    name: str
    args: Mapping[str, Any]
    answer: Future[dict[str, Any]] = field(default_factory=Future)


class CommandQueue:
    """Hands verbs over and waits for their answers."""

    def __init__(self) -> None:
        self._queue: Queue[Command] = Queue()

    def ask(self, name: str, args: Mapping[str, Any]) -> dict[str, Any]:
        """Any thread: waits for the answer. Raises what carrying it out raised, or CommandRefused after
        `PATIENCE_S`."""
        command = Command(name, args)
        self._queue.put(command)
        try:
            return command.answer.result(timeout=PATIENCE_S)
        except TimeoutError:
            if not command.answer.cancel():
                return command.answer.result()  # it is being carried out at this moment: its answer is what counts
            raise CommandRefused(
                f"Learning was too busy to carry out {name!r} within {PATIENCE_S:.0f} s.",
                hint="Nothing was changed; try again, or see `headwater status`.",
            ) from None

    def next(self) -> Command | None:
        """Learning: the next verb that somebody still waits for, or None."""
        while True:
            try:
                command = self._queue.get_nowait()
            except Empty:
                return None
            if command.answer.set_running_or_notify_cancel():
                return command
