"""Events from files: JSONL (also gzipped), CSV (also gzipped) and Parquet, one row at a time, and several by time.

A row with both ids, or with an action, is an interaction; with an item id alone an item; with a user id alone a user.
Rows are passed on as JSON under the names they have; whether they are usable, the decoder says.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple

import msgspec

from streams.event_values import MILLISECONDS_FROM, BadValueError, epoch_seconds, parsed_time
from streams.file_tables import EventFileError, csv_rows, numbered_lines, parquet_rows

Kind = Literal["interactions", "items", "users"]

_PLACING: Final = ("user_id", "item_id", "action", "time")
_ENCODE: Final = msgspec.json.Encoder(decimal_format="number").encode


class FileEvent(NamedTuple):
    """One row: `key` is the user's or else the item's id (empty if unusable), `time` epoch seconds, `value` JSON."""

    kind: Kind
    key: str
    time: float | None
    value: bytes


def read_events(path: Path, *, fields: Mapping[str, str] | None = None) -> Iterator[FileEvent]:
    """The rows of `path`, in order, by its suffix: .jsonl, .ndjson, .json, .csv (each also with .gz) or .parquet.

    fields: our field name → the file's, as for `EventDecoder`. A line that is no event is passed on as it is, as an
    interaction, for the decoder to refuse: nothing is dropped here. Raises `EventFileError`, with the line, when the
    file itself cannot be read on.
    """
    names = dict(fields or {})
    suffixes = [suffix.lower() for suffix in path.suffixes]
    form = suffixes[-2] if suffixes[-1:] == [".gz"] and len(suffixes) > 1 else "".join(suffixes[-1:])
    if form in (".jsonl", ".ndjson", ".json"):
        return _lines(path, names)
    if form == ".csv":
        return _rows(csv_rows(path, names), path, names)
    if form == ".parquet":
        return _rows(parquet_rows(path, names), path, names)
    raise EventFileError(f"{path} is none of .jsonl, .csv (or those with .gz) and .parquet: convert it to one of them.")


def merge_by_time(sources: Iterable[Iterator[FileEvent]], *, not_after: float = math.inf) -> Iterator[FileEvent]:
    """Several files as one stream by time, items and users before interactions of the same time.

    Each source keeps its own order; an event without a time comes with the latest before it in its source, and so
    a catalogue without times comes first. A time past `not_after`, in epoch seconds, counts as none, or one absurd
    event would hold back all that follows it in its source. Holds one event of each source in memory.
    """
    keyed = (_keyed(source, index, not_after) for index, source in enumerate(sources))
    for _, event in heapq.merge(*keyed, key=lambda pair: pair[0]):
        yield event


def _keyed(
    source: Iterator[FileEvent], index: int, not_after: float
) -> Iterator[tuple[tuple[float, bool, int], FileEvent]]:
    latest = -math.inf
    for event in source:
        time = latest if event.time is None or event.time > not_after else event.time
        latest = max(latest, time)
        yield (time, event.kind == "interactions", index), event


def _lines(path: Path, names: Mapping[str, str]) -> Iterator[FileEvent]:
    """JSON lines passed on byte for byte; only the few fields that place an event are decoded."""
    id_type, time_type = str | int | None, Annotated[datetime, msgspec.Meta(tz=True)] | float | None
    placing = [("user_id", id_type, None), ("item_id", id_type, None), ("action", str | None, None)]
    fields = msgspec.defstruct("Head", [*placing, ("time", time_type, None)], rename=dict(names) or None, gc=False)
    decode = msgspec.json.Decoder(fields).decode
    for _, raw in numbered_lines(path):
        line = raw.rstrip(b"\r\n")
        if not line or line.isspace():
            continue
        try:
            found: Any = decode(line)
            head = found.user_id, found.item_id, found.action, found.time
        except (msgspec.MsgspecError, ValueError, RecursionError):
            head = _head_of_any(line, names)
        yield _placed(*head, line)


def _head_of_any(line: bytes, names: Mapping[str, str]) -> tuple[Any, Any, Any, Any]:
    """The placing fields of a line that has some of them wrong, all None if it is no JSON object."""
    try:
        row = msgspec.json.decode(line)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        row = None
    return _head(row, names) if isinstance(row, dict) else (None, None, None, None)


def _rows(rows: Iterator[tuple[int, dict[str, Any]]], path: Path, names: Mapping[str, str]) -> Iterator[FileEvent]:
    """Rows of a table as JSON."""
    for number, row in rows:
        try:
            value = _ENCODE(row)
        except (msgspec.MsgspecError, ValueError, TypeError, OverflowError, RecursionError) as error:
            raise EventFileError(f"{path}:{number} holds what JSON cannot: {error}.") from error
        yield _placed(*_head(row, names), value)


def _head(row: Mapping[str, Any], names: Mapping[str, str]) -> tuple[Any, Any, Any, Any]:
    user_id, item_id, action, time = (row.get(names.get(name, name)) for name in _PLACING)
    return user_id, item_id, action, time


def _placed(user_id: Any, item_id: Any, action: Any, time: Any, value: bytes) -> FileEvent:
    kind: Kind = "interactions"
    if action is None and (user_id is None) != (item_id is None):
        kind = "items" if user_id is None else "users"
    key = item_id if kind == "items" else user_id
    if type(key) is not str:
        key = str(key) if type(key) is int else ""
    return FileEvent(kind, key, _seconds(time), value)


def _seconds(time: Any) -> float | None:
    """Epoch seconds of whatever a row gives as its time; None if it is no time, or in finer units than milliseconds."""
    try:
        if isinstance(time, str):
            time = parsed_time(time, "time")
        if isinstance(time, bool) or not isinstance(time, datetime | int | float):
            return None
        seconds = epoch_seconds(time if isinstance(time, datetime) else float(time), "time")
    except (BadValueError, OverflowError):
        return None
    return seconds if seconds < MILLISECONDS_FROM else None
