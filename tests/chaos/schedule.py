"""Which deaths, how often, and in which order: drawn from a seed, so that a run can be repeated."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

from service.crash_points import POINTS
from tests.chaos.lives import Death
from tests.chaos.remains import Remains
from tests.daemon_process import Place

FORGETTING = ("tombstones.half", "tombstones.written", "generation.unused")
"""Reached only where something was deleted."""
SWEEPING = "sweep.half"
"""Reached only by a life that follows a death which left something half done."""
TAKING_UP = "publish.adopted"
"""Reached only by a life that finds its champion in Redis."""
LAST = ("phase.checkpointed", "champion.before", "flip.before", "flip.half", "flip.after", "phases.half")
"""In the last phase a chain is killed at one of these: the next start has nothing to learn, and much to serve."""
NAMED_SHARE = 0.6
"""Of the kills; the others come at random."""
STEPS, DISK_CALLS = 40, 250
"""How far into a life the random ones come: most lives have so many steps of the optimizer, and calls to the disk."""
SHORTEST, LONGEST = 0.05, 0.45
"""And how long they let it live, as shares of an uninterrupted run."""
TRIES = 4
"""A point that a life to the end of the stream passes so often without being reached is given up, and said."""


class Schedule:
    """The deaths still to come. A chain takes those that can happen to it next, and gives back those that did not."""

    def __init__(self, *, kills: int, seed: int, run_s: float) -> None:
        self.draw = random.Random(seed)
        plain = [point for point in POINTS if point not in FORGETTING]
        each = max(1, round(NAMED_SHARE * kills / len(POINTS)))
        self.forgetting = dict.fromkeys(FORGETTING, each)
        named = [Death("point", point, self._number(point, turn)) for turn in range(each) for point in plain]
        rest = [self._random(run_s) for _ in range(max(0, kills - each * len(POINTS)))]
        self._waiting = named + rest
        self.draw.shuffle(self._waiting)
        self._missed: Counter[Death] = Counter()
        self.unreachable: list[Death] = []
        self._last = 0

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def take(self, place: Place) -> Death | None:
        """The next one that can happen to this place; None where there is none."""
        possible = self._impossible(place)
        # what few lives can be killed at goes first where it can happen
        ranked = [d for d in self._waiting if d.name == SWEEPING] + [d for d in self._waiting if d.name != SWEEPING]
        chosen = next((death for death in ranked if death.name not in possible), None)
        if chosen is not None:
            self._waiting.remove(chosen)
        return chosen

    def give_back(self, death: Death) -> None:
        """It did not happen: the life came to its end before."""
        again = replace(death, number=1) if death.kind == "point" else death
        if death.kind == "moment":
            again = replace(death, seconds=death.seconds / 2)
        elif death.kind != "point":
            again = replace(death, number=max(1, death.number // 2))
        key = replace(again, number=0, seconds=0.0)
        self._missed[key] += 1
        if self._missed[key] >= TRIES and death.kind == "point":
            self.unreachable.append(death)
        else:
            self._waiting.append(again)

    def happened(self, death: Death) -> None:
        """It is not beyond reach, then."""
        del self._missed[replace(death, number=0, seconds=0.0)]

    def last(self, phases: int) -> Death:
        """How to die in the last of so many phases."""
        self._last += 1
        return Death("point", LAST[self._last % len(LAST)], phases)

    def _impossible(self, place: Place) -> set[str]:
        impossible = set()
        checkpoints = place.state_dir / "checkpoints"
        if not any(checkpoints.glob(".tmp-*")) and not any(checkpoints.glob(".old-*")):
            impossible.add(SWEEPING)
        if not _served(place):
            impossible.add(TAKING_UP)
        return impossible

    def _number(self, point: str, turn: int) -> int:
        # The first time it can be reached, or the second, so that some also die in a phase they had not resumed.
        return 1 + (turn % 3 == 2 and point not in (SWEEPING, TAKING_UP, "start.restored", "publish.claimed"))

    def _random(self, run_s: float) -> Death:
        kind = self.draw.choices(("step", "disk", "moment"), (1, 2, 5))[0]
        if kind == "step":
            return Death("step", number=self.draw.randint(1, STEPS))
        if kind == "disk":
            return Death("disk", number=self.draw.randint(1, DISK_CALLS))
        return Death("moment", seconds=self.draw.uniform(SHORTEST, LONGEST) * run_s)


def _served(place: Place) -> bool:
    champion = Remains(place).store.named()[1]
    if champion is None:
        return False
    with place.sink() as sink:
        pointer = sink.pointer()
    return pointer is not None and pointer.version == champion
