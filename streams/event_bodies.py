"""Bytes of JSON or MessagePack to typed bodies, by decoders compiled once from the configured field names.

A body is a struct with one attribute for each of our fields, None where the event has none (or null).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Final

import msgspec

from streams.event_values import BadValueError

_Id = str | int | None
_Time = Annotated[datetime, msgspec.Meta(tz=True)] | float | None
_JsonVector = str | list[float] | None
_JsonFrames = str | list[float | str | list[float]] | None

INTERACTION_FIELDS: Final[Mapping[str, Any]] = {
    "user_id": _Id,
    "item_id": _Id,
    "action": str | None,
    "value": float | None,
    "time": _Time,
    "event_id": _Id,
}
ITEM_FIELDS: Final[Mapping[str, Any]] = {
    "item_id": _Id,
    "time": _Time,
    "text": str | None,
    "attributes": dict[str, Any] | None,
    "deleted": bool | None,
}
USER_FIELDS: Final[Mapping[str, Any]] = {"user_id": _Id, "time": _Time, "deleted": bool | None}
FIELD_NAMES: Final = frozenset({*INTERACTION_FIELDS, *ITEM_FIELDS, *USER_FIELDS, "features"})
"""Our names of all event fields: what a mapping of field names may rename."""

_MSGPACK_MAPS: Final = frozenset({*range(0x80, 0x90), 0xDE, 0xDF})  # fixmap, map 16, map 32: never the start of JSON
_IDS: Final = ("user_id", "item_id", "event_id")


class BodyParser:
    """Decodes the bodies of one kind of event.

    fields: our field → type. names: our field → the producers' name, where it differs. features: feature name →
    whether it is a sequence of frames; None for events without features. Raises ValueError for clashing names.
    """

    def __init__(
        self, fields: Mapping[str, Any], *, names: Mapping[str, str], features: Mapping[str, bool] | None = None
    ) -> None:
        self._names = {field: names.get(field, field) for field in (*fields, "features")}
        self._ids = [self._names[field] for field in _IDS if field in fields]
        in_json, in_msgpack = dict(fields), dict(fields)
        if features is not None:
            json_types = [_JsonFrames if frames else _JsonVector for frames in features.values()]
            in_json["features"] = _struct(dict(zip(_slots(features), json_types, strict=True)), features) | None
            # Any, because MessagePack gives vectors as binary as well as text, which one typed union cannot hold.
            in_msgpack["features"] = _struct(dict.fromkeys(_slots(features), Any), features) | None
        self._decode_json = msgspec.json.Decoder(_struct(in_json, self._names.values())).decode
        self._decode_msgpack = msgspec.msgpack.Decoder(_struct(in_msgpack, self._names.values())).decode

    def parse(self, raw: bytes) -> Any:
        """The body in `raw`. Raises `BadValueError` for whatever is wrong with it."""
        if raw and raw[0] in _MSGPACK_MAPS:
            return self._parse_msgpack(raw)
        try:
            return self._decode_json(raw)
        except msgspec.ValidationError as error:
            raise self._invalid(error) from error
        except UnicodeDecodeError as error:
            raise BadValueError("not_utf8", "The value holds bytes that are not UTF-8.") from error
        except RecursionError as error:
            raise BadValueError("too_deep", "The value is nested too deeply.") from error
        except (msgspec.MsgspecError, ValueError, OverflowError) as error:
            raise self._malformed(raw, error) from error

    def _parse_msgpack(self, raw: bytes) -> Any:
        try:
            return self._decode_msgpack(raw)
        except msgspec.ValidationError as error:
            raise self._invalid(error) from error
        except UnicodeDecodeError as error:
            raise BadValueError("not_utf8", "The value holds text that is not UTF-8.") from error
        except RecursionError as error:
            raise BadValueError("too_deep", "The value is nested too deeply.") from error
        except (msgspec.MsgspecError, ValueError, TypeError, OverflowError) as error:
            raise BadValueError("not_msgpack", f"{error}.") from error

    def _malformed(self, raw: bytes, error: Exception) -> BadValueError:
        """Why strict JSON was refused, looking again with the standard library, which lets NaN and surrogates pass."""
        constants: list[str] = []
        try:
            body = json.loads(raw, parse_constant=constants.append)
        except (ValueError, RecursionError):
            return BadValueError("not_json", f"{error}.")
        if constants:
            return BadValueError("not_finite", f"The value holds {constants[0]}, which is no JSON number.")
        for name in self._ids:
            text = body.get(name) if isinstance(body, dict) else None
            if isinstance(text, str) and any("\ud800" <= char <= "\udfff" for char in text):
                return BadValueError("bad_id", f"`{name}` holds an unpaired surrogate, so it is not valid Unicode.")
        return BadValueError("not_json", f"{error}.")

    def _invalid(self, error: msgspec.ValidationError) -> BadValueError:
        """Well-formed, but not what the fields allow."""
        text = str(error)
        if text.startswith("Integer value out of range") and any(f"`$.{name}`" in text for name in self._ids):
            return BadValueError("bad_id", f"{text}.")
        if text.startswith(("Number out of range", "Integer value out of range")):
            return BadValueError("not_finite", f"{text}.")
        if text.startswith(("Invalid RFC3339", "Invalid MessagePack timestamp")) or "timezone component" in text:
            return BadValueError("bad_time", f"{text}.")
        return BadValueError("wrong_type", f"{text}.")


def feature_values(features: Any, names: Mapping[str, Any]) -> dict[str, Any]:
    """The features of a body by name, without those it does not give."""
    if features is None:
        return {}
    values = ((name, getattr(features, slot)) for name, slot in zip(names, _slots(names), strict=True))
    return {name: value for name, value in values if value is not None}


def _slots(names: Mapping[str, Any]) -> list[str]:
    """Attribute names for features, whose own names need not be identifiers."""
    return [f"feature_{i}" for i in range(len(names))]


def _struct(fields: Mapping[str, Any], names: Any) -> Any:
    """A struct type whose fields default to None and are called `names`, in order, on the wire."""
    renames = dict(zip(fields, names, strict=False))
    return msgspec.defstruct(
        "Event", [(field, kind, None) for field, kind in fields.items()], rename=renames, kw_only=True, gc=False
    )
