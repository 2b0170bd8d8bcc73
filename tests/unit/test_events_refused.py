"""Each reason for which an event is refused, and the page that lists them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import pytest

from streams.event_values import REASONS, TOO_MANY_IDS
from streams.events import DecodeError, Record
from tests.unit.test_events import NOW, NOW_MS, base64_of, decoder, interaction, record

Kind = Literal["interaction", "item", "user"]
NAN = float("nan")
DEEP = b"[" * 100_000


def raw(**changes: Any) -> bytes:
    return msgspec.json.encode(interaction(**changes))


def with_text(field: str, text: bytes) -> bytes:
    """An interaction whose `field` is the given JSON text."""
    return raw(**{field: "@"}).replace(b'"@"', text)


def image(value: Any) -> dict[str, Any]:
    return {"item_id": "i", "features": {"image": value}}


def video(value: Any) -> dict[str, Any]:
    return {"item_id": "i", "features": {"video": value}}


def refused(kind: Kind, refused_record: Record) -> DecodeError:
    strict = decoder(modalities={"image": 2, "video": 2}, frames={"video": 3}, user_features={"taste": 2})
    with pytest.raises(DecodeError) as caught:
        getattr(strict, kind)(refused_record)
    return caught.value


CASES: list[tuple[str, Kind, Any]] = [
    ("no_value", "interaction", None),
    ("no_value", "item", None),
    ("no_value", "user", None),
    ("too_large", "interaction", raw(note="x" * 5_000_000)),
    ("not_json", "interaction", b""),
    ("not_json", "interaction", b"user u clicked i"),
    ("not_json", "interaction", raw() + b"x"),
    ("not_json", "interaction", raw()[:-3]),
    ("not_json", "interaction", with_text("note", b"'single'")),
    ("not_json", "item", b'{"item_id":"i","text":"\\ud800"}'),
    ("not_msgpack", "interaction", msgspec.msgpack.encode(interaction())[:-1]),
    ("not_msgpack", "interaction", b"\x85"),
    ("not_msgpack", "item", b"\x81\xaaattributes\x81\xa1x\x81\x80\x01"),
    ("not_utf8", "interaction", with_text("user_id", b'"\xff"')),
    ("not_utf8", "interaction", b"\x81\xa7user_id\xa1\xff"),
    ("too_deep", "interaction", b'{"note":' + DEEP),
    ("too_deep", "interaction", b"\x81\xa4note" + b"\x91" * 100_000),
    ("missing_field", "interaction", {}),
    ("missing_field", "interaction", interaction(user_id=None)),
    ("missing_field", "interaction", interaction(item_id=None)),
    ("missing_field", "interaction", interaction(action=None)),
    ("missing_field", "interaction", interaction(time=None)),
    ("missing_field", "item", {"time": NOW}),
    ("missing_field", "user", {"time": NOW}),
    ("wrong_type", "interaction", b"[1]"),
    ("wrong_type", "interaction", b"null"),
    ("wrong_type", "interaction", interaction(user_id=True)),
    ("wrong_type", "interaction", interaction(item_id=1.5)),
    ("wrong_type", "interaction", interaction(action=3)),
    ("wrong_type", "interaction", interaction(value="4")),
    ("wrong_type", "interaction", interaction(value=True)),
    ("wrong_type", "interaction", interaction(time=True)),
    ("wrong_type", "interaction", b"\x81\x01\x02"),
    ("wrong_type", "item", {"item_id": "i", "deleted": "yes"}),
    ("wrong_type", "item", {"item_id": "i", "features": [1, 2]}),
    ("wrong_type", "item", {"item_id": "i", "attributes": [1]}),
    ("wrong_type", "item", msgspec.msgpack.encode({"item_id": "i", "attributes": {"x": msgspec.msgpack.Ext(5, b"")}})),
    ("wrong_type", "item", image([1, "2"])),
    ("wrong_type", "item", msgspec.msgpack.encode(image([1, True]))),
    ("wrong_type", "item", msgspec.msgpack.encode(image(3))),
    ("wrong_type", "item", image([[1, 2]])),
    ("bad_id", "interaction", interaction(user_id="")),
    ("bad_id", "interaction", interaction(user_id="x" * 513)),
    ("bad_id", "interaction", interaction(user_id="é" * 257)),
    ("bad_id", "interaction", interaction(item_id="a\0b")),
    ("bad_id", "interaction", interaction(event_id="")),
    ("bad_id", "interaction", interaction(item_id=10**600)),
    ("bad_id", "interaction", with_text("item_id", b"1" * 5000)),
    ("bad_id", "interaction", with_text("item_id", b'"\\ud800"')),
    ("bad_id", "interaction", with_text("user_id", b'"a\\udc00b"')),
    ("bad_action", "interaction", interaction(action="")),
    ("bad_action", "interaction", interaction(action="x" * 513)),
    ("bad_time", "interaction", interaction(time="yesterday")),
    ("bad_time", "interaction", interaction(time="2023-11-14T22:13:20")),
    ("bad_time", "interaction", interaction(time="1700000000")),
    ("absurd_value", "interaction", interaction(value=1e30)),
    ("absurd_value", "interaction", interaction(value=-2e9)),
    ("absurd_time", "interaction", interaction(time=0)),
    ("absurd_time", "interaction", interaction(time=-(10**15))),
    ("absurd_time", "interaction", interaction(time=NOW + 3601)),
    ("absurd_time", "interaction", interaction(time=NOW * 1e6)),
    ("absurd_time", "interaction", interaction(time="0001-01-01T00:00:00+14:00")),
    ("absurd_time", "item", {"item_id": "i", "time": NOW + 3601}),
    ("absurd_time", "user", {"user_id": "i", "time": 0}),
    ("not_finite", "interaction", with_text("value", b"NaN")),
    ("not_finite", "interaction", with_text("value", b"-Infinity")),
    ("not_finite", "interaction", with_text("value", b"1e999")),
    ("not_finite", "interaction", with_text("time", b"1e999")),
    ("not_finite", "interaction", msgspec.msgpack.encode(interaction(value=NAN))),
    ("not_finite", "interaction", msgspec.msgpack.encode(interaction(time=NAN))),
    ("not_finite", "item", image(base64_of(1, NAN))),
    ("not_finite", "item", image([1, 1e300])),
    ("not_finite", "item", video([[1, 2], [3, 1e300]])),
    ("not_base64", "item", image("not base64!")),
    ("not_base64", "item", image("é")),
    ("wrong_length", "item", image([1, 2, 3])),
    ("wrong_length", "item", image([])),
    ("wrong_length", "item", image(base64_of(1))),
    ("wrong_length", "item", image("AAAA")),
    ("wrong_length", "item", video([])),
    ("wrong_length", "item", video([1, 2, 3, 4])),
    ("wrong_length", "item", video([[1, 2], [3]])),
    ("wrong_length", "item", video(base64_of(1, 2, 3))),
    ("wrong_length", "user", {"user_id": "u", "features": {"taste": [1]}}),
]


@pytest.mark.parametrize(("reason", "kind", "value"), CASES)
def test_an_unusable_event_is_refused_with_its_reason(reason: str, kind: Kind, value: Any) -> None:
    sent = record(value)
    error = refused(kind, sent)
    assert error.reason == reason
    assert error.record is sent
    assert error.detail.endswith(".")
    assert "\n" not in error.detail
    assert len(error.detail) < 300


def test_every_reason_is_given_by_some_event() -> None:
    assert {reason for reason, _, _ in CASES} == set(REASONS) - {TOO_MANY_IDS}  # what a phase finds of several events


def test_a_tombstone_with_an_unusable_key_is_refused() -> None:
    assert refused("item", record(None, key=b"")).reason == "bad_id"
    assert refused("user", record(None, key=b"\xff")).reason == "bad_id"


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (("ce_time", b"soon"), "bad_time"),
        (("ce_time", b"2023-11-14T22:13:20"), "bad_time"),
        (("ce_time", b"\xff"), "not_utf8"),
        (("ce_id", b""), "bad_id"),
        (("ce_id", b"\xff"), "not_utf8"),
        (("ce_type", b""), "bad_action"),
    ],
)
def test_unusable_cloudevents_headers_are_refused(header: tuple[str, bytes], reason: str) -> None:
    body = interaction(time=None, action=None)
    filled = (("ce_time", b"2023-11-14T22:13:20Z"), ("ce_type", b"view"), header)
    assert refused("interaction", record(body, headers=filled)).reason == reason


def test_a_record_without_a_timestamp_is_held_to_min_time_only() -> None:
    late = Record("events", 0, 0, -1, None, raw(time=NOW + 10**6))
    assert decoder().interaction(late).time == NOW + 10**6


def test_times_at_the_limits_are_kept() -> None:
    assert decoder().interaction(record(raw(time=NOW_MS + 3_600_000))).time == NOW + 3600
    assert decoder().interaction(record(raw(time=631_152_000))).time == 631_152_000


def test_an_id_of_exactly_the_most_bytes_is_kept() -> None:
    assert decoder().interaction(record(raw(user_id="é" * 256))).user_id == "é" * 256


def test_a_refused_vector_warns_nobody() -> None:
    with np.errstate(all="raise"):
        assert refused("item", record(image([1e300, 1]))).reason == "not_finite"


def test_the_documented_reasons_are_those_of_the_code() -> None:
    page = (Path(__file__).parents[2] / "docs" / "events.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", page.split("## Dead letters")[1].split("\n## ")[0], re.MULTILINE)
    assert dict(rows) == dict(REASONS)
