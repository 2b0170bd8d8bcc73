"""Every interaction ever learned or to be learned, in learning order, as columns; and the history before any of them.

Each event knows its user's previous event and the user's last event of a strictly earlier time. So the history *as of*
an event is a walk along these links, for many events at once, and neither the event itself nor anything of the same
time (the rest of its basket) is in it.

Shape suffixes: B events or users, L places of a history, E those of an array that hold a position.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.growing import GrowingArray

Ints = NDArray[np.int64]

ROW = np.dtype([("user", "<i4"), ("item", "<i4"), ("action", "<i2"), ("value", "<f4"), ("time", "<f8")])
"""One event on disk: 22 bytes, little-endian; user and item are vocabulary rows, -1 where forgotten."""

VALUE_UNIT = 2.0**-16
"""Values are summed as whole multiples of this, so that the sum does not depend on how events were grouped."""
VALUE_LIMIT = 2.0**30

LEAP = 16
"""So many events of a user are gone back at once where a long history is looked up."""


@dataclass(frozen=True)
class LogView:
    """The log as it was at some moment: shared columns (n,), and a copy of each user's last event.

    What is appended later does not show; what is forgotten later does, as -1 in `user` and `item`.
    """

    user: NDArray[np.int32]
    item: NDArray[np.int32]
    action: NDArray[np.int16]
    weight: NDArray[np.float32]
    value: NDArray[np.float32]
    time: NDArray[np.float64]
    previous: Ints
    """The same user's previous event, -1 for none."""
    leap: Ints
    """The same user's event that is `LEAP` events back, -1 for none."""
    before: Ints
    """The same user's last event of a strictly earlier time, -1 for none."""
    count: NDArray[np.int32]
    """How many events the user has up to and including this one."""
    valued: NDArray[np.int32]
    """How many of these have a value."""
    value_sum: Ints
    """The sum of these values in `VALUE_UNIT`s."""
    tail: Ints
    """Each user's last event, -1 for none; (users,)."""

    def __len__(self) -> int:
        return len(self.user)

    @cached_property
    def _sorted_times(self) -> NDArray[np.float64]:
        return np.sort(self.time, kind="stable")  # in order but for late ones, which this is quick about

    def position_at(self, time_B: NDArray[np.float64]) -> Ints:
        """How many events are of earlier times than these, in whatever order they came."""
        return np.searchsorted(self._sorted_times, time_B).astype(np.int64)

    def tails(self, users: Ints) -> Ints:
        """Last event of each user row, -1 for none and for rows that came later."""
        known = (users >= 0) & (users < len(self.tail))
        return np.where(known, self.tail[np.where(known, users, 0)], -1) if len(self.tail) else np.full(len(users), -1)

    def histories(self, start_B: Ints, length: int) -> Ints:
        """Positions of the last events from `start_B` back, newest first; (B, L), -1 where there is none. L is how many
        the longest history has, at most `length`."""
        count_B = np.minimum(Places(start_B).of(self.count, 0), length).astype(np.int64)
        strides_B = -(-count_B // LEAP)
        # in strides: walks of `LEAP` steps side by side, as many as each history is long
        users, strides = len(start_B), int(strides_B.max(initial=0))
        history_BSL = np.full((users, strides, LEAP), -1, np.int64)
        order_B = np.argsort(-strides_B, kind="stable")
        at = start_B[order_B]
        for stride in range(strides):
            longer_B = order_B[: np.count_nonzero(strides_B > stride)]
            at = _followed(self.leap, at[: len(longer_B)]) if stride else at[: len(longer_B)]
            history_BSL[longer_B, stride, 0] = at
        walk_W = np.flatnonzero(history_BSL[:, :, 0] >= 0)
        at, history_WL = history_BSL[:, :, 0].reshape(-1)[walk_W], history_BSL.reshape(-1, LEAP)
        for place in range(1, LEAP):
            at = _followed(self.previous, at)
            history_WL[walk_W, place] = at
        return np.ascontiguousarray(history_BSL.reshape(users, strides * LEAP)[:, : int(count_B.max(initial=0))])

    def items_before(self, position_B: Ints) -> list[Ints]:
        """Item rows that each event's user had at strictly earlier times, of all of their history, newest first; -1 of
        forgotten ones. Those of one user are views of one array."""
        latest: dict[int, int] = {}
        starts = list(zip(self.user[position_B].tolist(), self.before[position_B].tolist(), strict=True))
        for user, start in starts:
            latest[user] = max(start, latest.get(user, -1))
        chains = {user: -np.array(self.chain(start), np.int64) for user, start in latest.items()}
        items = {user: self.item[-chain].astype(np.int64) for user, chain in chains.items()}
        # a chain goes back in the log: what one event has behind it is the end of what a later one has
        return [items[user][np.searchsorted(chains[user], -start) if start >= 0 else len(items[user]) :]
                for user, start in starts]  # fmt: skip

    def chain(self, start: int) -> list[int]:
        """Positions from `start` back along the links of its user, -1 for none."""
        positions, at, previous = [], start, self.previous.data  # numbers of a memoryview are Python's, twice as fast
        while at >= 0:
            positions.append(at)
            at = previous[at]
        return positions

    def of_user(self, user: int) -> list[int]:
        """Positions of all of a user's events, newest first."""
        return self.chain(int(self.tail[user]) if user < len(self.tail) else -1)


def _followed(link: Ints, at: Ints) -> Ints:
    """Where these links lead from these positions, -1 from nowhere."""
    return Places(at).of(link, -1)


class Places:
    """Positions in the log, -1 for none, in an array of any shape: what columns hold there."""

    def __init__(self, at: Ints) -> None:
        self._shape = at.shape
        self.there_E = np.flatnonzero(at >= 0)
        """Where in the flattened array a position stands."""
        self.at_E = np.ascontiguousarray(at).reshape(-1)[self.there_E]

    def of(self, column: NDArray[Any], value: float, dtype: type[np.generic] | None = None) -> NDArray[Any]:
        """What this column holds, and this value where there is no position."""
        found = np.full(self._shape, value, column.dtype if dtype is None else dtype)
        found.reshape(-1)[self.there_E] = column[self.at_E]
        return found


class EventLog:
    """The growing columns behind every `LogView`."""

    def __init__(self) -> None:
        self._user = GrowingArray(np.int32)
        self._item = GrowingArray(np.int32)
        self._action = GrowingArray(np.int16)
        self._weight = GrowingArray(np.float32)
        self._value = GrowingArray(np.float32)
        self._time = GrowingArray(np.float64)
        self._previous = GrowingArray(np.int64)
        self._leap = GrowingArray(np.int64)
        self._before = GrowingArray(np.int64)
        self._count = GrowingArray(np.int32)
        self._valued = GrowingArray(np.int32)
        self._value_sum = GrowingArray(np.int64)
        self._tail = GrowingArray(np.int64)

    def __len__(self) -> int:
        return len(self._user)

    def view(self, *, shared_tail: bool = False) -> LogView:
        """The log as of now; `shared_tail` saves the copy of the tails where the view is used before the next
        append."""
        columns = {f.name: getattr(self, "_" + f.name).rows for f in fields(LogView)}
        if not shared_tail:
            columns["tail"] = columns["tail"].copy()
        return LogView(**columns)

    def add_user(self) -> None:
        """One more user row, of nobody who did anything yet."""
        self._tail.extend([-1])

    def append(
        self,
        *,
        user: Ints,
        item: Ints,
        action: Ints,
        weight: NDArray[np.float32],
        value: NDArray[np.float32],
        time: NDArray[np.float64],
    ) -> range:
        """Append events (k,) in learning order; returns their positions. A user of -1 was forgotten: no links."""
        start = len(self)
        self._user.extend(user)
        self._item.extend(item)
        self._action.extend(action)
        self._weight.extend(weight)
        self._value.extend(value)
        self._time.extend(time)
        for links in (self._previous, self._leap, self._before):
            links.grow(start + len(user), -1)
        for sums in (self._count, self._valued, self._value_sum):
            sums.grow(start + len(user), 0)
        if len(user):
            self._link(start, np.asarray(user, np.int64))
        return range(start, len(self))

    def _link(self, start: int, user: Ints) -> None:
        """Fill the derived columns of the events from `start` on, one group of events for each user."""
        order = np.argsort(user, kind="stable")
        order = order[user[order] >= 0]
        if len(order) == 0:
            return
        user, position = user[order], start + order
        first = np.ones(len(user), bool)
        first[1:] = user[1:] != user[:-1]
        tail = self._tail.rows
        shifted = np.concatenate(([-1], position[:-1]))
        previous = np.where(first, tail[user], shifted)
        self._previous.rows[position] = previous
        back = position
        for _ in range(LEAP):
            back = _followed(self._previous.rows, back)
            if not (back >= 0).any():
                break
        self._leap.rows[position] = back

        # strictly earlier: the previous event, or what was before it where it has the same time
        time, before = self._time.rows, self._before.rows
        had = previous >= 0
        previous_time = np.where(had, time[previous], -np.inf)
        same = had & (previous_time == time[position])
        late = had & (previous_time > time[position])
        before[position] = np.where(late, -1, previous)
        for at in position[same | late]:  # in order: each may rest on the one before it
            link = int(self._previous.rows[at])
            while link >= 0 and time[link] >= time[at]:
                link = int(before[link])  # all between are no earlier than that one
            before[at] = link

        # running sums of each user, in whole numbers
        group = np.cumsum(first) - 1
        value = self._value.rows[position].astype(np.float64)
        valued = np.isfinite(value)
        units = np.rint(np.where(valued, np.clip(value, -VALUE_LIMIT, VALUE_LIMIT), 0.0) / VALUE_UNIT).astype(np.int64)
        base = np.where(had[first], previous[first], -1)
        for column, step in ((self._count, 1), (self._valued, valued.astype(np.int64)), (self._value_sum, units)):
            rows = column.rows
            running = np.cumsum(np.broadcast_to(np.asarray(step, np.int64), position.shape))
            opening = running[first] - np.broadcast_to(np.asarray(step, np.int64), position.shape)[first]
            carried = np.where(base >= 0, rows[base], 0)
            rows[position] = running - opening[group] + carried[group]
        last = np.ones(len(user), bool)
        last[:-1] = first[1:]
        tail[user[last]] = position[last]

    def silence(self, start: int, stop: int) -> None:
        """Events [start, stop) stay in histories but are examples of nothing: their weight becomes 0."""
        self._weight.rows[start:stop] = 0.0

    def forget_user(self, user: int) -> None:
        """Blank a user's events."""
        positions = self.view(shared_tail=True).of_user(user)
        self._user.rows[positions] = -1
        self._item.rows[positions] = -1
        self._value.rows[positions] = np.nan
        self._weight.rows[positions] = 0.0
        for links in (self._previous, self._leap, self._before):
            links.rows[positions] = -1
        for sums in (self._count, self._valued, self._value_sum):
            sums.rows[positions] = 0
        if user < len(self._tail):
            self._tail.rows[user] = -1

    def forget_item(self, item: int) -> None:
        """Blank the item in every event of it; the events keep their place in their users' histories."""
        positions = np.flatnonzero(self._item.rows == item)
        self._item.rows[positions] = -1
        self._weight.rows[positions] = 0.0

    def packed(self, start: int, stop: int) -> bytes:
        """Events [start, stop) as `ROW`s."""
        rows = np.empty(stop - start, ROW)
        for name in ROW.names or ():
            rows[name] = getattr(self, "_" + name).rows[start:stop]
        return rows.tobytes()
