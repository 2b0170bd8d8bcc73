"""Events from files come row by row in every format, and nothing that a file holds is dropped."""

from __future__ import annotations

import gzip
import itertools
import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from streams import file_tables
from streams.events import DecodeError
from streams.file_tables import EventFileError
from streams.files import FileEvent, Kind, merge_by_time, read_events
from tests.unit.test_events import NOW, base64_of, decoder, interaction, record


def written(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path


def placed(events: Iterator[FileEvent]) -> list[tuple[str, str, float | None]]:
    return [event[:3] for event in events]


def decoded(event: FileEvent, **settings: Any) -> Any:
    kind = {"interactions": "interaction", "items": "item", "users": "user"}[event.kind]
    return getattr(decoder(**settings), kind)(record(event.value))


ROWS: list[dict[str, Any]] = [
    {"item_id": 5, "time": NOW - 9},
    {"user_id": "u1", "features": {"taste": [1, 2]}},
    {"user_id": 17, "item_id": "i1", "action": "click", "time": "2023-11-14T22:13:20Z"},
]


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.json", "a.JSONL", "a.jsonl.gz", "a.2.jsonl.gz"])
def test_json_lines_are_passed_on_byte_for_byte(tmp_path: Path, name: str) -> None:
    lines = [json.dumps(row).encode() for row in ROWS]
    path = written(tmp_path, name, b"\xef\xbb\xbf" + b"\r\n".join(lines) + b"\n\n  \n")
    found = list(read_events(path))
    assert [event.value for event in found] == lines
    assert placed(iter(found)) == [("items", "5", NOW - 9), ("users", "u1", None), ("interactions", "17", NOW)]


def test_mapped_names_place_a_row(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", b'{"uid":"u","ts":1700000000000}')
    assert placed(read_events(path, fields={"user_id": "uid", "time": "ts"})) == [("users", "u", NOW)]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"not json", ("interactions", "", None)),
        (b"[1]", ("interactions", "", None)),
        (b"{}", ("interactions", "", None)),
        (b'{"user_id":"\xff"}', ("interactions", "", None)),
        (b'{"x":' + b"[" * 100_000, ("interactions", "", None)),
        (b'{"item_id":"i","time":"soon"}', ("items", "i", None)),
        (b'{"item_id":"i","time":true}', ("items", "i", None)),
        (b'{"item_id":"i","time":' + b"9" * 300 + b"}", ("items", "i", None)),
        (b'{"item_id":[1]}', ("items", "", None)),
        (b'{"user_id":"u","action":"view"}', ("interactions", "u", None)),
    ],
)
def test_a_line_that_is_no_event_is_passed_on_for_the_decoder_to_refuse(
    tmp_path: Path, line: bytes, expected: tuple[str, str, float | None]
) -> None:
    (event,) = read_events(written(tmp_path, "a.jsonl", line + b"\n"))
    assert event.value == line
    assert event[:3] == expected
    with pytest.raises(DecodeError):
        decoded(event)


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_csv_rows_become_typed_events(tmp_path: Path, name: str) -> None:
    vector = base64_of(1, 2)
    path = written(
        tmp_path,
        name,
        (
            "\ufeffuser_id,item_id,action,value,time,deleted,features.image,attributes,attributes.title,ignored\r\n"
            "u1,7,rating,4.5,1700000000,,,,,x\r\n"
            'u2,8,"v,1",,2023-11-14T22:13:20Z\r\n'
            "\r\n"
            f',7,,,,,{vector},"{{""year"": 1}}","A\nB",\r\n'
            ',8,,,,,"[3, 4]"\r\n'
            "u1,,,,,TRUE\r\n"
        ).encode(),
    )
    rating, view, item, other, user = read_events(path)
    assert [event.kind for event in (rating, view, item, other, user)] == ["interactions"] * 2 + ["items"] * 2 + [
        "users"
    ]
    event = decoded(rating)
    assert (event.user_id, event.item_id, event.action, event.value, event.time) == ("u1", "7", "rating", 4.5, NOW)
    assert (decoded(view).action, view.time) == ("v,1", NOW)
    image = {"modalities": {"image": 2}}
    assert decoded(item, **image).features["image"].tolist() == [1, 2]
    assert decoded(item, **image).attributes == {"year": 1, "title": "A\nB"}
    assert decoded(other, **image).features["image"].tolist() == [3, 4]
    assert decoded(user).deleted


def test_csv_of_other_names_is_mapped(tmp_path: Path) -> None:
    path = written(tmp_path, "ratings.csv", b"userId,movieId,rating,how,timestamp\n1,31,2.5,rating,1260759144\n")
    fields = {"user_id": "userId", "item_id": "movieId", "value": "rating", "action": "how", "time": "timestamp"}
    (event,) = read_events(path, fields=fields)
    assert decoded(event, fields=fields).value == 2.5


def test_a_csv_cell_of_the_wrong_type_is_passed_on_for_the_decoder_to_refuse(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", b"user_id,item_id,action,value,time\nu,i,view,much,1700000000\n")
    (event,) = read_events(path)
    with pytest.raises(DecodeError, match="value"):
        decoded(event)


def test_parquet_rows_become_events(tmp_path: Path) -> None:
    rows = {
        "user_id": pa.array([None, 17], pa.int64()),
        "item_id": ["i1", "i1"],
        "action": [None, "view"],
        "value": pa.array([None, float("nan")], pa.float32()),
        "time": pa.array([None, 1_700_000_000_123_456_789], pa.timestamp("ns")),
        "features": [{"image": [1.0, 2.0]}, None],
        "attributes": pa.array([[("title", "T")], None], pa.map_(pa.string(), pa.string())),
        "attributes.price": [3, None],
        "ignored": pa.array([datetime(2020, 1, 1, tzinfo=UTC)] * 2),
    }
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table(rows), path, row_group_size=1)
    item, view = read_events(path)
    assert (item.kind, item.key, item.time) == ("items", "i1", None)
    assert decoded(item, modalities={"image": 2}).features["image"].tolist() == [1, 2]
    assert decoded(item).attributes == {"title": "T", "price": 3}
    assert (view.kind, view.key, view.time) == ("interactions", "17", 1_700_000_000.123456)
    assert decoded(view).value != decoded(view).value  # NaN, which is how an absent value reads


def test_parquet_vectors_may_be_binary(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    vector = pa.array([[1.0, 2.0]], pa.list_(pa.float32())).values.to_numpy().tobytes()
    pq.write_table(pa.table({"item_id": ["i"], "features.image": pa.array([vector], pa.binary())}), path)
    (item,) = read_events(path)
    assert decoded(item, modalities={"image": 2}).features["image"].tolist() == [1, 2]


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(EventFileError, match=r"headwater\[parquet\]"):
        list(read_events(tmp_path / "a.parquet"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", r"a\.txt is none of"),
        ("a.gz", b"", r"a\.gz is none of"),
        ("a.csv", b"", r"a\.csv:1 names no column"),
        ("a.csv", b"x,y\n1,2\n", r"a\.csv:1 names no column"),
        ("a.csv", b"user_id,item_id\nu,i\nu,i,j\n", r"a\.csv:3 has 3 cells under 2 columns"),
        ("a.csv", b'user_id,item_id\nu,"i', r"a\.csv:2 is not well-formed CSV"),
        ("a.csv", b"user_id,item_id\nu,i\nu,\xff\n", r"a\.csv:3 holds what JSON cannot"),
        ("a.parquet", b"no parquet", r"a\.parquet:1 cannot be read"),
    ],
)
def test_a_file_that_cannot_be_read_names_itself_and_the_line(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(EventFileError, match=message) as caught:
        list(read_events(path))
    assert str(caught.value).count("\n") == 0


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(EventFileError, match=f"{name} cannot be read"):
        list(read_events(tmp_path / name))


@pytest.mark.parametrize("cut", [slice(None, -9), slice(5, None)])
def test_a_broken_gzip_file_gives_what_it_has_and_then_the_line(tmp_path: Path, cut: slice) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b"".join(b'{"item_id":%d}\n' % i for i in range(3)))[cut])
    with pytest.raises(EventFileError, match=r"a\.jsonl\.gz:\d+ cannot be read|not a gzipped"):
        list(read_events(path))


def test_an_endless_line_is_not_taken_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_tables, "MAX_LINE_BYTES", 64)
    events = read_events(written(tmp_path, "a.json", b'{"item_id":1}\n[' + b"0," * 100))
    assert next(events).key == "1"
    with pytest.raises(EventFileError, match=r"a\.json:2 is over 64 bytes"):
        next(events)


def test_reading_is_lazy(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", b'{"item_id":1}\n' * 3 + b"\xff")
    assert [event.key for event in itertools.islice(read_events(path), 2)] == ["1", "1"]


def events_at(kind: Kind, *times: float | None) -> Iterator[FileEvent]:
    return (FileEvent(kind, f"{kind}-{i}", time, b"{}") for i, time in enumerate(times))


def merged(*sources: Iterator[FileEvent], **options: float) -> list[tuple[str, float | None]]:
    return [(event.kind, event.time) for event in merge_by_time(sources, **options)]


def test_files_merge_by_time_with_items_and_users_first() -> None:
    found = merged(events_at("interactions", 1, 2, 3), events_at("items", 2, 4), events_at("users", 2))
    assert found == [
        ("interactions", 1),
        ("items", 2),
        ("users", 2),
        ("interactions", 2),
        ("interactions", 3),
        ("items", 4),
    ]


def test_a_catalogue_without_times_comes_first() -> None:
    found = merged(events_at("interactions", 1), events_at("items", None, None, 5, None))
    assert found == [("items", None), ("items", None), ("interactions", 1), ("items", 5), ("items", None)]


def test_an_absurd_time_holds_nothing_back() -> None:
    found = merged(events_at("interactions", 1, 10**9, 2), events_at("interactions", 3), not_after=100)
    assert [time for _, time in found] == [1, 10**9, 2, 3]


def test_an_interaction_reads_the_same_from_every_format(tmp_path: Path) -> None:
    event = interaction(value=2.0, event_id="e")
    (tmp_path / "a.jsonl").write_bytes(msgspec.json.encode(event))
    (tmp_path / "a.csv").write_text(",".join(event) + "\n" + ",".join(map(str, event.values())))
    pq.write_table(pa.Table.from_pylist([event]), tmp_path / "a.parquet")
    found = [decoded(next(read_events(tmp_path / f"a.{form}"))) for form in ("jsonl", "csv", "parquet")]
    assert found[0] == found[1] == found[2]
