"""Rows of CSV and Parquet files as dictionaries that JSON can hold, and what can go wrong with any file of events.

Columns are named as the fields of events. `features` and `attributes` may be one column (JSON text in CSV), or one
for each name: `features.image`, `attributes.title`. Empty cells are absent; other columns are left out.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Final, cast

import msgspec

from streams.event_bodies import FIELD_NAMES

MAX_LINE_BYTES: Final = 1 << 26
"""A longer line means that the file is no list of rows at all; reading on would take it whole into memory."""

BATCH_ROWS: Final = 4096
_AS_TEXT: Final = frozenset({"user_id", "item_id", "action", "event_id", "text"})
_CANNOT_READ: Final = (OSError, EOFError, zlib.error)


class EventFileError(Exception):
    """A file of events cannot be read; one sentence that names the file and the line."""


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Line number (from 1) and line of a file, unzipped if it ends with .gz, without a byte order mark.

    Raises `EventFileError`.
    """
    number = 1
    try:
        with cast("IO[bytes]", gzip.open(path)) if path.suffix.lower() == ".gz" else path.open("rb") as file:
            while line := file.readline(MAX_LINE_BYTES + 1):
                if len(line) > MAX_LINE_BYTES:
                    raise EventFileError(f"{path}:{number} is over {MAX_LINE_BYTES} bytes: put one event on each line.")
                yield number, line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                number += 1
    except _CANNOT_READ as error:
        raise _unreadable(path, number, error) from error


def csv_rows(path: Path, names: Mapping[str, str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and row of a CSV file in UTF-8 whose first line names the columns. Raises `EventFileError`."""
    kinds = _kinds(names)
    # Bytes that are not UTF-8 are carried to the row that holds them, where the line is known.
    reader = csv.reader((line.decode("utf-8", "surrogateescape") for _, line in numbered_lines(path)), strict=True)
    try:
        header = next(reader, [])
        columns = [(i, column, _field(column, kinds)) for i, column in enumerate(header) if _field(column, kinds)]
        if not columns:
            raise EventFileError(f"{path}:1 names no column of an event: give a header such as user_id,item_id,time.")
        dotted = [name for _, name, _ in columns if name not in kinds]
        for cells in reader:
            if len(cells) > len(header):
                raise EventFileError(
                    f"{path}:{reader.line_num} has {len(cells)} cells under {len(header)} columns: quote its commas."
                )
            # A short row lacks its last cells.
            row = {name: _typed(cells[i], field) for i, name, field in columns if i < len(cells) and cells[i]}
            if row:
                yield reader.line_num, _nested(row, dotted)
    except csv.Error as error:
        raise EventFileError(f"{path}:{reader.line_num} is not well-formed CSV: {error}.") from error


def parquet_rows(path: Path, names: Mapping[str, str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Row number (from 1) and row of a Parquet file, a batch at a time. Raises `EventFileError`."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise EventFileError(
            f"{path} is Parquet, which needs pyarrow: install it with `pip install 'headwater[parquet]'`."
        ) from error
    kinds = _kinds(names)
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            columns = [column for column in file.schema_arrow.names if _field(column, kinds)]
            if not columns:
                raise EventFileError(f"{path} has no column of an event: name some user_id, item_id, time and so on.")
            dotted = [column for column in columns if column not in kinds]
            for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=columns):
                for cells in zip(*(_column(batch.column(name)) for name in columns), strict=True):
                    number += 1
                    row = {name: cell for name, cell in zip(columns, cells, strict=True) if cell is not None}
                    yield number, _nested(row, dotted)
    except (pyarrow.ArrowException, *_CANNOT_READ) as error:
        raise _unreadable(path, number + 1, error) from error


def _unreadable(path: Path, line: int, error: Exception) -> EventFileError:
    """The error for a file that is missing, or fails at `line`."""
    if line == 1 and isinstance(error, OSError) and error.strerror:
        return EventFileError(f"{path} cannot be read: {error.strerror}.")
    return EventFileError(f"{path}:{line} cannot be read ({error or type(error).__name__}): is the file complete?")


def _kinds(names: Mapping[str, str]) -> dict[str, str]:
    """The file's column names → our fields."""
    return {names.get(name, name): name for name in FIELD_NAMES}


def _field(column: str, kinds: Mapping[str, str]) -> str:
    """Our field for a column, also for one such as `features.image`; empty for columns that are none."""
    outer = kinds.get(column.partition(".")[0], "")
    return kinds.get(column, outer if outer in ("features", "attributes") else "")


def _typed(cell: str, field: str) -> Any:
    """A CSV cell as the field's type, or as it is where that fails, for the decoder to refuse."""
    if field in _AS_TEXT:
        return cell
    try:
        if field in ("value", "time"):
            return msgspec.convert(cell, float, strict=False)
        if field == "deleted":
            return msgspec.convert(cell.lower(), bool, strict=False)
        if (field == "features" and cell[0] in "[{") or (field == "attributes" and cell[0] == "{"):
            return msgspec.json.decode(cell)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        pass
    return cell


def _nested(row: dict[str, Any], dotted: list[str]) -> dict[str, Any]:
    """`{"features.image": v}` as `{"features": {"image": v}}`, for the columns `dotted`."""
    for column in dotted:
        outer, _, inner = column.partition(".")
        if column in row and isinstance(values := row.setdefault(outer, {}), dict):
            values[inner] = row.pop(column)
    return row


def _column(values: Any) -> list[Any]:
    """A Parquet column as Python values; timestamps as epoch seconds, those without a zone taken as UTC."""
    import pyarrow

    if pyarrow.types.is_timestamp(values.type):
        microseconds = values.cast(pyarrow.timestamp("us", tz=values.type.tz), safe=False).cast(pyarrow.int64())
        return [None if value is None else value / 1e6 for value in microseconds.to_pylist()]
    found: list[Any] = values.to_pylist(maps_as_pydicts="lossy")
    return found
