"""Work that is done beside other work: it reads nothing that the other alters, and alters nothing that the other reads.

Who calls decides how: here nobody knows of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Protocol, TypeVar

P = TypeVar("P")
T = TypeVar("T")


class Beside(Protocol):
    """Begins work; what it returns waits for the end of it, and gives what it made or raises what it raised.

    Never called by such work itself.
    """

    def __call__(self, work: Callable[[], T], /) -> Callable[[], T]: ...


def at_once(work: Callable[[], T]) -> Callable[[], T]:
    """Does it now."""
    made = work()
    return lambda: made


@contextmanager
def during(beside: Beside, work: Callable[[], T]) -> Iterator[Callable[[], T]]:
    """Has work done beside what is within the context, and gives what waits for it; no error leaves it behind."""
    made = beside(work)
    try:
        yield made
    except BaseException:
        with suppress(Exception):
            made()
        raise


def halved(beside: Beside, make: Callable[[P], T], parts: Sequence[P]) -> list[T]:
    """What `make` makes of each part, in their order: the second half of them beside the first."""
    middle = (len(parts) + 1) // 2
    with during(beside, lambda: [make(part) for part in parts[middle:]]) as rest:
        made = [make(part) for part in parts[:middle]]
    return made + rest()
