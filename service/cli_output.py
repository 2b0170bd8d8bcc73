"""How results look at the command line: a table for people, or JSON for programs. Standard output has nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from service.doctor import Check

OUTCOME_STYLES = {"PASS": "green", "WARN": "yellow", "FAIL": "bold red"}
SHOWN_VALUES = 6

ITEM_PARTS = {
    "id": "what was learned of it alone",
    "vintage": "whether it came when what this user chose last did",
    "cooccurrence": "how often the same users choose it",
    "factors": "what this user wants, in few dimensions",
    "bias": "its bias",
    "popularity": "how popular and old it is",
    "taste": "how this user weighs that",
    "base": "the user's mean value",
    "rest": "all else",
}
USER_PARTS = {
    "anyone": "as for anyone unknown",
    "mean": "the user's mean value beyond anyone's",
    "features": "the user's features",
    "earlier": "all they did before",
    "rest": "all else",
}


def print_json(value: Any) -> None:
    """One line of JSON; NaN becomes null and NumPy scalars numbers."""
    typer.echo(msgspec.json.encode(value, enc_hook=lambda scalar: scalar.item()).decode())


def print_mapping(mapping: Mapping[str, Any], *, as_json: bool) -> None:
    """One row a key; inner mappings as dotted keys."""
    if as_json:
        print_json(mapping)
        return
    table = _table("", "")
    for key, value in _flat(mapping):
        table.add_row(Text(key, style="bold"), _cell(value))
    table.show_header = False
    Console().print(table)


def print_rows(rows: Sequence[Mapping[str, Any]], *, as_json: bool, empty: str) -> None:
    """One row a mapping; the first one's keys are the columns."""
    if as_json:
        print_json(rows)
    elif not rows:
        typer.echo(empty)
    else:
        table = _table(*rows[0])
        for row in rows:
            table.add_row(*(_cell(row.get(column)) for column in rows[0]))
        Console().print(table)


def print_ranking(ranking: Sequence[Mapping[str, Any]], *, as_json: bool) -> None:
    """`item_id`, `score`, `attributes`, best first."""
    if as_json:
        print_json(ranking)
    elif not ranking:
        typer.echo("There is nothing to list.")
    else:
        table = _table("", "item", "score", "attributes")
        for rank, entry in enumerate(ranking, 1):
            table.add_row(str(rank), Text(entry["item_id"]), f"{entry['score']:.4f}", Text(_attributes(entry)))
        Console().print(table)


def print_explanation(found: Mapping[str, Any], *, as_json: bool) -> None:
    """The score of a pair taken apart twice; each table adds up to it. `docs/explain.md` says what each line is."""
    if as_json:
        print_json(found)
        return
    item, user = found["item"], found["user"]
    pair = f"{found['item_id']} for {found['user_id']}, by version {found['version']}"
    title = _attributes(found)
    said = _table("by what the item has", "score")
    for name, score in item["modalities"].items():
        said.add_row(Text(f"its {name}"), _signed(score))
    for name, words in ITEM_PARTS.items():
        if name in item:
            said.add_row(words, _signed(item[name]))
    did = _table("by what the user did", "", "", "", "score")
    for name, words in USER_PARTS.items():
        if name in user:
            did.add_row(words, "", "", "", _signed(user[name]))
    for event in user["history"]:
        when = datetime.fromtimestamp(event["time"], UTC)
        what = " ".join(_plain(event[name]) for name in ("action", "value") if event[name] is not None)
        did.add_row(Text(event["item_id"]), Text(_attributes(event)), Text(what), _plain(when), _signed(event["score"]))
    console = Console()
    console.print(Text(pair + (f" ({title})" if title else "")))
    for table in (said, did):
        table.add_section()
        table.add_row("score", *[""] * (len(table.columns) - 2), _signed(found["score"]), style="bold")
        console.print()
        console.print(table)


def print_vectors(vectors: Sequence[Mapping[str, Any]], *, as_json: bool) -> None:
    """`id`, `version`, `found`, `vector`; a table shows a vector's norm and its first values."""
    if as_json:
        print_json(vectors)
        return
    table = _table("id", "version", "norm", "vector")
    for entry in vectors:
        if not entry["found"]:
            table.add_row(Text(entry["id"]), str(entry["version"]), "", Text("not there", style="red"))
            continue
        values = entry["vector"]
        norm = sum(value * value for value in values) ** 0.5
        first = " ".join(f"{value:+.3f}" for value in values[:SHOWN_VALUES])
        more = f" … {len(values)} values" if len(values) > SHOWN_VALUES else ""
        table.add_row(Text(entry["id"]), str(entry["version"]), f"{norm:.3f}", Text(first + more))
    Console().print(table)


def print_checks(checks: Sequence[Check], *, as_json: bool) -> None:
    """One row a check, with what to do where it did not pass."""
    if as_json:
        print_json([{"name": c.name, "outcome": c.outcome, "detail": c.detail, "hint": c.hint} for c in checks])
        return
    table = _table("", "check", "")
    for check in checks:
        said = Text(check.detail)
        if check.hint and check.outcome != "PASS":
            said.append(f"\n→ {check.hint}", style="italic")
        table.add_row(Text(check.outcome, style=OUTCOME_STYLES[check.outcome]), Text(check.name), said)
    Console().print(table)


def _attributes(entry: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}: {_plain(value)}" for name, value in (entry["attributes"] or {}).items())


def _signed(score: float) -> str:
    return f"{score:+.4f}"


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _flat(mapping: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in mapping.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _cell(value: Any) -> Text:
    return Text(_plain(value))


def _plain(value: Any) -> str:
    match value:
        case None:
            return "–"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.6g}"
        case datetime():
            return value.astimezone(UTC).isoformat(timespec="seconds")
        case list() | tuple():
            return ", ".join(_plain(part) for part in value)
        case _:
            return str(value)
