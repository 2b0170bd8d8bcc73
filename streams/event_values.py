"""The values inside an event: ids, times, numbers and vectors, checked and brought to one form.

Every function here either returns a usable value or raises `BadValueError`, whose reason is a key of `REASONS`.
"""

from __future__ import annotations

import binascii
import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float32]

TOO_MANY_IDS: Final = "too_many_ids"
REASONS: Final[Mapping[str, str]] = {
    "no_value": "the record has no value (on the items and users topics: neither a value nor a key)",
    "too_large": "the record is larger than `max_record_bytes`",
    "not_json": "the value is not well-formed JSON",
    "not_msgpack": "the value starts like a MessagePack map but is not well-formed MessagePack",
    "not_utf8": "a text or a header is not UTF-8",
    "too_deep": "the value is nested too deeply",
    "missing_field": "a required field is absent or null",
    "wrong_type": "a field, or the event itself, has the wrong type",
    "bad_id": "an id is empty, longer than `max_id_bytes` in UTF-8, or holds NUL or an unpaired surrogate",
    "bad_action": "the action is empty, longer than `max_id_bytes` in UTF-8, or holds NUL",
    "bad_time": "the time is neither RFC 3339 with a zone nor a number",
    "absurd_time": "the time is before `min_time`, or more than `max_ahead_s` after the record's own timestamp",
    "not_finite": "a number is NaN, infinite, or too large for its type",
    "absurd_value": "the value of an interaction is beyond a thousand million",
    "not_base64": "a vector given as text is not base64",
    "wrong_length": "a vector does not have the length that the configuration gives its modality",
    TOO_MANY_IDS: "the record brings an id beyond `max_new_ids`, `max_users` or `max_items`",
}
"""Why an event cannot be used: the dead letter's reason and the metric's label, each with its meaning."""

LARGEST_VALUE: Final = 1e9
"""Beyond it a value is a slip, and one such slip would drown all others in means and spreads."""
MILLISECONDS_FROM: Final = 1e11
"""Epoch times of this size and more are milliseconds; as seconds they would lie beyond the year 5100."""


class BadValueError(Exception):
    """A value cannot be used; `reason` is a key of `REASONS`, `detail` one sentence."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


def checked_id(value: str | int | None, name: str, *, max_bytes: int, reason: str = "bad_id") -> str:
    """An id as text of 1 to `max_bytes` bytes of UTF-8 without NUL; an integer becomes its decimal string.

    Raises `BadValueError` with `missing_field` for None, else with `reason`.
    """
    if type(value) is str and 0 < len(value) <= max_bytes and value.isascii() and "\0" not in value:
        return value
    if value is None:
        raise BadValueError("missing_field", f"`{name}` is missing.")
    try:
        text = str(value)
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise BadValueError(reason, f"`{name}` holds an unpaired surrogate, so it is not valid Unicode.") from error
    except ValueError as error:  # Python refuses to print integers of thousands of digits
        raise BadValueError(reason, f"`{name}` is longer than {max_bytes} bytes.") from error
    if not text:
        raise BadValueError(reason, f"`{name}` is empty.")
    if size > max_bytes:
        raise BadValueError(reason, f"`{name}` is {size} bytes of UTF-8, more than the {max_bytes} allowed.")
    if "\0" in text:
        raise BadValueError(reason, f"`{name}` holds a NUL character.")
    return text


def epoch_seconds(value: datetime | float, name: str) -> float:
    """A time as seconds since 1970: numbers below 1e11 are seconds, others milliseconds. Raises `BadValueError`."""
    if isinstance(value, datetime):
        return value.timestamp()
    if not math.isfinite(value):
        raise BadValueError("not_finite", f"`{name}` is {value}, not a time.")
    return value if abs(value) < MILLISECONDS_FROM else value / 1000.0


def parsed_time(text: str, name: str) -> datetime:
    """RFC 3339 text with a zone. Raises `BadValueError` with `bad_time`."""
    try:
        time = msgspec.convert(text, datetime)
    except msgspec.ValidationError as error:
        raise BadValueError("bad_time", f"`{name}` is not an RFC 3339 time.") from error
    if time.tzinfo is None:
        raise BadValueError("bad_time", f"`{name}` has no time zone.")
    return time


def vector(value: Any, name: str, *, length: int) -> Vector:
    """One float32 vector of shape (`length`,) from numbers, base64 text, or raw little-endian bytes.

    Raises `BadValueError`.
    """
    numbers = _numbers(value, name)
    if len(numbers) != length:
        raise BadValueError("wrong_length", f"`{name}` has {len(numbers)} numbers where {length} are configured.")
    return numbers


def frame_vectors(value: Any, name: str, *, length: int, most: int) -> Vector:
    """The first `most` frames as float32 of shape (frames, `length`).

    `value` is a list of vectors, one vector (a single frame), or base64 of all frames end to end.
    Raises `BadValueError`.
    """
    if isinstance(value, list) and value and not isinstance(value[0], int | float):
        return np.stack([vector(frame, f"{name}[{i}]", length=length) for i, frame in enumerate(value[:most])])
    numbers = _numbers(value, name)
    if len(numbers) == 0 or len(numbers) % length:
        raise BadValueError(
            "wrong_length", f"`{name}` has {len(numbers)} numbers where frames of {length} are configured."
        )
    if isinstance(value, list) and len(numbers) != length:
        raise BadValueError(
            "wrong_length", f"`{name}` is one list of {len(numbers)} numbers; give one list for each frame."
        )
    return numbers.reshape(-1, length)[:most]


def _numbers(value: Any, name: str) -> Vector:
    """Any accepted form of a vector as finite float32 of shape (N,)."""
    if isinstance(value, str):
        try:
            value = binascii.a2b_base64(value, strict_mode=True)
        except ValueError as error:
            raise BadValueError("not_base64", f"`{name}` is text but not base64.") from error
    if isinstance(value, bytes):
        if len(value) % 4:
            raise BadValueError("wrong_length", f"`{name}` has {len(value)} bytes, not whole float32 numbers.")
        numbers = np.frombuffer(value, dtype="<f4").astype(np.float32)
    else:
        try:
            checked = msgspec.convert(value, list[float])
        except (msgspec.ValidationError, OverflowError) as error:
            raise BadValueError("wrong_type", f"`{name}` is not a list of numbers.") from error
        with np.errstate(over="ignore"):
            numbers = np.array(checked, dtype=np.float64).astype(np.float32)
    if not np.isfinite(numbers).all():
        raise BadValueError("not_finite", f"`{name}` holds NaN, infinity, or a number beyond float32.")
    return numbers
