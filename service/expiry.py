"""Items and users that nothing has happened to for long are forgotten, and leave Redis with the next version."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.memory import Memory
from service.config_tables import EventsConfig

DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Expired:
    """How many were forgotten."""

    items: int = 0
    users: int = 0


def expire(memory: Memory, events: EventsConfig) -> Expired:
    """Forget who and what is past `[events] expire_items_days` and `expire_users_days` (0: never), by event time.

    An item's last sign of life is its newest event or its announcement, a user's their newest event: users who are
    known by features alone stay. Time is that of the newest event in memory, so the same events expire the same.
    """
    if not (events.expire_items_days or events.expire_users_days) or not memory.n_events:
        return Expired()
    log = memory.log.view(shared_tail=True)
    now = float(log.time.max())
    items, users = [], []
    if events.expire_items_days:
        there = log.item >= 0
        newest = np.where(np.isfinite(memory.announced), memory.announced, -np.inf)
        np.maximum.at(newest, log.item[there], log.time[there])
        items = _idle(memory.items.ids, newest, now - events.expire_items_days * DAY_S)
    if events.expire_users_days:
        tails = log.tails(np.arange(len(memory.users)))
        newest = np.where(tails >= 0, log.time[tails], np.inf)
        users = _idle(memory.users.ids, newest, now - events.expire_users_days * DAY_S)
    for one in items:
        memory.forget_item(one)
    for one in users:
        memory.forget_user(one)
    return Expired(len(items), len(users))


def _idle(ids: list[str | None], newest: NDArray[np.float64], since: float) -> list[str]:
    """Ids whose newest sign of life is older; blank rows have none."""
    return [one for row in np.flatnonzero(newest < since).tolist() if (one := ids[row]) is not None]
