"""What was deleted stays deleted, whichever checkpoint is loaded, until no checkpoint can know it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from service.errors import StateError
from service.manifest import Manifest
from service.segments import Extent
from service.tombstones import Kind, Tombstone, Tombstones
from tests.checkpoint_samples import facts


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tombstones.jsonl"


def stone(id_: str, offset: int, *, kind: Kind = "items", time: float = 1e9, cluster_id: str = "cluster") -> Tombstone:
    return Tombstone(kind=kind, id=id_, time=time, topic="items", partition=0, offset=offset, cluster_id=cluster_id)


def manifest(version: int, *, cluster_id: str | None = "cluster") -> Manifest:
    """Version n has read the items topic up to offset n."""
    known = facts(version, cluster_id=cluster_id)
    fields = {name: getattr(known, name) for name in known.__struct_fields__}
    return Manifest(**fields, version=version, parent=None, resumable=True, files={}, segments=Extent())


def test_a_deletion_applies_to_checkpoints_made_before_it_alone(path: Path) -> None:
    tombstones = Tombstones(path)
    tombstones.add([stone("a", 5), stone("u", 6, kind="users")])
    assert tombstones.pending("items", manifest(5)) == ["a"]
    assert tombstones.pending("items", manifest(6)) == []
    assert tombstones.pending("users", manifest(6)) == ["u"]
    assert tombstones.pending("users", manifest(7)) == []


def test_a_checkpoint_of_another_cluster_may_know_anything(path: Path) -> None:
    tombstones = Tombstones(path)
    tombstones.add([stone("a", 5)])
    assert tombstones.pending("items", manifest(100, cluster_id=None)) == ["a"]


def test_they_survive_reopening_and_are_not_doubled_when_read_again(path: Path) -> None:
    Tombstones(path).add([stone("a", 5)])
    tombstones = Tombstones(path)
    tombstones.add([stone("a", 5), stone("b", 6)])
    again = Tombstones(path)
    assert len(again) == 2
    assert again.pending("items", manifest(1)) == ["a", "b"]


def test_an_id_deleted_announced_and_deleted_again_is_listed_once(path: Path) -> None:
    tombstones = Tombstones(path)
    tombstones.add([stone("a", 5), stone("a", 9)])
    assert tombstones.pending("items", manifest(3)) == ["a"]
    assert tombstones.pending("items", manifest(7)) == ["a"]


def test_a_deletion_is_complete_when_no_kept_checkpoint_predates_it_and_then_its_id_leaves_the_disk(path: Path) -> None:
    tombstones = Tombstones(path)
    tombstones.add([stone("secret", 5), stone("later", 8)])
    assert tombstones.complete([manifest(4), manifest(9)]) == []
    assert tombstones.known_by(stone("secret", 5), [manifest(4), manifest(9)]) == [4]
    assert tombstones.complete([manifest(7), manifest(9)]) == [stone("secret", 5)]
    assert b"secret" not in path.read_bytes()
    assert Tombstones(path).pending("items", manifest(1)) == ["later"]


def test_nothing_is_complete_while_there_is_no_checkpoint(path: Path) -> None:
    tombstones = Tombstones(path)
    tombstones.add([stone("a", 5)])
    assert tombstones.complete([]) == []


def test_overdue_deletions_are_listed(path: Path) -> None:
    tombstones = Tombstones(path)
    tombstones.add([stone("old", 1, time=100.0), stone("new", 2, time=190.0)])
    assert tombstones.overdue(now=200.0, deadline_s=50.0) == [stone("old", 1, time=100.0)]


@pytest.mark.parametrize(
    "spoil", [lambda data: data[:-3], lambda data: data[:-1], lambda data: data[:-9] + bytes(8) + b"\n"]
)
def test_a_torn_line_is_damage_for_no_crash_leaves_one(path: Path, spoil: Callable[[bytes], bytes]) -> None:
    Tombstones(path).add([stone("a", 5)])
    Tombstones(path).add([stone("b", 6)])
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(StateError, match=r"tombstones\.jsonl is damaged in line 2"):
        Tombstones(path)


def test_any_flipped_bit_stops_the_start_rather_than_bring_something_back(path: Path) -> None:
    Tombstones(path).add([stone("a", 5), stone("b", 6)])
    good = path.read_bytes()
    for place in range(len(good)):
        damaged = bytearray(good)
        damaged[place] ^= 1 << (place % 8)
        path.write_bytes(damaged)
        with pytest.raises(StateError, match=r"tombstones\.jsonl is damaged in line [12]"):
            Tombstones(path)
