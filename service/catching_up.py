"""How much is replayed while events wait in Kafka: less, until learning has caught up with them."""

from __future__ import annotations

from dataclasses import dataclass

CAUGHT_UP = "learn_caught_up"
"""The figure in a phase's line: 1 from when learning first had next to nothing waiting, 0 before."""


@dataclass(frozen=True, slots=True)
class Hurry:
    """What is decided for one phase."""

    replay_ratio: float
    caught_up: bool
    """Whether learning has ever had so little waiting that it is in no hurry."""


def hurry(full: float, *, patience: float, waiting: int | None, events: int, caught_up: bool) -> Hurry:
    """The replay ratio of a phase of `events` with `waiting` events behind it in Kafka (None: not known yet).

    `full` while no more than `patience` phases wait; beyond it in proportion: twice as many halve it. A backlog from
    before the first time that learning was not behind (`caught_up`) is history to be learned well, not in haste.
    """
    phases = 0.0 if waiting is None else waiting / max(1, events)
    caught_up = caught_up or (waiting is not None and phases <= patience)
    if not caught_up or phases <= patience:
        return Hurry(full, caught_up)
    return Hurry(full * patience / phases, caught_up)
