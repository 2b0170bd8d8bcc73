"""Checkpoints load as they were saved, or are known to be damaged; there is always one to go on from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from structlog.testing import capture_logs

from service.checkpoints import CheckpointStore
from service.errors import CorruptCheckpoint, NoCheckpoint, OtherFormat, StateError
from service.manifest import by_partition, by_topic
from service.sealed import FORMAT, seal
from tests import checkpoint_samples as samples


@pytest.fixture(autouse=True)
def _no_waiting_for_the_real_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return samples.history(tmp_path / "state", 3)


def reopened(store: CheckpointStore, *, keep_versions: int = 3) -> CheckpointStore:
    """As the next process sees it."""
    return CheckpointStore(store.layout.root, keep_versions=keep_versions)


def flip(path: Path, place: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def weights(store: CheckpointStore, version: int) -> Path:
    return store.layout.checkpoint(version) / "weights.pt"


def manifest_path(store: CheckpointStore, version: int) -> Path:
    return store.layout.checkpoint(version) / "manifest.json"


# Saving and loading


def test_a_checkpoint_comes_back_as_it_was_saved(store: CheckpointStore) -> None:
    saved: dict[str, Any] = {
        "weight": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)),
        "optimizer": {"steps": [1, 2], 0: (torch.zeros(2, dtype=torch.int64), None, True, b"bytes", 0.5, "text")},
    }
    samples.save(store, 4, parent=3, state=saved)
    loaded = reopened(store).load(4)
    assert torch.equal(loaded.state["weight"], saved["weight"])
    assert loaded.state["optimizer"]["steps"] == [1, 2]
    assert loaded.state["optimizer"][0][1:] == (None, True, b"bytes", 0.5, "text")
    assert loaded.manifest == store.manifest(4)
    assert list(loaded.segments["log"]) == [samples.chunk(version) for version in (1, 2, 3, 4)]
    assert loaded.manifest.offsets == {"interactions": {0: 40}, "items": {0: 4}}
    assert loaded.manifest.line == samples.line(4)


def test_each_version_sees_the_log_as_it_was_then(store: CheckpointStore) -> None:
    assert samples.content(store, 2) == (2, samples.chunk(1) + samples.chunk(2))


def test_saving_costs_only_what_is_new(store: CheckpointStore) -> None:
    before = {path: path.stat().st_size for path in store.layout.segments.rglob("*.seg")}
    samples.save(store, 4, parent=3)
    (path,) = before
    assert path.stat().st_size - before[path] < len(samples.chunk(4)) + 40


def test_the_manifest_names_every_part(store: CheckpointStore) -> None:
    manifest = msgspec.json.decode(manifest_path(store, 3).read_bytes())
    assert (manifest["version"], manifest["parent"], manifest["decision"]) == (3, 2, "promoted")
    assert manifest["files"]["weights.pt"]["size"] == weights(store, 3).stat().st_size
    assert len(manifest["files"]["weights.pt"]["sha256"]) == 64


def test_a_rewrite_forgets_the_old_content_once_old_versions_are_pruned(store: CheckpointStore) -> None:
    samples.save(store, 4, parent=3, segments={"log": b"new;"}, rewrite={"log": b"kept;"})
    assert samples.content(store, 4) == (4, b"kept;new;")
    assert samples.content(store, 3)[1] == b"".join(map(samples.chunk, (1, 2, 3)))
    samples.save(store, 5, parent=4)
    store.set_champion(5)
    reopened(store, keep_versions=1).prune()
    on_disk = b"".join(path.read_bytes() for path in store.layout.segments.rglob("*.seg"))
    assert samples.chunk(2) not in on_disk
    assert samples.content(reopened(store), 5) == (5, b"kept;new;" + samples.chunk(5))


@pytest.mark.parametrize("odd", [{"a": {1, 2}}, {"a": [object()]}, {torch.float32: 1}])
def test_a_state_that_could_not_be_loaded_back_is_refused_before_anything_is_written(
    store: CheckpointStore, odd: dict[Any, Any]
) -> None:
    with pytest.raises(ValueError, match="tensors and plain containers only"):
        samples.save(store, 4, parent=3, state=odd)
    assert store.numbers() == [1, 2, 3]


def test_a_version_is_never_overwritten(store: CheckpointStore) -> None:
    with pytest.raises(StateError, match="exists already"):
        samples.save(store, 3, parent=2)


def test_a_served_version_cannot_add_to_the_segments(store: CheckpointStore) -> None:
    with pytest.raises(ValueError, match="cannot add to the segments"):
        samples.save(store, 4, parent=3, resumable=False)


def test_a_full_disk_leaves_the_former_state(store: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(obj: object, file: Any) -> None:
        file.write(b"some bytes")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(StateError, match=r"No space left on device\. Check free space"):
            samples.save(store, 4, parent=3)
    again = reopened(store)
    assert len(again.sweep()) == 1
    assert again.latest() == 3
    samples.save(again, 4, parent=3)
    assert samples.content(again, 4)[1] == b"".join(map(samples.chunk, (1, 2, 3, 4)))


# Version numbers


def test_versions_rise_and_are_not_given_twice(store: CheckpointStore) -> None:
    assert store.allot() == 4
    assert reopened(store).allot() == 5
    assert reopened(store).allot(at_least=50) == 50
    assert reopened(store).allot() == 51


def test_a_damaged_marker_does_not_give_a_used_version(store: CheckpointStore) -> None:
    store.layout.next_version.write_bytes(b"")
    with capture_logs() as logs:
        assert reopened(store).allot() == 4
    assert "NEXT is damaged" in logs[0]["message"]


def test_a_version_reserved_before_a_crash_is_taken_again_unless_something_newer_was_saved(
    store: CheckpointStore,
) -> None:
    version = store.allot()
    assert reopened(store).reserve(version) == version
    samples.save(store, version, parent=3)
    assert reopened(store).reserve(version) == version + 1


# LATEST and CHAMPION


def test_nothing_saved_is_not_damage(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep_versions=3)
    assert store.latest() is None
    assert store.champion() is None
    assert store.sweep() == []
    assert store.versions() == []


def test_a_refused_phase_is_where_learning_resumes_but_not_what_is_served(store: CheckpointStore) -> None:
    samples.save(store, 4, parent=3, decision="refused", state=samples.state(3))
    again = reopened(store)
    assert (again.latest(), again.champion()) == (4, 3)
    assert samples.content(again, 4) == (3, b"".join(map(samples.chunk, (1, 2, 3, 4))))


def test_a_glance_tells_what_the_small_files_say_even_when_it_is_damaged(store: CheckpointStore) -> None:
    assert store.named() == (3, 3)
    flip(weights(store, 3))
    store.layout.latest.write_bytes(b"")
    again = reopened(store)
    assert again.named() == (None, 3)
    assert (again.latest(), again.champion()) == (2, 2)


def test_only_a_version_that_verifies_can_be_champion(store: CheckpointStore) -> None:
    flip(weights(store, 2))
    with pytest.raises(CorruptCheckpoint):
        reopened(store).set_champion(2)
    with pytest.raises(NoCheckpoint, match=r"no version 9.*Kept versions: 1, 2, 3"):
        store.set_champion(9)
    assert reopened(store).champion() == 3


@pytest.mark.parametrize("content", [b"", b"999999 b0", b"2", None])
@pytest.mark.parametrize("pointer", ["LATEST", "CHAMPION"])
def test_a_damaged_pointer_falls_back_to_the_newest_that_verifies(
    store: CheckpointStore, pointer: str, content: bytes | None
) -> None:
    samples.save(store, 4, parent=3, decision="refused", state=samples.state(3))
    path = store.layout.root / pointer
    path.unlink() if content is None else path.write_bytes(content)
    again = reopened(store)
    with capture_logs() as logs:
        assert (again.latest(), again.champion()) == (4, 3)
    if (pointer, content) != ("CHAMPION", None):  # as before the first promotion
        assert f"{pointer} cannot be used: version" in logs[-1]["message"]


@pytest.mark.parametrize("name", ["weights.pt", "manifest.json"])
def test_a_damaged_version_gives_way_to_the_one_before(store: CheckpointStore, name: str) -> None:
    flip(store.layout.checkpoint(3) / name, 40)
    again = reopened(store)
    assert (again.latest(), again.champion()) == (2, 2)
    assert samples.content(again, 2)[0] == 2


def test_a_version_directory_that_vanished_gives_way_too(store: CheckpointStore) -> None:
    weights(store, 3).unlink()
    assert reopened(store).latest() == 2
    manifest_path(store, 3).unlink()
    assert reopened(store).champion() == 2


def test_a_damaged_tail_of_a_segment_spares_the_versions_before_it(store: CheckpointStore) -> None:
    (log,) = store.layout.segments.rglob("log.seg")
    flip(log)
    again = reopened(store)
    assert (again.latest(), again.champion()) == (2, 2)
    assert samples.content(again, 2)[1] == samples.chunk(1) + samples.chunk(2)


def test_with_nothing_left_that_verifies_it_stops_rather_than_begin_anew(store: CheckpointStore) -> None:
    (log,) = store.layout.segments.rglob("log.seg")
    flip(log, 8)
    again = reopened(store)
    for which in (again.latest, again.champion):
        with pytest.raises(CorruptCheckpoint, match=r"No checkpoint in .* verifies.*Restore"):
            which()


def test_learning_that_went_back_cuts_nothing_that_a_newer_version_reads(store: CheckpointStore) -> None:
    good = weights(store, 3).read_bytes()
    flip(weights(store, 3))
    again = reopened(store)
    samples.save(again, again.allot(), parent=again.latest())
    assert samples.content(again, 4)[1] == b"".join(map(samples.chunk, (1, 2, 4)))
    weights(store, 3).write_bytes(good)
    assert samples.content(reopened(store), 3)[1] == b"".join(map(samples.chunk, (1, 2, 3)))
    assert [manifest.version for manifest in again.lineage()] == [1, 2, 4]
    assert [line.phase for line in again.phase_lines()] == [1, 2, 4]


def test_a_champion_that_was_rolled_back_does_not_return_when_the_rollback_is_damaged(store: CheckpointStore) -> None:
    taken_back = samples.facts(4, weights_of=1, rolled_back=True, reason="rollback to 1", line=None)
    samples.save(store, 4, parent=3, facts=taken_back, state=samples.state(1), segments={}, resumable=False)
    store.set_champion(4)
    assert samples.content(store, 4) == (1, b"".join(map(samples.chunk, (1, 2, 3))))
    assert (store.latest(), store.champion()) == (3, 4)
    flip(weights(store, 4))
    again = reopened(store)
    assert (again.latest(), again.champion()) == (3, 1)


# Damage


def test_any_flipped_bit_of_a_checkpoint_is_noticed(store: CheckpointStore) -> None:
    for path in (weights(store, 3), manifest_path(store, 3)):
        good = path.read_bytes()
        for place in range(0, len(good), 11):
            flip(path, place)
            with pytest.raises(CorruptCheckpoint, match=f"{path.name} is damaged"):
                reopened(store).load(3)
            path.write_bytes(good)
    assert samples.content(reopened(store), 3)[0] == 3


def test_a_manifest_under_another_version_is_noticed(store: CheckpointStore) -> None:
    manifest_path(store, 3).write_bytes(manifest_path(store, 2).read_bytes())
    with pytest.raises(CorruptCheckpoint, match="manifest of version 2"):
        store.load(3)


@pytest.mark.parametrize("number", [FORMAT + 1, FORMAT - 1])
def test_another_format_stops_the_start_and_is_no_damage(store: CheckpointStore, number: int) -> None:
    other = msgspec.structs.replace(store.manifest(3), format=number)
    manifest_path(store, 3).write_bytes(seal(other))
    with pytest.raises(OtherFormat, match=rf"format {number}.*reads formats? (up to )?{FORMAT}"):
        reopened(store).latest()


# Tidying


def test_prune_keeps_the_newest_and_what_is_in_use(store: CheckpointStore) -> None:
    for version in (4, 5, 6):
        samples.save(store, version, parent=version - 1)
    store.set_champion(6)
    assert reopened(store, keep_versions=2).prune(protect={1}) == [2, 3, 4]
    assert store.numbers() == [1, 5, 6]
    assert samples.content(reopened(store), 1) == (1, samples.chunk(1))


def test_a_row_of_refusals_leaves_something_to_roll_back_to(store: CheckpointStore) -> None:
    for version in range(4, 9):
        samples.save(store, version, parent=version - 1, decision="refused", state=samples.state(3))
    reopened(store, keep_versions=2).prune()
    assert store.numbers() == [2, 3, 7, 8]


def test_a_deadline_drops_kept_versions_but_never_what_is_in_use(store: CheckpointStore) -> None:
    assert store.prune(drop={1, 2, 3}) == [1, 2]
    assert (store.latest(), store.champion()) == (3, 3)


def test_sweep_removes_what_crashes_left_and_says_so(store: CheckpointStore) -> None:
    root = store.layout.root
    for leftover in (".tmp-v000004", ".old-v000001"):
        (store.layout.checkpoints / leftover).mkdir()
        (store.layout.checkpoints / leftover / "weights.pt").write_bytes(b"half")
    (root / ".LATEST.tmp").write_bytes(b"4")
    (store.layout.segments / "g007").mkdir()
    done = store.sweep()
    assert len(done) == 4
    assert all(".tmp" in entry or ".old" in entry or "generation 7" in entry for entry in done)
    assert store.sweep() == []
    assert (store.latest(), store.champion()) == (3, 3)


def test_a_version_saved_just_before_a_crash_is_not_learned_again(store: CheckpointStore) -> None:
    latest = store.layout.latest.read_bytes()
    samples.save(store, 4, parent=3)
    store.layout.latest.write_bytes(latest)
    again = reopened(store)
    assert again.sweep() == ["Version 4 was complete: LATEST names it now."]
    assert reopened(store).latest() == 4


def test_offsets_change_between_their_two_forms_and_back() -> None:
    position = {("b", 1): 5, ("a", 0): 3, ("b", 0): 4}
    assert by_topic(position) == {"a": {0: 3}, "b": {0: 4, 1: 5}}
    assert by_partition(by_topic(position)) == position
