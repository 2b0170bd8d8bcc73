"""The events that producers send, and the decoder that makes them from Kafka records.

`docs/events.md` is the contract in words. A record is decoded to an `Interaction`, `Item` or `User`, or is refused
with a `DecodeError`; nothing else is ever raised, whatever its bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec

from streams import cloudevents
from streams.event_bodies import (
    FIELD_NAMES,
    INTERACTION_FIELDS,
    ITEM_FIELDS,
    USER_FIELDS,
    BodyParser,
    feature_values,
)
from streams.event_values import (
    LARGEST_VALUE,
    BadValueError,
    Vector,
    checked_id,
    epoch_seconds,
    frame_vectors,
    parsed_time,
    vector,
)
from streams.user_ids import UserIds, plain


@dataclass(frozen=True, slots=True)
class Record:
    """One Kafka record; `timestamp_ms` is its broker or producer time, negative where it has none."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()


class Interaction(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A user did something with an item; `value` is NaN where none was given, `time` is in epoch seconds."""

    user_id: str
    item_id: str
    action: str
    value: float
    time: float
    event_id: str | None


class Item(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """All that is known of an item, replacing what was; features are float32 (D,), or (frames, D) for sequences."""

    item_id: str
    time: float | None
    features: dict[str, Vector]
    text: str | None
    attributes: dict[str, Any]
    deleted: bool


class User(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """All that is known of a user beside the interactions, replacing what was; features are float32 (D,)."""

    user_id: str
    time: float | None
    features: dict[str, Vector]
    deleted: bool


class DecodeError(Exception):
    """A record that cannot be used: `reason` is a key of `event_values.REASONS`, `detail` one sentence."""

    def __init__(self, record: Record, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.record = record
        self.reason = reason
        self.detail = detail


class EventDecoder:
    """Decodes records by the configured field names, features and limits; safe to share between threads.

    fields: our field name → the producers' name of it. modalities, user_features: name → vector length.
    frames: those of the modalities that are sequences → the most frames kept. min_time: the earliest usable epoch
    second. max_ahead_s: how far an event's time may be after its record's timestamp. max_record_bytes, max_id_bytes:
    size limits of a record's value and of an id in UTF-8. user_ids: under which id a user is known.
    Raises ValueError for field names that cannot be.
    """

    def __init__(
        self,
        *,
        fields: Mapping[str, str] | None = None,
        modalities: Mapping[str, int] | None = None,
        frames: Mapping[str, int] | None = None,
        user_features: Mapping[str, int] | None = None,
        min_time: float,
        max_ahead_s: float,
        max_record_bytes: int,
        max_id_bytes: int,
        user_ids: UserIds = plain,
    ) -> None:
        names = dict(fields or {})
        unknown = sorted(names.keys() - FIELD_NAMES)
        if unknown:
            raise ValueError(f"No event has a field `{unknown[0]}`: map one of {', '.join(sorted(FIELD_NAMES))}.")
        self._names = {name: names.get(name, name) for name in FIELD_NAMES}
        self._modalities = dict(modalities or {})
        self._frames = dict(frames or {})
        self._user_features = dict(user_features or {})
        stray = sorted(self._frames.keys() - self._modalities.keys())
        if stray:
            raise ValueError(f"`frames` names `{stray[0]}`, which is not one of the modalities.")
        sizes = (*self._modalities.items(), *self._frames.items(), *self._user_features.items())
        small = [name for name, size in sizes if size < 1]
        if small:
            raise ValueError(
                f"`{small[0]}` needs a vector length, and for a sequence a number of frames, of at least 1."
            )
        self._min_time = min_time
        self._max_ahead_s = max_ahead_s
        self._max_record_bytes = max_record_bytes
        self._max_id_bytes = max_id_bytes
        self._user_ids = user_ids
        try:
            self._interactions = BodyParser(INTERACTION_FIELDS, names=names)
            sequences = {name: name in self._frames for name in self._modalities}
            self._items = BodyParser(ITEM_FIELDS, names=names, features=sequences)
            self._users = BodyParser(USER_FIELDS, names=names, features=dict.fromkeys(self._user_features, False))
        except ValueError as error:
            raise ValueError("Two fields of one event are mapped to the same name; give each its own.") from error

    def interaction(self, record: Record) -> Interaction:
        """The interaction in `record`. Raises `DecodeError`."""
        try:
            body = self._body(self._interactions, record)
            action, time, event_id = body.action, body.time, body.event_id
            if record.headers:
                action = action if action is not None else cloudevents.attribute(record.headers, "ce_type")
                event_id = event_id if event_id is not None else cloudevents.attribute(record.headers, "ce_id")
            value = body.value
            if value is None:
                value = math.nan
            elif not math.isfinite(value):
                raise BadValueError("not_finite", f"`{self._names['value']}` is {value}.")
            elif abs(value) > LARGEST_VALUE:
                raise BadValueError("absurd_value", f"`{self._names['value']}` is {value:g}.")
            when = self._time(time, record)
            if when is None:
                raise BadValueError("missing_field", f"`{self._names['time']}` is missing.")
            return Interaction(
                user_id=self._user_ids(self._id(body.user_id, "user_id")),
                item_id=self._id(body.item_id, "item_id"),
                action=checked_id(action, self._names["action"], max_bytes=self._max_id_bytes, reason="bad_action"),
                value=value,
                time=when,
                event_id=None if event_id is None else self._id(event_id, "event_id"),
            )
        except BadValueError as fault:
            raise DecodeError(record, fault.reason, fault.detail) from fault

    def item(self, record: Record) -> Item:
        """The item event in `record`; a null value deletes the item that is the record's key. Raises `DecodeError`."""
        try:
            if record.value is None:
                item_id = self._key(record)
                time = self._time(None, record)
                return Item(item_id=item_id, time=time, features={}, text=None, attributes={}, deleted=True)
            body = self._body(self._items, record)
            item_id, time = self._id(body.item_id, "item_id"), self._time(body.time, record)
            if body.deleted:
                return Item(item_id=item_id, time=time, features={}, text=None, attributes={}, deleted=True)
            return Item(
                item_id=item_id,
                time=time,
                features={
                    name: self._modality(name, value)
                    for name, value in feature_values(body.features, self._modalities).items()
                },
                text=body.text,
                attributes=_plain(body.attributes or {}, self._names["attributes"]),
                deleted=False,
            )
        except BadValueError as fault:
            raise DecodeError(record, fault.reason, fault.detail) from fault

    def user(self, record: Record) -> User:
        """The user event in `record`; a null value deletes the user who is the record's key. Raises `DecodeError`."""
        try:
            if record.value is None:
                user_id = self._user_ids(self._key(record))
                return User(user_id=user_id, time=self._time(None, record), features={}, deleted=True)
            body = self._body(self._users, record)
            user_id = self._user_ids(self._id(body.user_id, "user_id"))
            time = self._time(body.time, record)
            if body.deleted:
                return User(user_id=user_id, time=time, features={}, deleted=True)
            features = {
                name: vector(value, f"{self._names['features']}.{name}", length=self._user_features[name])
                for name, value in feature_values(body.features, self._user_features).items()
            }
            return User(user_id=user_id, time=time, features=features, deleted=False)
        except BadValueError as fault:
            raise DecodeError(record, fault.reason, fault.detail) from fault

    def _body(self, parser: BodyParser, record: Record) -> Any:
        raw = record.value
        if raw is None:
            raise BadValueError("no_value", "The record has no value.")
        if len(raw) > self._max_record_bytes:
            raise BadValueError(
                "too_large", f"The value is {len(raw)} bytes, more than the {self._max_record_bytes} allowed."
            )
        return parser.parse(raw)

    def _id(self, value: str | int | None, field: str) -> str:
        return checked_id(value, self._names[field], max_bytes=self._max_id_bytes)

    def _key(self, record: Record) -> str:
        if record.key is None:
            raise BadValueError("no_value", "The record has neither a value nor a key.")
        try:
            return checked_id(record.key.decode(), "key", max_bytes=self._max_id_bytes)
        except UnicodeDecodeError as error:
            raise BadValueError("bad_id", "The key is not UTF-8.") from error

    def _time(self, value: datetime | float | None, record: Record) -> float | None:
        """Epoch seconds of the body's time, else of `ce_time`, else None."""
        name = self._names["time"]
        if value is None and record.headers:
            name = "ce_time"
            text = cloudevents.attribute(record.headers, "ce_time")
            value = None if text is None else parsed_time(text, name)
        if value is None:
            return None
        time = epoch_seconds(value, name)
        if time < self._min_time:
            raise BadValueError("absurd_time", f"`{name}` is {time:.0f} in epoch seconds, before the earliest allowed.")
        # A record without a timestamp has nothing to be compared with.
        if record.timestamp_ms >= 0 and time > record.timestamp_ms / 1000.0 + self._max_ahead_s:
            raise BadValueError(
                "absurd_time", f"`{name}` is more than {self._max_ahead_s:g} s after the record's timestamp."
            )
        return time

    def _modality(self, name: str, value: Any) -> Vector:
        label, length = f"{self._names['features']}.{name}", self._modalities[name]
        if name in self._frames:
            return frame_vectors(value, label, length=length, most=self._frames[name])
        return vector(value, label, length=length)


def _plain(attributes: dict[str, Any], name: str) -> dict[str, Any]:
    """Attributes as both JSON and MessagePack can hold them: one has more types, the other no whole number beyond 64
    bits. Raises `BadValueError`."""
    try:
        plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(attributes))
        msgspec.msgpack.encode(plain)  # as they are remembered
    except (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise BadValueError("wrong_type", f"`{name}` holds what cannot be remembered: {error}.") from error
    return plain
