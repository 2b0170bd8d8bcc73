"""Segment files give back exactly what was committed, or say that they cannot."""

from __future__ import annotations

from pathlib import Path

import pytest

from service import segments
from service.errors import CorruptCheckpoint
from service.segments import Committed, Extent, Segment, SegmentStore


@pytest.fixture
def segment(tmp_path: Path) -> Segment:
    return Segment(tmp_path / "log.seg")


def test_payloads_come_back_in_order(segment: Segment) -> None:
    at = Committed()
    payloads = [b"one", b"\x00" * 1000, b"three"]
    for payload in payloads:
        at = segment.append(payload, at)
    assert list(segment.read(at)) == payloads
    assert at.frames == 3
    assert at.length == segment.path.stat().st_size


def test_an_empty_payload_appends_nothing(segment: Segment) -> None:
    assert segment.append(b"", Committed()) == Committed()
    assert not segment.path.exists()
    assert list(segment.read(Committed())) == []


def test_many_payloads_at_once_are_the_same_bytes_as_one_by_one(segment: Segment, tmp_path: Path) -> None:
    other = Segment(tmp_path / "other.seg")
    at = other.append(b"b", other.append(b"a", Committed()))
    assert segment.extend([b"a", b"", b"b"], Committed()) == at
    assert segment.path.read_bytes() == other.path.read_bytes()


def test_an_older_commit_still_reads_its_own_prefix(segment: Segment) -> None:
    first = segment.append(b"one", Committed())
    segment.append(b"two", first)
    assert list(segment.read(first)) == [b"one"]


def test_a_torn_tail_is_cut_before_the_next_append(segment: Segment) -> None:
    first = segment.append(b"one", Committed())
    segment.append(b"never committed", first)
    second = segment.append(b"two", first)
    assert list(segment.read(second)) == [b"one", b"two"]
    assert segment.path.stat().st_size == second.length


def test_a_payload_longer_than_a_frame_comes_back_whole(segment: Segment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "MAX_FRAME_BYTES", 4)
    at = segment.append(b"x", segment.append(b"0123456789", Committed()))
    assert at.frames == 4
    assert list(segment.read(at)) == [b"0123456789", b"x"]


@pytest.mark.parametrize("bit", range(8))
def test_any_flipped_bit_is_noticed_before_its_payload_is_handed_out(segment: Segment, bit: int) -> None:
    at = segment.append(b"two", segment.append(b"one", Committed()))
    good = segment.path.read_bytes()
    for place in range(len(good)):
        damaged = bytearray(good)
        damaged[place] ^= 1 << bit
        segment.path.write_bytes(damaged)
        given: list[bytes] = []
        with pytest.raises(CorruptCheckpoint, match=r"log\.seg is damaged"):
            given.extend(segment.read(at))
        assert given in ([], [b"one"])


@pytest.mark.parametrize("length", [0, 1, 50])
def test_a_file_shorter_than_committed_is_damage(segment: Segment, length: int) -> None:
    at = segment.append(b"two" * 10, segment.append(b"one", Committed()))
    segment.path.write_bytes(segment.path.read_bytes()[:length])
    with pytest.raises(CorruptCheckpoint, match="damaged"):
        list(segment.read(at))
    with pytest.raises(CorruptCheckpoint, match=rf"{length} bytes of the {at.length}"):
        segment.append(b"more", at)


def test_a_missing_file_is_damage(segment: Segment) -> None:
    with pytest.raises(CorruptCheckpoint, match="missing"):
        list(segment.read(Committed(length=40, frames=1, digest="ab" * 32)))


def test_frames_of_another_file_are_not_taken_for_ours(tmp_path: Path) -> None:
    mine, other = Segment(tmp_path / "mine.seg"), Segment(tmp_path / "other.seg")
    at = mine.append(b"mine!", Committed())
    other.append(b"other", Committed())
    mine.path.write_bytes(other.path.read_bytes())
    with pytest.raises(CorruptCheckpoint):
        list(mine.read(at))


def test_a_store_appends_to_several_segments_and_reads_them_again_and_again(tmp_path: Path) -> None:
    store = SegmentStore(tmp_path / "segments")
    extent = store.append({"events": b"e1", "items": b""}, Extent())
    extent = store.append({"events": b"e2", "items": b"i2"}, extent)
    chunks = store.chunks(extent)
    for _ in range(2):
        assert {name: list(chunk) for name, chunk in chunks.items()} == {"events": [b"e1", b"e2"], "items": [b"i2"]}


def test_a_fork_holds_the_same_and_leaves_the_old_generation_alone(tmp_path: Path) -> None:
    store = SegmentStore(tmp_path / "segments")
    extent = store.append({"events": b"e1"}, Extent())
    longer = store.append({"events": b"e2"}, extent)
    assert longer.reaches_beyond(extent)
    assert not extent.reaches_beyond(longer)
    fork = store.append({"events": b"other"}, store.fork(extent))
    assert list(store.chunks(fork)["events"]) == [b"e1", b"other"]
    assert list(store.chunks(longer)["events"]) == [b"e1", b"e2"]
    assert not fork.reaches_beyond(longer)
    assert store.generations() == [0, 1]


def test_verifying_a_shorter_extent_after_a_longer_one_still_notices_a_wrong_digest(tmp_path: Path) -> None:
    store = SegmentStore(tmp_path / "segments")
    short = store.append({"events": b"e1"}, Extent())
    long = store.append({"events": b"e2"}, short)
    store.verify(long)
    store.verify(short)
    wrong = Extent(0, {"events": Committed(short.committed["events"].length, 1, "ab" * 32)})
    with pytest.raises(CorruptCheckpoint):
        store.verify(wrong)


@pytest.mark.parametrize("name", ["", "../up", "Upper", "a.b", "a/b"])
def test_a_segment_name_cannot_leave_its_directory(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="not a segment name"):
        SegmentStore(tmp_path).segment(0, name)
