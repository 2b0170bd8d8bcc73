"""What is wrong with a configuration, in one sentence each that names the key, what was given and what is expected."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

UNKNOWN = {"extra_forbidden", "unexpected_keyword_argument"}
EXPECTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "string_type": "text in quotes",
    "path_type": "a path in quotes",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "dict_type": "a table",
    "mapping_type": "a table",
    "model_type": "a table",
    "dataclass_type": "a table",
    "timezone_aware": "a time with its zone, such as 1990-01-01T00:00:00Z",
}
SHOWN_CHARACTERS = 60


def known_keys(model: type[BaseModel]) -> list[tuple[str, str]]:
    """Every (table, key) there is; the table is "" at the top level."""
    keys = [("", name) for name in model.model_fields]
    for table, info in model.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            keys += [(table, name) for name in kind.model_fields]
        elif isinstance(kind, type) and is_dataclass(kind):
            keys += [(table, field.name) for field in fields(kind)]
    return keys


def describe(model: type[BaseModel], error: ValidationError) -> list[str]:
    """One sentence for each problem, unknown keys first: they often cause the others."""
    details = sorted(error.errors(include_url=False), key=lambda detail: detail["type"] not in UNKNOWN)
    return [sentence for detail in details for sentence in _sentences(model, detail)]


def unknown_environment(model: type[BaseModel], environment: Mapping[str, str], prefix: str) -> Iterator[str]:
    """Variables with our prefix whose table does not exist; the settings library would pass over them in silence."""
    for variable in sorted(environment):
        if not variable.upper().startswith(prefix):
            continue
        table, _, key = variable[len(prefix) :].lower().partition("__")
        if table not in model.model_fields:
            nearest = _nearest(model, table if key else "", key.partition("__")[0] or table)
            yield f"the environment variable {variable} names no known key{nearest}."


def _sentences(model: type[BaseModel], detail: ErrorDetails) -> list[str]:
    if detail["type"] == "contradiction":
        return str(detail["ctx"]["text"]).split("\n")
    *tables, key = [str(part) for part in detail["loc"]]
    if key == "[key]":  # one of a mapping's keys is wrong, not its value
        *tables, key = tables
    place = f" in [{'.'.join(tables)}]" if tables else ""
    if detail["type"] in UNKNOWN:
        return [f'unknown key "{key}"{place}{_nearest(model, tables[0] if tables else "", key)}.']
    given = "" if _is_hidden(model, tables, key) else f", not {_shown(detail['input'])}"
    return [f'"{key}"{place} must be {_expected(detail)}{given}.']


def _is_hidden(model: type[BaseModel], tables: list[str], key: str) -> bool:
    """Whether a value may hold a password and is never shown."""
    kind: Any = model
    for table in tables:
        kind = kind.model_fields[table].annotation if _is_model(kind) and table in kind.model_fields else None
    return _is_model(kind) and key in kind.model_fields and not kind.model_fields[key].repr


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _nearest(model: type[BaseModel], table: str, key: str) -> str:
    """`; the nearest known one is "…" in […]`: by the key, then by table and key, so that a moved key is found."""
    known = known_keys(model)

    def likeness(candidate: tuple[str, str]) -> float:
        by_key = difflib.SequenceMatcher(None, key.lower(), candidate[1]).ratio()
        by_table = difflib.SequenceMatcher(None, table.lower(), candidate[0]).ratio() if table or candidate[0] else 1.0
        return by_key + 0.1 * by_table

    best = max(known, key=likeness)
    where = f" in [{best[0]}]" if best[0] else " at the top level"
    return f'; the nearest known one is "{best[1]}"{where}'


def _expected(detail: ErrorDetails) -> str:
    if detail["type"] in EXPECTED:
        return EXPECTED[detail["type"]]
    if detail["type"] == "literal_error":
        return f"one of {detail['ctx']['expected']}".replace("'", '"').replace(" or ", ", ")
    text = detail["msg"]
    for opening in ("Input should be ", "Input should ", "String should "):
        if text.startswith(opening):
            return text.removeprefix(opening)
    return f"valid ({text})"


def _shown(value: Any) -> str:
    text = f'"{value}"' if isinstance(value, str) else repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 1]}…"
