"""Golden bytes of the Redis contract: `docs/redis.md` shows the same ones, for readers in any language to check."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams import redis_keys
from streams.redis_keys import Pointer

POINTER = Pointer(
    version=42,
    previous=41,
    epoch=3,
    dim=2,
    buckets=64,
    items=9724,
    users=610,
    default_user=bytes.fromhex("0000003f000080bf"),
    published_at="2026-01-02T03:04:05Z",
    event_time="2026-01-02T03:04:04Z",
    writer="3f2a",
)
POINTER_JSON = (
    b'{"schema":1,"version":42,"previous":41,"epoch":3,"dim":2,"dtype":"float32","buckets":64,"head":"dot",'
    b'"items":9724,"users":610,"default_user":"AAAAPwAAgL8=","score":"logit","published_at":"2026-01-02T03:04:05Z",'
    b'"event_time":"2026-01-02T03:04:04Z","writer":"3f2a"}'
)
HEAD_HEX = (
    "4857484541443100" "01000000" "01000000" "02000000"  # magic; d = 1, p = 1, two layers
    "02000000" "02000000" "0000803f" "00000040" "000080bf" "0000003f" "00000000" "0000803e"  # (2, 2) weights, 2 biases
    "01000000" "02000000" "0000803f" "000000c0" "0000003f"  # (1, 2) weights, 1 bias
)  # fmt: skip
HEAD_LAYERS = [
    (np.array([[1.0, 2.0], [-1.0, 0.5]]), np.array([0.0, 0.25])),
    (np.array([[1.0, -2.0]]), np.array([0.5])),
]


def test_key_names_are_those_of_the_contract() -> None:
    assert redis_keys.current_key("NS") == "NS:current"
    assert redis_keys.epoch_key("NS") == "NS:epoch"
    assert redis_keys.changes_channel("NS") == "NS:changes"
    assert redis_keys.bucket_key("NS", "items", 7, 42) == "NS:items:{b7}:v42"
    assert redis_keys.bucket_key("NS", "users", 0, 1) == "NS:users:{b0}:v1"
    assert redis_keys.head_key("NS", 42) == "NS:head:v42"


@pytest.mark.parametrize(
    ("id_", "bucket"), [("item-1", 41), ("42", 8), ("", 0), ("カフェ", 48), ("a" * 1000, 3), ("user:7 ", 13)]
)
def test_bucket_is_the_crc32_of_the_utf8_bytes(id_: str, bucket: int) -> None:
    assert redis_keys.bucket_of(id_, 64) == bucket


def test_a_vector_is_raw_little_endian_float32() -> None:
    raw = redis_keys.vector_bytes(np.array([1.0, -0.5, 0.1], dtype=">f8"))
    assert raw.hex() == "0000803f000000bfcdcccc3d"
    assert redis_keys.vector_from_bytes(raw).tolist() == [1.0, -0.5, pytest.approx(0.1)]


def test_a_vector_of_half_a_number_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple"):
        redis_keys.vector_from_bytes(b"12345")


def test_the_pointer_is_the_json_of_the_contract() -> None:
    assert redis_keys.encode_pointer(POINTER) == POINTER_JSON
    assert redis_keys.decode_pointer(POINTER_JSON) == POINTER
    assert POINTER.default_vector().tolist() == [0.5, -1.0]


def test_a_pointer_may_gain_fields_within_its_schema() -> None:
    grown = json.loads(POINTER_JSON) | {"region": "eu", "nested": {"a": [1]}}
    assert redis_keys.decode_pointer(json.dumps(grown).encode()) == POINTER


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": 2}, "update the reader"),
        ({"dim": 3}, "contradicts itself"),
        ({"buckets": 0}, "contradicts itself"),
        ({"dtype": "float16"}, "contradicts itself"),
        ({"version": "42"}, "docs/redis.md"),
        ({"default_user": "§"}, "docs/redis.md"),
    ],
)
def test_a_pointer_this_code_cannot_read_is_refused(change: dict[str, object], said: str) -> None:
    raw = json.dumps(json.loads(POINTER_JSON) | change).encode()
    with pytest.raises(ValueError, match=said):
        redis_keys.decode_pointer(raw)


def test_a_pointer_that_is_not_json_is_refused() -> None:
    with pytest.raises(ValueError, match=r"docs/redis\.md"):
        redis_keys.decode_pointer(b"\xff not json")


@given(
    st.builds(
        Pointer,
        version=st.integers(0, 2**53),
        epoch=st.integers(0, 2**53),
        dim=st.just(1),
        buckets=st.integers(1, 4096),
        items=st.integers(0, 2**40),
        users=st.integers(0, 2**40),
        default_user=st.binary(min_size=4, max_size=4),
        published_at=st.text(),
        event_time=st.none() | st.text(),
        writer=st.text(),
    )
)
def test_any_pointer_survives_its_json(pointer: Pointer) -> None:
    assert redis_keys.decode_pointer(redis_keys.encode_pointer(pointer)) == pointer


def test_every_key_of_a_version_is_recognised_and_no_other() -> None:
    keys = redis_keys.version_keys("a:b", 42, 3)
    assert len(keys) == 7
    assert [redis_keys.parse_versioned_key("a:b", key) for key in keys] == [(42, 1), (42, 2), (42, 3)] * 2 + [(42, 0)]
    for other in (
        "a:b:current",
        "a:b:epoch",
        "a:bc:items:{b1}:v42",
        "a:b:items:{b1}:v",
        "a:b:items:b1:v42",
        "a:b:head:v1x",
    ):
        assert redis_keys.parse_versioned_key("a:b", other) is None


@pytest.mark.parametrize("namespace", ["", "a{b}", "a*", "a b", "a?", "x" * 101, "é"])
def test_a_namespace_that_would_change_slots_or_match_other_keys_is_refused(namespace: str) -> None:
    with pytest.raises(ValueError, match="namespace"):
        redis_keys.check_namespace(namespace)


def test_the_heads_bytes() -> None:
    raw = redis_keys.pack_head(1, 1, HEAD_LAYERS)
    assert raw.hex() == HEAD_HEX
    head = redis_keys.unpack_head(raw)
    assert (head.d, head.p, len(head.layers)) == (1, 1, 2)
    for (weight, bias), (wanted_weight, wanted_bias) in zip(head.layers, HEAD_LAYERS, strict=True):
        np.testing.assert_array_equal(weight, wanted_weight)
        np.testing.assert_array_equal(bias, wanted_bias)


def test_the_heads_score_worked_out_by_hand() -> None:
    head = redis_keys.unpack_head(bytes.fromhex(HEAD_HEX))
    # u = 1, e = 3: hidden = relu([1 + 6, -1 + 1.5 + 0.25]) = [7, 0.75]; out = 7 - 1.5 + 0.5 = 6; and 0.5 * 4 = 2
    # u = 1, e = -1: hidden = relu([-1, -1.25]) = 0; out = 0.5; and 0.5 * -1 besides
    scores = head.scores(np.array([1, 0.5], np.float32), np.array([[3, 4], [-1, -1]], np.float32))
    assert scores.tolist() == [8.0, 0.0]
    assert head.scores(np.array([1, 0.5], np.float32), np.empty((0, 2), np.float32)).shape == (0,)


@pytest.mark.parametrize(
    "layers",
    [
        [],
        [(np.ones((1, 3)), np.ones(1))],
        [(np.ones((2, 2)), np.ones(2))],
        [(np.ones((2, 2)), np.ones(3)), (np.ones((1, 2)), np.ones(1))],
        [(np.ones((2, 2)), np.ones(2)), (np.ones((1, 3)), np.ones(1))],
        [(np.ones(2), np.ones(1))],
    ],
)
def test_layers_that_do_not_chain_are_refused(layers: list[tuple[object, object]]) -> None:
    with pytest.raises(ValueError, match="head"):
        redis_keys.pack_head(1, 1, layers)  # type: ignore[arg-type]


@given(st.integers(0, len(HEAD_HEX) // 2 - 1))
def test_a_head_cut_short_anywhere_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match=r"head|buffer"):
        redis_keys.unpack_head(bytes.fromhex(HEAD_HEX)[:length])


def test_a_head_with_bytes_left_over_or_layers_that_do_not_chain_is_refused() -> None:
    raw = bytes.fromhex(HEAD_HEX)
    with pytest.raises(ValueError, match="left over"):
        redis_keys.unpack_head(raw + b"\0")
    with pytest.raises(ValueError, match="come in"):
        redis_keys.unpack_head(raw[:8] + struct.pack("<I", 5) + raw[12:])


def test_the_pointers_fields_are_all_described() -> None:
    # The page that readers in other languages go by must name each field and show the same bytes.
    page = (Path(__file__).parents[2] / "docs" / "redis.md").read_text(encoding="utf-8")
    assert all(f"`{field.name}`" in page for field in msgspec.structs.fields(Pointer))
    assert POINTER_JSON.decode() in page
    assert "".join(HEAD_HEX.split()) in "".join(page.split())
