"""The errors Headwater shows its users: one root, one sentence each, and what to do next.

The command line prints `message` and `hint` and exits 1; nothing below this root ever reaches a user as a traceback.
"""

# An error is named after what happened, not after being one.
# ruff: noqa: N818

from __future__ import annotations

from collections.abc import Sequence


class HeadwaterError(Exception):
    """What went wrong, in one sentence; `hint` says what to do next."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class ConfigError(HeadwaterError):
    """The configuration cannot be used; `problems` has one sentence for each thing wrong with it."""

    def __init__(self, message: str, *, hint: str = "", problems: Sequence[str] = ()) -> None:
        super().__init__(message, hint=hint)
        self.problems: tuple[str, ...] = tuple(problems) or (message,)


class SecretError(ConfigError):
    """A file that should hold a password or token cannot be read."""


class StateError(HeadwaterError):
    """The state directory cannot be used as it is."""


class DiskTrouble(StateError):
    """The disk takes no more: it is full, read-only, or may not be written."""


class StateLocked(StateError):
    """Another process on this host holds the state directory."""


class ForeignState(StateError):
    """The state belongs to another namespace, Kafka cluster or topic."""


class OtherFormat(StateError):
    """The state was written by a newer or an older Headwater, in a format that this one does not read."""


class NoCheckpoint(StateError):
    """There is no checkpoint to act on, or not the one asked for."""


class CorruptCheckpoint(StateError):
    """A checkpoint's files do not match its manifest."""


class DataTruncated(HeadwaterError):
    """Kafka no longer has offsets that have not been learned."""


class UnknownId(HeadwaterError):
    """Nothing is known under that user or item id."""


class NotReady(HeadwaterError):
    """The daemon runs but cannot answer yet."""


class NotRunning(HeadwaterError):
    """No daemon answers, and the verb needs one."""


class CommandRefused(HeadwaterError):
    """A verb was understood but cannot be done now."""


class InputFileError(HeadwaterError):
    """A file of events cannot be read."""
