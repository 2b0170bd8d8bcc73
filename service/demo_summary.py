"""The demo's closing summary: speed, freshness, quality beside the oracle's, and lookups a person can read."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
from rich.console import Console
from rich.table import Table

from service.demo_probes import KINDS, Freshness, ProbeKind
from service.demo_state import TOPICS
from service.demo_view import NDCG, RECALL, milliseconds
from service.durable import replace_file
from service.phase_log import PhaseLine
from streams.simulator import Simulator, Stream, item_id, user_id
from streams.simulator_world import Catalogue
from streams.simulator_yardsticks import Ranks, measure

_SAMPLE = 5
"""The yardsticks look at one block of events in so many: as true on average, and soon done."""
ORACLE = "best possible"
_KIND_NAMES: dict[ProbeKind, str] = {
    "item": "new item",
    "new_user": "new user",
    "user": "returning user",
}


class FreshnessRow(msgspec.Struct, kw_only=True):
    """Freshness of one kind of event, in seconds; infinite where events were never served."""

    kind: ProbeKind
    count: int
    p50: float
    p99: float
    learning: int
    """How many were sent while a phase was being learned or published."""


class QualityRow(msgspec.Struct, kw_only=True):
    """How well one method foresaw the same events."""

    name: str
    recall: float
    ndcg: float
    cold_recall: float
    """Recall@20 of items nobody had chosen before."""


class Lookup(msgspec.Struct, kw_only=True):
    """One question to the daemon and its answer, in words."""

    title: str
    rows: list[str]


class Report(msgspec.Struct, kw_only=True):
    """The whole summary."""

    seconds: float
    events: int
    """Interactions learned in this demo."""
    events_per_second: float
    """From when the first phase closed to the last publication."""
    phases: int
    promoted: int
    freshness: list[FreshnessRow]
    set_aside: int
    missed: int
    quality: list[QualityRow]
    measured: tuple[int, int]
    """The interactions that quality speaks of: first number, and the one after the last."""
    lookups: list[Lookup] = []


class Answers(Protocol):
    """What is asked of the daemon; `service.http_client.DaemonClient` has it."""

    def recommend(self, user_id: str, k: int, include_seen: bool) -> list[dict[str, Any]]: ...

    def similar(self, item_id: str, k: int) -> list[dict[str, Any]]: ...


def report(
    *,
    simulator: Simulator,
    stream: Stream,
    lines: Sequence[PhaseLine],
    first: int,
    freshness: Freshness,
    seconds: float,
) -> Report:
    """The summary without lookups; `lines` from `first` on are of this demo, the others of earlier ones."""
    ours = lines[first:]
    events = sum(line.events for line in ours)
    ends = [line.published_at or line.closed_at for line in ours]
    # The first phase's records had waited for the daemon to start.
    span = max(ends) - min(line.opened_at for line in ours) if ours else math.nan
    quality, measured = _quality(simulator, stream, lines)
    return Report(
        seconds=seconds,
        events=events,
        events_per_second=events / span if span else math.nan,
        phases=len(ours),
        promoted=sum(line.decision == "promoted" for line in ours),
        freshness=[_freshness_row(kind, freshness, ours) for kind in KINDS],
        set_aside=freshness.set_aside,
        missed=len(freshness.missed),
        quality=quality,
        measured=measured,
    )


def busy(lines: Sequence[PhaseLine]) -> list[tuple[float, float]]:
    """When phases were being learned or published, as spans of epoch seconds."""
    return [(line.closed_at, line.published_at or line.closed_at + sum(line.stages.values())) for line in lines]


def _freshness_row(kind: ProbeKind, found: Freshness, lines: Sequence[PhaseLine]) -> FreshnessRow:
    p50, p99 = (found.percentile(share, kind) for share in (50, 99))
    return FreshnessRow(
        kind=kind, count=len(found.seconds(kind)), p50=p50, p99=p99, learning=found.during(busy(lines), kind)
    )


def _quality(
    simulator: Simulator, stream: Stream, lines: Sequence[PhaseLine]
) -> tuple[list[QualityRow], tuple[int, int]]:
    """Headwater's prequential figures, and the yardsticks' on the same events.

    An interaction's offset is its event's number, since the demo's topic has one partition. The first phase has no
    parent that could have ranked its events, so what counts begins with the second.
    """
    judged = [line for line in lines if line.metrics.get(NDCG) is not None]
    if not judged:
        return [], (0, 0)
    begin, end = _offset(judged[0].start), _offset(judged[-1].end)
    ranks = measure(simulator, stream.first(end), first=begin, every=_SAMPLE, linear=False)
    decayed = ranks.best_decayed()
    names = {
        "popularity": "popularity",
        decayed: f"decayed popularity ({decayed.split('_')[1]})",
        "content": "content of last items",
        "oracle": ORACLE,
    }
    ours = QualityRow(
        name="Headwater",
        recall=_mean(judged, RECALL, weight="ranked"),
        ndcg=_mean(judged, NDCG, weight="ranked"),
        cold_recall=_mean(judged, COLD_RECALL, weight="cold_events"),
    )
    rows = [_quality_row(label, name, ranks) for name, label in names.items()]
    return [*rows[:-1], ours, rows[-1]], (begin, end)


COLD_RECALL = "cold_recall_at_20"
"""Name in `phases.jsonl` of recall@20 over items that nobody had chosen before."""


def _quality_row(label: str, name: str, ranks: Ranks) -> QualityRow:
    cold = ranks.only(ranks.earlier == 0)
    return QualityRow(name=label, recall=ranks.recall(name), ndcg=ranks.ndcg(name), cold_recall=cold.recall(name))


def _mean(lines: Sequence[PhaseLine], name: str, *, weight: str) -> float:
    """Mean of a figure over the phases that have it, weighted by the number of events it speaks of."""
    pairs = [(line.metrics.get(weight) or 0.0, line.metrics.get(name)) for line in lines]
    known = [(count, value) for count, value in pairs if value is not None]
    total = sum(count for count, _ in known)
    return sum(count * value for count, value in known) / total if total else math.nan


def _offset(offsets: Mapping[str, Mapping[int, int]]) -> int:
    return sum(offsets.get(TOPICS["interactions"], {}).values())


def read_lookups(answers: Answers, simulator: Simulator, stream: Stream) -> list[Lookup]:
    """Three lookups: for a user whose taste is known, of an item, and of the item announced last."""
    catalogue, chosen = simulator.catalogue, stream.chosen
    user = int(np.bincount(stream.user[chosen]).argmax())
    item = int(np.bincount(stream.item[chosen]).argmax())
    newest = simulator.world.items_at(int(stream.number[-1])) - 1
    return [
        _for_user(answers, simulator, stream, user),
        _like_item(answers, catalogue, item, f"Similar to {_describe(catalogue, item)}, the item chosen most often"),
        _like_item(
            answers,
            catalogue,
            newest,
            f"Similar to {_describe(catalogue, newest)}, announced last, known by content alone",
        ),
    ]


def _for_user(answers: Answers, simulator: Simulator, stream: Stream, user: int) -> Lookup:
    catalogue, number = simulator.catalogue, int(stream.number[-1])
    theirs = stream.item[(stream.user == user) & stream.chosen].tolist()
    categories = Counter(catalogue.categories[item] for item in theirs[-20:])
    taste = ", ".join(f"{count} × {name}" for name, count in categories.most_common(4))
    rows = [
        f"chose last: {'; '.join(_describe(catalogue, item) for item in theirs[-3:])}",
        f"among the last 20: {taste}",
    ]
    utility = simulator.oracle.utilities(number, np.array([user]))[0]
    unmet = np.delete(utility, np.unique(stream.item[stream.user == user]))
    for place, answer in enumerate(answers.recommend(user_id(user), 5, False), start=1):
        item = int(answer["item_id"].removeprefix("i"))
        true = 1 + int((unmet > utility[item]).sum())
        rows.append(f"{place}. {_describe(catalogue, item)}: truly this user's number {true} of {len(unmet):,}")
    return Lookup(title=f"Recommended for {user_id(user)}, who chose {len(theirs)} items", rows=rows)


def _like_item(answers: Answers, catalogue: Catalogue, item: int, title: str) -> Lookup:
    found = [int(answer["item_id"].removeprefix("i")) for answer in answers.similar(item_id(item), 5)]
    return Lookup(
        title=title, rows=[f"{place}. {_describe(catalogue, one)}" for place, one in enumerate(found, start=1)]
    )


def _describe(catalogue: Catalogue, item: int) -> str:
    return f"{catalogue.titles[item]} ({catalogue.categories[item]})"


def write_report(path: Path, result: Report) -> None:
    """The summary as JSON; what was not measured is null."""
    replace_file(path, msgspec.json.format(msgspec.json.encode(result)))


def print_report(console: Console, result: Report) -> None:
    """The summary for a person."""

    def say(text: str = "") -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    say(
        f"\n{result.events:,} events learned in {result.phases} phases, {result.promoted} versions promoted,"
        f" in {result.seconds:.0f} s: {result.events_per_second:,.0f} events/s"
    )
    say("\nFrom an event's sending to its being served by Redis, measured from outside during a constant stream:")
    table = _table("", "p50", "p99", "events", "while a phase was learned")
    for row in result.freshness:
        table.add_row(
            _KIND_NAMES[row.kind], milliseconds(row.p50), milliseconds(row.p99), str(row.count), str(row.learning)
        )
    console.print(table)
    if result.set_aside or result.missed:
        aside = f"{result.set_aside} returning users set aside, whose version changed meanwhile"
        say(f"({aside}; {result.missed} never served)")
    begin, end = result.measured
    say(f"\nForeseeing what users choose next, each event before it is learned (events {begin:,} to {end:,}):")
    table = _table("", "recall@20", "NDCG@20", "of the best", "cold recall@20")
    best = next((row.ndcg for row in result.quality if row.name == ORACLE), math.nan)
    for row_ in result.quality:
        table.add_row(
            *(row_.name, _figure(row_.recall), _figure(row_.ndcg), _share(row_.ndcg / best), _figure(row_.cold_recall))
        )
    console.print(table)
    for lookup in result.lookups:
        say(f"\n{lookup.title}:")
        for text in lookup.rows:
            say(f"  {text}")


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for at, column in enumerate(columns):
        table.add_column(column, justify="right" if at else "left", no_wrap=True)
    return table


def _figure(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"


def _share(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.0%}"
