"""CloudEvents in Kafka's binary mode: the context attributes of an event, sent as headers beside its data.

Source: CloudEvents 1.0, "Kafka Protocol Binding for CloudEvents", section 3.2: a header is `ce_` and the attribute's
name, its value UTF-8.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

from streams.event_values import BadValueError

Attribute = Literal["ce_id", "ce_type", "ce_time"]

READ: Final[tuple[Attribute, ...]] = ("ce_id", "ce_type", "ce_time")
"""The headers that fill what the body lacks: event id, action, time."""


def attribute(headers: Sequence[tuple[str, bytes | None]], name: Attribute) -> str | None:
    """The attribute's text, the last one winning; None where there is none. Raises `BadValueError` with `not_utf8`."""
    for key, value in reversed(headers):
        if key == name and value is not None:
            try:
                return value.decode()
            except UnicodeDecodeError as error:
                raise BadValueError("not_utf8", f"The header `{name}` is not UTF-8.") from error
    return None
