"""What producers may send, and what becomes of it: good events, mapped names, CloudEvents, vectors, deletions."""

from __future__ import annotations

import base64
import math
from datetime import UTC, datetime
from typing import Any

import msgspec
import numpy as np
import pytest

from streams.events import EventDecoder, Record

NOW_MS = 1_700_000_000_000
NOW = NOW_MS / 1000


def decoder(**changes: Any) -> EventDecoder:
    limits: dict[str, Any] = {
        "min_time": 631_152_000.0,
        "max_ahead_s": 3600.0,
        "max_record_bytes": 1_000_000,
        "max_id_bytes": 512,
    }
    return EventDecoder(**(limits | changes))


def record(value: Any, *, key: bytes | None = None, headers: tuple[tuple[str, bytes], ...] = ()) -> Record:
    raw = value if value is None or isinstance(value, bytes) else msgspec.json.encode(value)
    return Record("events", 0, 7, NOW_MS, key, raw, headers)


def interaction(**changes: Any) -> dict[str, Any]:
    return {"user_id": "u1", "item_id": "i1", "action": "click", "time": NOW} | changes


def base64_of(*numbers: float) -> str:
    return base64.b64encode(np.array(numbers, "<f4").tobytes()).decode()


def test_an_interaction_is_decoded_from_json_and_messagepack_alike() -> None:
    event = interaction(value=4.5, event_id="e1", unknown={"deep": [1, 2]})
    from_json = decoder().interaction(record(event))
    from_msgpack = decoder().interaction(record(msgspec.msgpack.encode(event)))
    assert from_json == from_msgpack
    assert (from_json.user_id, from_json.item_id, from_json.action) == ("u1", "i1", "click")
    assert (from_json.value, from_json.time, from_json.event_id) == (4.5, NOW, "e1")


def test_json_may_begin_with_white_space() -> None:
    assert decoder().interaction(record(b" \r\n\t" + msgspec.json.encode(interaction()))).user_id == "u1"


def test_an_absent_value_is_nan_and_null_is_absent() -> None:
    assert math.isnan(decoder().interaction(record(interaction())).value)
    event = decoder().interaction(record(interaction(value=None, event_id=None)))
    assert math.isnan(event.value)
    assert event.event_id is None


def test_integer_ids_become_their_decimal_string() -> None:
    event = decoder().interaction(record(interaction(user_id=42, item_id=-7, event_id=2**70)))
    assert (event.user_id, event.item_id, event.event_id) == ("42", "-7", str(2**70))


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        (NOW, NOW),
        (1_700_000_000, 1.7e9),
        (1_700_000_000_123, 1_700_000_000.123),
        ("2023-11-14T22:13:20Z", 1.7e9),
        ("2023-11-14T23:13:20.5+01:00", 1_700_000_000.5),
    ],
)
def test_times_are_rfc_3339_or_epoch_seconds_or_milliseconds(time: Any, expected: float) -> None:
    assert decoder().interaction(record(interaction(time=time))).time == expected


def test_messagepack_timestamps_are_times() -> None:
    event = interaction(time=datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC))
    assert decoder().interaction(record(msgspec.msgpack.encode(event))).time == NOW


def test_field_names_are_mapped() -> None:
    mapped = decoder(fields={"user_id": "uid", "time": "ts", "features": "vectors"}, modalities={"image": 2})
    assert mapped.interaction(record({"uid": "a", "item_id": "b", "action": "view", "ts": NOW})).user_id == "a"
    item = mapped.item(record({"item_id": "b", "ts": NOW, "vectors": {"image": [1, 2]}}))
    assert item.time == NOW
    assert item.features["image"].tolist() == [1, 2]


@pytest.mark.parametrize(
    "settings",
    [
        {"fields": {"colour": "c"}},
        {"fields": {"user_id": "id", "item_id": "id"}},
        {"frames": {"video": 3}},
        {"modalities": {"image": 0}},
        {"modalities": {"video": 4}, "frames": {"video": 0}},
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"\.$"):
        decoder(**settings)


def test_cloudevents_headers_fill_what_the_body_lacks() -> None:
    headers = (("ce_id", b"e9"), ("ce_type", b"like"), ("ce_time", b"2023-11-14T22:13:20Z"))
    event = decoder().interaction(record({"user_id": "u", "item_id": "i"}, headers=headers))
    assert (event.event_id, event.action, event.time) == ("e9", "like", NOW)
    assert decoder().item(record({"item_id": "i"}, headers=headers)).time == NOW


def test_the_body_goes_before_cloudevents_headers() -> None:
    headers = (("ce_id", b"e9"), ("ce_type", b"like"), ("ce_time", b"\xff"))
    event = decoder().interaction(record(interaction(event_id="mine"), headers=headers))
    assert (event.event_id, event.action, event.time) == ("mine", "click", NOW)


def test_an_item_carries_vectors_text_and_attributes() -> None:
    event = {
        "item_id": 5,
        "features": {"image": [0.5, 1, -2], "text": base64_of(1, 2), "unknown": "anything"},
        "text": "A title",
        "attributes": {"genre": ["a", "b"], "price": 3},
    }
    item = decoder(modalities={"image": 3, "text": 2, "audio": 4}).item(record(event))
    assert item.item_id == "5"
    assert item.time is None
    assert item.features.keys() == {"image", "text"}
    assert item.features["image"].dtype == np.float32
    assert item.features["image"].tolist() == [0.5, 1, -2]
    assert item.features["text"].tolist() == [1, 2]
    assert (item.text, item.attributes, item.deleted) == ("A title", {"genre": ["a", "b"], "price": 3}, False)


@pytest.mark.parametrize(
    "frames",
    [
        [[1, 2], [3, 4], [5, 6]],
        [base64_of(1, 2), [3, 4], base64_of(5, 6)],
        base64_of(1, 2, 3, 4, 5, 6),
    ],
)
def test_frames_are_cut_to_the_most_configured(frames: Any) -> None:
    video = decoder(modalities={"video": 2}, frames={"video": 2})
    for raw in (msgspec.json.encode, msgspec.msgpack.encode):
        item = video.item(record(raw({"item_id": "i", "features": {"video": frames}})))
        assert item.features["video"].tolist() == [[1, 2], [3, 4]]


def test_one_vector_is_one_frame() -> None:
    video = decoder(modalities={"video": 2}, frames={"video": 9})
    assert video.item(record({"item_id": "i", "features": {"video": [1, 2]}})).features["video"].shape == (1, 2)


def test_messagepack_may_give_vectors_as_raw_bytes() -> None:
    event = {"item_id": "i", "features": {"image": np.array([1, 2], "<f4").tobytes()}}
    item = decoder(modalities={"image": 2}).item(record(msgspec.msgpack.encode(event)))
    assert item.features["image"].tolist() == [1, 2]


def test_messagepack_attributes_become_what_json_can_hold() -> None:
    event = {"item_id": "i", "attributes": {"raw": b"\x00", "counts": {1: 2}}}
    item = decoder().item(record(msgspec.msgpack.encode(event)))
    assert item.attributes == {"raw": "AA==", "counts": {"1": 2}}


def test_a_user_carries_the_configured_features() -> None:
    user = decoder(user_features={"taste": 2}).user(record({"user_id": 3, "features": {"taste": [1, 2], "x": 0}}))
    assert (user.user_id, user.time, user.deleted) == ("3", None, False)
    assert user.features["taste"].tolist() == [1, 2]


def test_deleted_events_and_null_values_delete() -> None:
    gone = {"deleted": True, "features": {"image": [1, 2, 3]}, "time": NOW}
    item = decoder(modalities={"image": 2}).item(record({"item_id": "i"} | gone))
    assert (item.item_id, item.deleted, item.time, item.features) == ("i", True, NOW, {})
    assert decoder().user(record({"user_id": "u"} | gone)).deleted
    item = decoder().item(record(None, key="é".encode()))
    assert (item.item_id, item.deleted, item.time) == ("é", True, None)
    user = decoder().user(record(None, key=b"u"))
    assert (user.user_id, user.deleted) == ("u", True)
