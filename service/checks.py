"""The outcome of one of doctor's checks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Check:
    """One named check: what was found, and what to do about it."""

    name: str
    outcome: Literal["PASS", "WARN", "FAIL"]
    detail: str
    hint: str = ""


def passed(name: str, detail: str) -> Check:
    """All is well."""
    return Check(name, "PASS", detail)


def warned(name: str, detail: str, hint: str) -> Check:
    """It works, but a person should know."""
    return Check(name, "WARN", detail, hint)


def failed(name: str, detail: str, hint: str) -> Check:
    """It will not work."""
    return Check(name, "FAIL", detail, hint)
