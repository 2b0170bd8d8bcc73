"""Many attempts in child processes: one that dies, by a fault in C or for want of memory, is found and told."""

from __future__ import annotations

import os
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import msgspec


@dataclass(frozen=True)
class Outcome:
    """What became of one attempt: `refused`, `served`, …, or `fault`, with why."""

    kind: str
    what: str
    why: str = ""


class Attempts(Protocol):
    """Something to try by number; made once, before the child is forked."""

    def prepare(self) -> None: ...
    def attempt(self, number: int) -> Outcome: ...


@dataclass
class Tally:
    """Outcomes counted, and every fault with the number that repeats it."""

    counts: Counter[tuple[str, str]]
    faults: list[tuple[int, str, str]]


def in_children(attempts: Attempts, numbers: range, *, batch: int, progress: Callable[[int, Tally], None]) -> Tally:
    """Every number, `batch` of them a child. An exception is a fault; so is the end of a child before its work's."""
    tally = Tally(Counter(), [])
    at = numbers.start
    while at < numbers.stop:
        stop = min(at + batch, numbers.stop)
        at = _one_child(attempts, range(at, stop), tally)
        progress(at - numbers.start, tally)
    return tally


def _one_child(attempts: Attempts, numbers: range, tally: Tally) -> int:
    """Returns the number to go on with."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        try:
            _work(attempts, numbers, writing)
        except BaseException:  # noqa: BLE001 - nothing of the parent's may run in the child
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(0)
    os.close(writing)
    done = numbers.start
    with os.fdopen(reading, "rb") as lines:
        for line in lines:
            number, kind, what, why = msgspec.json.decode(line, type=tuple[int, str, str, str])
            tally.counts[kind, what] += 1
            if what == "fault":
                tally.faults.append((number, kind, why))
            done = number + 1
    _, status = os.waitpid(pid, 0)
    if done < numbers.stop:
        tally.counts["?", "fault"] += 1
        tally.faults.append((done, "?", f"the process ended (status {status})"))
        done += 1
    return done


def _work(attempts: Attempts, numbers: range, pipe: int) -> None:
    attempts.prepare()
    with os.fdopen(pipe, "wb", buffering=0) as out:
        for number in numbers:
            try:
                outcome = attempts.attempt(number)
            except (Exception, RecursionError) as error:  # noqa: BLE001 - that is what is looked for
                last = traceback.extract_tb(error.__traceback__)[-1]
                why = f"{type(error).__name__}: {str(error)[:300]} ({last.filename}:{last.lineno})"
                outcome = Outcome("?", "fault", why)
            out.write(msgspec.json.encode((number, outcome.kind, outcome.what, outcome.why)) + b"\n")
