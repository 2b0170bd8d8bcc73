"""Work that needs nothing of what is done meanwhile, and alters nothing that it reads: done at once, or beside it.

Who calls decides: here nobody knows of threads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

T = TypeVar("T")


class Beside(Protocol):
    """Begins work; what it returns waits for the end of it, and gives what it made or raises what it raised."""

    def __call__(self, work: Callable[[], T], /) -> Callable[[], T]: ...


def at_once(work: Callable[[], T]) -> Callable[[], T]:
    """Does it now."""
    made = work()
    return lambda: made
