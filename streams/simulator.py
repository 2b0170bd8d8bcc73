"""A simulated world of users and items whose true preferences are known, so that any run can be compared with the best.

    simulator = Simulator(World(seed=3))
    stream = simulator.run()                                   # columns: who, what, when, how, and which of it is noise
    simulator.oracle.scores("u7", t, ["i3", "i12"])            # the true utilities at that time

A user chooses among the announced items that they have not just met with probability proportional to exp(utility)
(the choice of the largest utility plus Gumbel noise; McFadden 1974), where

    utility(u, i, t) = taste · θ_u(t)ᵀ z_i  +  appeal_i(t) · 2^(−age_i(t) / fade)

`z_i` is told in part by the item's features, `θ_u` drifts. `streams.simulator_world` has the laws.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streams.simulator_world import Catalogue, Floats, Ints, Tastes, World

__all__ = ["Oracle", "Simulator", "Stream", "World", "item_id", "user_id"]

_BLOCK = 128
_TILE = 64
_PURCHASE_GAIN = 0.7
"""How much more often a better match (in its standard deviations) becomes a purchase instead of a view."""


def item_id(index: int) -> str:
    """The id, in events, of the item with this number."""
    return f"i{index}"


def user_id(index: int) -> str:
    """The id, in events, of the user with this number."""
    return f"u{index}"


@dataclass(frozen=True, slots=True, eq=False)
class Stream:
    """Interactions as columns of equal length N, in order of time."""

    number: Ints
    """Event numbers, from 0."""
    time: Floats
    """Event times, in seconds since 1970."""
    user: Ints
    item: Ints
    action: Ints
    """Index into `names`."""
    value: NDArray[np.float32]
    """Seconds of a view, price of a purchase; NaN where an action has none."""
    noise: NDArray[np.bool_]
    """True for the labelled noise: the item was not chosen but drawn at random."""
    names: tuple[str, ...]
    """Names of the actions."""

    def __len__(self) -> int:
        return len(self.number)

    @property
    def chosen(self) -> NDArray[np.bool_]:
        """True where the user wanted the item (noise is among them, as in life): all but skips."""
        skip = self.names.index("skip") if "skip" in self.names else -1
        return np.not_equal(self.action, skip)

    def first(self, count: int) -> Stream:
        """The first `count` events."""
        columns: Any = {name: getattr(self, name)[:count] for name in _COLUMNS}
        return replace(self, **columns)

    @staticmethod
    def concatenate(parts: Sequence[Stream]) -> Stream:
        """One stream of several; at least one."""
        columns: Any = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _COLUMNS}
        return replace(parts[0], **columns)


_COLUMNS = tuple(f.name for f in fields(Stream) if f.name != "names")


class Oracle:
    """The true utilities: what the best possible ranking knows, and no model is told."""

    def __init__(self, world: World, catalogue: Catalogue, tastes: Tastes) -> None:
        self._world, self._catalogue, self._tastes = world, catalogue, tastes

    def scores(self, user: str, time: float, items: Sequence[str]) -> Floats:
        """True utility of each item for the user at `time` (seconds since 1970), (N,); -inf where not yet announced.

        Raises `ValueError` for an id that is not of this world.
        """
        event = self._world.event_at(time)
        who = _index(user, "u", len(self._tastes))
        which = np.array([_index(i, "i", len(self._catalogue)) for i in items], dtype=np.int64)
        all_scores = self.utilities(event, np.array([who]))[0]
        known = np.full(len(self._catalogue), -np.inf)
        known[: len(all_scores)] = all_scores
        return np.asarray(known[which])

    def probabilities(self, user: str, time: float, items: Sequence[str]) -> Floats:
        """Probability that the user picks each of the items when offered exactly these, (N,); sums to 1."""
        scores = self.scores(user, time, items)
        weights = np.exp(scores - scores.max())
        return np.asarray(weights / weights.sum())

    def utilities(self, event: int, users: Ints) -> NDArray[np.float32]:
        """True utilities, (B, I), of all items announced by event number `event` for the users with these numbers."""
        return np.asarray(self.personal(event, users) + self._catalogue.appeal(event)[: self._world.items_at(event)])

    def personal(self, event: int, users: Ints) -> NDArray[np.float32]:
        """The part of `utilities` that differs between users, (B, I)."""
        latent_ID = self._catalogue.latent[: self._world.items_at(event)]
        taste_BD = (self._world.taste * self._tastes.at(event, users)).astype(np.float32)
        return np.asarray(taste_BD @ latent_ID.T)


class Simulator:
    """Simulates a world; each `blocks()` or `run()` begins at its first event and gives the same events again."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.catalogue = Catalogue(world)
        self.tastes = Tastes(world)
        self.oracle = Oracle(world, self.catalogue, self.tastes)
        self.actions: tuple[str, ...] = tuple(world.actions)

    def run(self) -> Stream:
        """All events of the world."""
        return Stream.concatenate([_empty(self.actions), *self.blocks()])

    def blocks(self) -> Iterator[Stream]:
        """The events in small blocks; within one, no user occurs twice and nothing drifts."""
        met = np.full((len(self.tastes), self.world.no_repeat), -1, dtype=np.int64)
        turns = np.zeros(len(self.tastes), dtype=np.int64)
        # The block's size comes from the first users, not from all: a longer world must cut its blocks alike.
        size = max(1, min(_BLOCK, self.world.users // 4))
        for block, first in enumerate(range(0, self.world.events, size)):
            whole = self._block(first, size, self.world.random("events", block), met)
            part = whole.first(self.world.events - first)
            if self.world.no_repeat:
                met[part.user, turns[part.user] % self.world.no_repeat] = part.item
                turns[part.user] += 1
            yield part

    def _block(self, first: int, size: int, rng: np.random.Generator, met: NDArray[np.int64]) -> Stream:
        world = self.world
        user = self._who(first, size, rng)
        personal_BI = self.oracle.personal(first, user)
        appeal_I = self.catalogue.appeal(first)[: personal_BI.shape[1]]
        noise = rng.random(size) < world.noise
        action, skipped = self._roles(size, rng)
        utility_BI = personal_BI + appeal_I
        utility_BI[skipped] = appeal_I - 0.5 * personal_BI[skipped]
        utility_BI[noise] = 0.0
        row, slot = np.nonzero(met[user] >= 0)
        utility_BI[row, met[user[row], slot]] = -np.inf
        item = _draw(utility_BI, rng.random(size))
        match = personal_BI[np.arange(size), item].astype(np.float64) / max(world.taste, 1e-9)
        number = np.arange(first, first + size)
        action = self._upgrade(action, match, noise | skipped, rng)
        return Stream(
            number=number,
            time=world.start + number / world.rate,
            user=user,
            item=item,
            action=action,
            value=self._value(action, match, rng),
            noise=noise,
            names=self.actions,
        )

    def _who(self, first: int, size: int, rng: np.random.Generator) -> Ints:
        """Different users by activity (Efraimidis and Spirakis 2006), those who just joined always among them."""
        world, n = self.world, self.world.users_at(first)
        key = self.tastes.log_activity[:n] + rng.gumbel(size=n)
        key[world.users_at(max(first - size, 0)) :] = np.inf
        chosen = np.argpartition(-key, size - 1)[:size] if size < n else np.arange(n)
        return np.asarray(rng.permutation(np.sort(chosen)))

    def _roles(self, size: int, rng: np.random.Generator) -> tuple[Ints, NDArray[np.bool_]]:
        """An action for each event, by their shares, and which of them are skips."""
        share = np.array(list(self.world.actions.values()), dtype=np.float64)
        action = np.searchsorted(np.cumsum(share / share.sum()), rng.random(size), side="right")
        action = np.minimum(action, len(share) - 1)
        is_skip = np.array([name == "skip" for name in self.actions])
        return action, is_skip[action]

    def _upgrade(self, action: Ints, match: Floats, fixed: NDArray[np.bool_], rng: np.random.Generator) -> Ints:
        """Passes the purchases on to the better matches: actions of chosen items are dealt by match plus noise."""
        if "purchase" not in self.actions:
            return action
        free = np.flatnonzero(~fixed)
        worth = np.array([2 if a == "purchase" else 1 if a == "click" else 0 for a in self.actions])
        ranked = free[np.argsort(_PURCHASE_GAIN * match[free] + rng.gumbel(size=len(match))[free], kind="stable")]
        dealt = action.copy()
        dealt[ranked] = action[free][np.argsort(worth[action[free]], kind="stable")]
        return dealt

    def _value(self, action: Ints, match: Floats, rng: np.random.Generator) -> NDArray[np.float32]:
        spread = np.exp(0.5 * rng.standard_normal(len(action)))
        value = np.full(len(action), np.nan)
        for k, name in enumerate(self.actions):
            at = action == k
            if name == "view":
                value[at] = 20 * np.exp(0.4 * match[at]) * spread[at]
            elif name == "purchase":
                value[at] = 30 * spread[at]
        return np.round(value, 2).astype(np.float32)


def _draw(utility_BI: NDArray[np.float32], uniform_B: Floats) -> Ints:
    """One item a row with probability proportional to exp(utility), by inversion: one random number each.

    In two steps, a tile of items and then the item, which saves the running sum over all of them.
    """
    top = utility_BI.max(axis=1, keepdims=True)
    if not np.isfinite(top).all():
        raise ValueError("A user has met every item there is; give the world more items or a smaller `no_repeat`.")
    weight_BI = np.exp(np.subtract(utility_BI, top, out=utility_BI), out=utility_BI)
    rows, count = np.arange(len(uniform_B)), weight_BI.shape[1]
    by_tile = np.add.reduceat(weight_BI, np.arange(0, count, _TILE), axis=1)
    tile, rest = _invert(by_tile, uniform_B * by_tile.sum(axis=1, dtype=np.float64))
    item = tile[:, None] * _TILE + np.arange(_TILE)
    inside = np.where(item < count, weight_BI[rows[:, None], np.minimum(item, count - 1)], 0)
    return np.asarray(tile * _TILE + _invert(inside, rest)[0])


def _invert(weight_BN: NDArray[np.float32], target_B: Floats) -> tuple[Ints, Floats]:
    """The column at which each row's running sum exceeds the target, and how far into that column the target is."""
    mass_BN = np.cumsum(weight_BN, axis=1, dtype=np.float64)
    within = np.minimum(target_B, np.nextafter(mass_BN[:, -1], 0))
    column = np.count_nonzero(mass_BN <= within[:, None], axis=1)
    before = np.take_along_axis(np.pad(mass_BN, ((0, 0), (1, 0))), column[:, None], axis=1)[:, 0]
    return column, within - before


def _empty(names: tuple[str, ...]) -> Stream:
    whole, real = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float64)
    return Stream(whole, real, whole, whole, whole, real.astype(np.float32), real.astype(np.bool_), names)


def _index(name: str, kind: str, count: int) -> int:
    digits = name.removeprefix(kind)
    if digits == name or not digits.isdecimal() or int(digits) >= count:
        raise ValueError(f"{name!r} is not of this world; ids are {kind}0 to {kind}{count - 1}.")
    return int(digits)
