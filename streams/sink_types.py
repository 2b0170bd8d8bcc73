"""What can go wrong between Headwater and Redis, and the few types its sinks share."""

from __future__ import annotations

from typing import Literal

Kind = Literal["items", "users"]


class SinkError(Exception):
    """Something about the vectors' store; one of the three below."""


class SinkUnavailable(SinkError):  # noqa: N818 - the names say what is so
    """The store is away for now: try again later, nothing is lost."""


class SinkRefused(SinkError):  # noqa: N818
    """The store answered no (memory, rights, read-only, wrong password): it needs a person; the message has a hint."""


class Fenced(SinkError):  # noqa: N818
    """Another daemon has taken this namespace over, or the pointer has moved past this version: stop publishing."""
