"""Whatever the bytes, an event is decoded or refused with a known reason, and what was sent is what is read."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streams.event_values import REASONS
from streams.events import DecodeError, Record
from tests.unit.test_events import NOW, NOW_MS, decoder

DECODER = decoder(modalities={"image": 2, "video": 2}, frames={"video": 3}, user_features={"taste": 2})

numbers = st.floats() | st.integers()
texts = st.text(st.sampled_from('aZ09+/= é\0\ud800\udc00\U0001f600"'), max_size=8)
vectors = st.lists(numbers, max_size=3) | texts | st.binary(max_size=12)
scalars = st.none() | st.booleans() | numbers | texts | st.binary(max_size=8)
anything = scalars | st.lists(scalars, max_size=3) | st.dictionaries(texts, scalars | st.lists(scalars), max_size=3)
bodies = st.fixed_dictionaries(
    {},
    optional={
        "user_id": anything | st.just("u"),
        "item_id": anything | st.just("i"),
        "action": anything | st.just("click"),
        "value": numbers | anything,
        "time": st.just(NOW) | st.datetimes().map(lambda time: f"{time.isoformat()}Z") | anything,
        "event_id": anything,
        "text": anything,
        "attributes": anything,
        "deleted": anything,
        "features": anything
        | st.fixed_dictionaries({}, optional={"image": vectors | anything, "video": st.lists(vectors) | anything}),
    },
)


def lenient_json(body: Mapping[str, Any]) -> bytes:
    """JSON as careless producers write it: with NaN, Infinity, and unpaired surrogates."""
    return json.dumps(body, default=lambda raw: base64.b64encode(raw).decode()).encode()


def msgpack(body: Mapping[str, Any]) -> bytes:
    """MessagePack, where it can hold the body at all."""
    try:
        return msgspec.msgpack.encode(body)
    except (OverflowError, UnicodeEncodeError):
        return b"\x80"


def mangled(raw: bytes, place: int, byte: int) -> bytes:
    at = place % (len(raw) + 1)
    return raw[:at] + bytes([byte]) + raw[at + 1 :]


values = st.one_of(
    st.none(),
    st.binary(),
    st.binary().map(lambda tail: b"{" + tail),
    st.binary().map(lambda tail: b"\x82" + tail),
    bodies.map(lenient_json),
    bodies.map(msgpack),
    st.builds(mangled, bodies.map(lenient_json), st.integers(0), st.integers(0, 255)),
    st.builds(mangled, bodies.map(msgpack), st.integers(0), st.integers(0, 255)),
)
headers = st.lists(st.tuples(st.sampled_from(["ce_id", "ce_type", "ce_time", "x"]), st.binary(max_size=8)), max_size=3)


def outcome(decode: Callable[[Record], Any], record: Record) -> Any:
    """The event, or the error that refuses it."""
    try:
        return decode(record)
    except DecodeError as error:
        return error


def is_sound(event: Any) -> bool:
    """Whether everything downstream can rely on holds of a decoded event."""
    json.dumps(getattr(event, "attributes", {}))
    ids = [getattr(event, name, None) for name in ("user_id", "item_id", "event_id")]
    return (
        all(name is None or 0 < len(name.encode()) <= 512 for name in ids)
        and (event.time is None or math.isfinite(event.time))
        and all(v.dtype == np.float32 and np.isfinite(v).all() for v in getattr(event, "features", {}).values())
    )


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # machines differ; what is decoded must not
@given(value=values, key=st.none() | st.binary(max_size=8), pairs=headers)
def test_any_bytes_are_decoded_or_refused_with_a_known_reason(
    value: bytes | None, key: bytes | None, pairs: list[tuple[str, bytes]]
) -> None:
    record = Record("events", 0, 0, NOW_MS, key, value, tuple(pairs))
    for decode in (DECODER.interaction, DECODER.item, DECODER.user):
        found = outcome(decode, record)
        if isinstance(found, DecodeError):
            assert found.reason in REASONS
            assert found.detail
        else:
            assert is_sound(found)


names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=128)


@settings(deadline=None)
@given(
    user=names | st.integers(),
    item=names | st.integers(),
    action=names,
    value=st.floats(-1e9, 1e9),
    time=st.floats(6.4e8, NOW),
    event_id=st.none() | names,
    binary=st.booleans(),
)
def test_what_was_sent_is_what_is_read(
    user: str | int, item: str | int, action: str, value: float, time: float, event_id: str | None, binary: bool
) -> None:
    body = {"user_id": user, "item_id": item, "action": action, "value": value, "time": time, "event_id": event_id}
    encode = msgpack if binary and all(type(x) is str or abs(int(x)) < 2**63 for x in (user, item)) else lenient_json
    event = DECODER.interaction(Record("events", 0, 0, NOW_MS, None, encode(body)))
    assert (event.user_id, event.item_id) == (str(user), str(item))
    assert (event.action, event.value, event.time, event.event_id) == (action, value, time, event_id)


@settings(deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=2, max_size=2))
def test_every_form_of_a_vector_reads_the_same(vector: list[float]) -> None:
    raw = np.array(vector, "<f4").tobytes()
    read = []
    for form, encode in (
        (vector, lenient_json),
        (base64.b64encode(raw).decode(), lenient_json),
        (vector, msgpack),
        (raw, msgpack),
    ):
        record = Record("events", 0, 0, NOW_MS, None, encode({"item_id": "i", "features": {"image": form}}))
        read.append(DECODER.item(record).features["image"].tobytes())
    assert set(read) == {raw}
