"""Who takes part in `benchmarks.quality`: plain methods, other libraries, Headwater, and Headwater without a part."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from benchmarks import ablations
from benchmarks.baselines import ContentMean, DecayedPopularity, ItemKnn, Means, Popularity
from benchmarks.contender import Contender
from benchmarks.outcome import Catalogue
from benchmarks.peers import ImplicitAls, LightFm, RiverBiasedMf
from service.config import Config

HALF_LIVES = (500, 2_000, 10_000)
ABLATED_SHARE = 0.25
"""Ranking event by event takes far longer than learning: of ablations, a sample is ranked and compared in pairs."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of the table."""

    name: str
    kind: str
    """`baseline`, `library`, `headwater` or `ablation`."""
    make: Callable[[Any], Any]
    """An entrant over a `Past`."""
    catalogue: Catalogue
    """`announced` for whoever can know an item before anybody touched it; the others would only have more to miss."""
    ranked_share: float = 1.0
    """How many of the events of items that somebody touched are ranked; 0: it is asked for values alone."""
    package: str = ""
    """What must be installed for it."""
    around: Callable[[], AbstractContextManager[None]] = nullcontext
    """What holds while it runs."""

    @property
    def missing(self) -> bool:
        """Whether its package is not installed."""
        return bool(self.package) and importlib.util.find_spec(self.package) is None


def entries(modalities: list[str], config: Config) -> Iterator[Entry]:
    """All that can take part in a stream whose items have these modalities."""
    yield _plain("popularity", Popularity)
    for half_life in HALF_LIVES:
        yield _plain(f"popularity-{half_life}", partial(DecayedPopularity, half_life=half_life))
    yield _plain("item-knn", ItemKnn)
    yield _plain("item-knn-fresh", partial(ItemKnn, refit=0))
    if modalities:
        yield replace(_plain("content-mean", ContentMean), catalogue="announced")
    yield replace(_plain("means", Means), ranked_share=0.0)
    yield _library("river", RiverBiasedMf, "river")
    yield _library("lightfm", LightFm, "lightfm")
    yield _library("implicit", ImplicitAls, "implicit")
    yield _ours("headwater", config)
    rating = config.model_copy(update={"model": replace(config.model, objective="rating")})
    yield replace(_ours("headwater-rating", rating), ranked_share=0.0)
    for part in (*ablations.PLAIN, *(modalities if len(modalities) > 1 else ())):
        if part == "content" and not modalities:
            continue
        yield Entry(
            name=f"without-{part}",
            kind="ablation",
            make=partial(ablations.without(part, modalities), config=config),
            catalogue="announced",
            ranked_share=ABLATED_SHARE,
            around=partial(ablations.taken_away, part),
        )


def _plain(name: str, make: Callable[[Any], Any]) -> Entry:
    return Entry(name=name, kind="baseline", make=make, catalogue="seen")


def _library(name: str, make: Callable[[Any], Any], package: str) -> Entry:
    return Entry(name=name, kind="library", make=make, catalogue="seen", package=package)


def _ours(name: str, config: Config) -> Entry:
    return Entry(name=name, kind="headwater", make=partial(Contender, config=config), catalogue="announced")
