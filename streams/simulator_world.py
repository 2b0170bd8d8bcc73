"""The laws of the simulated world, and what they plant: items, their features and names, tastes and how they drift.

Everything is drawn so that a longer world begins like a shorter one of the same seed: each purpose has its own random
stream, drawn item by item (or user by user) in order of arrival.

Shape suffixes: B events of a block, I items, U users, D latent dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from streams.simulator_names import CATEGORIES, title

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

FEATURE_DIMS: dict[str, int] = {"image": 32, "text": 24, "audio": 16}
"""Item modalities and the length of their vectors."""
PROFILE_DIM = 12
"""Length of the one user feature, `profile`."""
KNOT_EVENTS = 2_000
"""Tastes are drawn anew this often, and interpolated between."""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """The laws of a simulated world; the same laws and seed give the same events, and more `events` only go on."""

    seed: int = 1
    """Everything random follows from it."""
    users: int = 800
    """Users there are when the stream begins."""
    items: int = 1_000
    """Items announced before the first event."""
    events: int = 60_000
    """Interactions to simulate."""
    start: float = 1_735_689_600.0
    """Time of the first event, in seconds since 1970 (the start of 2025)."""
    rate: float = 10.0
    """Events per second of event time; steady."""
    latent_dim: int = 6
    """Dimensions of tastes and items."""
    share_explained: float = 0.75
    """Share of an item's latent variance that its features can tell; the rest only choices reveal."""
    feature_noise: float = 0.15
    """Standard deviation of the noise on features whose signal is about 0.6."""
    taste: float = 3.4
    """How much users differ: the standard deviation, over items, of one user's personal utility."""
    drift: float = 0.1
    """Share of a taste that is renewed in 10,000 events; 0: tastes stay."""
    appeal: float = 1.6
    """Standard deviation of items' appeal to everyone, around a mean of 1."""
    fade: float = 10_000.0
    """Age, in events, at which an item's appeal is half of what it was at its announcement."""
    appeal_changes: tuple[int, ...] = ()
    """Event numbers at which every item's appeal is drawn anew, at once."""
    regime_switches: tuple[int, ...] = ()
    """Event numbers at which all tastes turn from regime A to B, back to A, and so on."""
    noise: float = 0.02
    """Share of events that are labelled noise: an item at random, whatever the taste."""
    arrival_rate: float = 10.0
    """Items announced per 1,000 events."""
    user_arrival_rate: float = 6.0
    """Users who join per 1,000 events."""
    activity: float = 0.8
    """Standard deviation of the logarithm of users' activity; 0: all equally active."""
    no_repeat: int = 400
    """A user never meets an item again within this many of their own events."""
    missing: float = 0.1
    """Share of items that lack one of their modalities."""
    profiles: float = 0.5
    """Share of users with features."""
    actions: Mapping[str, float] = field(
        default_factory=lambda: {"view": 0.6, "click": 0.25, "purchase": 0.07, "skip": 0.08}
    )
    """How often each action occurs. `skip` is an item shown and not wanted; the others are choices."""

    def __post_init__(self) -> None:
        if min(self.users, self.items) < 1 or self.events < 0:
            raise ValueError("A world needs at least one user and one item; raise `users` and `items` to 1 or more.")
        if not 0 <= self.share_explained <= 1 or not 0 <= self.noise <= 1 or not 0 <= self.drift < 1:
            raise ValueError("`share_explained`, `noise` and `drift` are shares; set them between 0 and 1.")
        if self.rate <= 0 or self.fade <= 0 or min(self.arrival_rate, self.user_arrival_rate) < 0:
            raise ValueError("`rate` and `fade` are above 0 and arrival rates not below it; correct the world's laws.")
        if not self.actions or min(self.actions.values()) < 0 or sum(self.actions.values()) <= 0:
            raise ValueError("`actions` needs shares of at least one action; give for example {'view': 1.0}.")

    def items_at(self, event: int) -> int:
        """Number of items announced before event number `event` happens."""
        return self.items + int(event * self.arrival_rate / 1_000)

    def users_at(self, event: int) -> int:
        """Number of users who have joined before event number `event` happens."""
        return self.users + int(event * self.user_arrival_rate / 1_000)

    def time_of(self, event: int) -> float:
        """Event time, in seconds since 1970, of event number `event`."""
        return self.start + event / self.rate

    def event_at(self, time: float) -> int:
        """Number of the event that happens at `time` (seconds since 1970), or the one last before it."""
        return int(np.floor((time - self.start) * self.rate + 1e-3))

    def random(self, purpose: str, *part: int) -> np.random.Generator:
        """The random stream of one purpose (and part of it), independent of all others."""
        return np.random.default_rng([self.seed, *purpose.encode(), *part])


class Catalogue:
    """All items of a world, in order of announcement: latents, features, appeal, births and names."""

    def __init__(self, world: World) -> None:
        self.world = world
        n, D = world.items_at(world.events), world.latent_dim
        draw = world.random("items").standard_normal((n, 2 * D))
        pick = world.random("categories").integers(0, len(CATEGORIES), size=n)
        centres = world.random("centres").standard_normal((len(CATEGORIES), D))
        self.explained: Floats = np.sqrt(0.6) * centres[pick] + np.sqrt(0.4) * draw[:, :D]
        s = world.share_explained
        latent = np.sqrt(s) * self.explained + np.sqrt(1 - s) * draw[:, D:]
        self.latent: NDArray[np.float32] = latent.astype(np.float32)
        self.births: Floats = self._births(n)
        self.features: dict[str, NDArray[np.float32]] = self._features(n)
        self.absent: dict[str, NDArray[np.bool_]] = self._absent(n)
        self.categories: list[str] = [CATEGORIES[k] for k in pick.tolist()]
        self.titles: list[str] = self._titles(pick)
        self._appeal = [
            1 + world.appeal * world.random("appeal", k).standard_normal(n)
            for k in range(len(world.appeal_changes) + 1)
        ]

    def __len__(self) -> int:
        return len(self.births)

    def appeal(self, event: int) -> NDArray[np.float32]:
        """Appeal × fade(age) of every item at event number `event`, (I,); of items not yet announced too."""
        era = int(np.searchsorted(np.asarray(sorted(self.world.appeal_changes)), event, side="right"))
        age = np.maximum(event - self.births, 0)
        return np.asarray(self._appeal[era] * np.exp2(-age / self.world.fade), dtype=np.float32)

    def _births(self, n: int) -> Floats:
        """Event number of each announcement; the first items are of all ages, as if the world had long gone on."""
        first, rate = self.world.items, self.world.arrival_rate
        aged = -self.world.random("ages").random(first) * 4 * self.world.fade
        later = np.arange(1, n - first + 1) * (1_000 / rate) if n > first else np.empty(0)
        return np.concatenate([aged, np.ceil(later - 1e-9)])

    def _features(self, n: int) -> dict[str, NDArray[np.float32]]:
        """Each modality tells of overlapping thirds of the latent dimensions, bent by a tanh, with noise."""
        D, features = self.world.latent_dim, {}
        for k, (name, dim) in enumerate(FEATURE_DIMS.items()):
            rng = self.world.random("features", k)
            seen = (np.arange(-(-D // 2)) + k * D // 3) % D
            mix = rng.standard_normal((len(seen), dim)) / np.sqrt(len(seen))
            noise = self.world.feature_noise * rng.standard_normal((n, dim))
            features[name] = (np.tanh(self.explained[:, seen] @ mix) + noise).astype(np.float32)
        return features

    def _absent(self, n: int) -> dict[str, NDArray[np.bool_]]:
        draw = self.world.random("missing").random((n, 2))
        which = np.where(draw[:, 0] < self.world.missing, (draw[:, 1] * len(FEATURE_DIMS)).astype(int), -1)
        return {name: which == k for k, name in enumerate(FEATURE_DIMS)}

    def _titles(self, category: Ints) -> list[str]:
        draw = self.world.random("titles").integers(0, 2**16, size=(len(category), 3))
        return [title(cat, three) for cat, three in zip(category.tolist(), draw.tolist(), strict=True)]


class Tastes:
    """What every user wants, at any time: unit vectors that drift (AR(1) at knots, straight between them)."""

    def __init__(self, world: World) -> None:
        self.world = world
        n, D = world.users_at(world.events), world.latent_dim
        keep = (1 - world.drift) ** (KNOT_EVENTS / 10_000)
        value = world.random("tastes", 0).standard_normal((n, D))
        knots = [value]
        for k in range(1, world.events // KNOT_EVENTS + 2):
            fresh = world.random("tastes", k).standard_normal((n, D)) if world.drift else value
            value = keep * value + np.sqrt(1 - keep * keep) * fresh
            knots.append(value)
        self._knots = np.stack(knots)
        turn, _ = np.linalg.qr(world.random("regime").standard_normal((D, D)))
        self._turn: Floats = turn
        draw = world.random("profiles").random(n)
        self.has_profile: NDArray[np.bool_] = draw < world.profiles
        self.profiles: NDArray[np.float32] = self._profiles(n)
        self.log_activity: Floats = world.activity * world.random("activity").standard_normal(n)

    def __len__(self) -> int:
        return int(self._knots.shape[1])

    def at(self, event: int, users: Ints) -> Floats:
        """Tastes of the users at event number `event`, unit vectors of (B, D)."""
        place = min(max(event / KNOT_EVENTS, 0.0), len(self._knots) - 1.0)
        k = min(int(place), len(self._knots) - 2)
        value = (1 - (place - k)) * self._knots[k, users] + (place - k) * self._knots[k + 1, users]
        value = value / np.linalg.norm(value, axis=1, keepdims=True)
        turned = sum(event >= switch for switch in self.world.regime_switches) % 2
        return np.asarray(value @ self._turn if turned else value)

    def _profiles(self, n: int) -> NDArray[np.float32]:
        """The taste at the start of the world, mixed and noisy."""
        rng = self.world.random("profile")
        mix = rng.standard_normal((self.world.latent_dim, PROFILE_DIM)) / np.sqrt(self.world.latent_dim)
        noise = 0.5 * rng.standard_normal((n, PROFILE_DIM))
        return np.asarray(self._knots[0] @ mix + noise, dtype=np.float32)
