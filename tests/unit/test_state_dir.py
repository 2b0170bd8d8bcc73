"""A state directory lets one daemon in, and only the one it belongs to."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from service.errors import CorruptCheckpoint, ForeignState, OtherFormat, StateError, StateLocked
from service.sealed import FORMAT, read_number, seal, write_number
from service.state_dir import StateDirectory, lock_holder
from service.state_rights import require_private


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "state"


def test_it_is_created_for_its_owner_alone(root: Path) -> None:
    with StateDirectory.open(root, "shop") as directory:
        assert stat.S_IMODE(root.stat().st_mode) == 0o700
        assert directory.identity.namespace == "shop"
        assert directory.layout.checkpoints.is_dir()


def test_its_identity_lasts(root: Path) -> None:
    with StateDirectory.open(root, "shop") as directory:
        state_id = directory.identity.state_id
    with StateDirectory.open(root, "shop") as directory:
        assert directory.identity.state_id == state_id


def test_a_second_holder_is_told_the_process_of_the_first(root: Path) -> None:
    with (
        StateDirectory.open(root, "shop"),
        pytest.raises(StateLocked, match=rf"process {os.getpid()}\..* Stop that one first"),
    ):
        StateDirectory.open(root, "shop")
    StateDirectory.open(root, "shop").close()


def test_the_lock_of_a_killed_process_is_free_at_once(root: Path) -> None:
    code = f"""
import sys
from service.state_dir import StateDirectory
directory = StateDirectory.open({str(root)!r}, "shop")
print("held", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        assert lock_holder(root) == process.pid
        with pytest.raises(StateLocked, match=str(process.pid)):
            StateDirectory.open(root, "shop")
        process.kill()
        process.wait()
        assert lock_holder(root) is None
        StateDirectory.open(root, "shop").close()


def test_looking_needs_no_lock_and_creates_nothing(root: Path) -> None:
    with pytest.raises(StateError, match="holds no state"):
        StateDirectory.open(root, "shop", lock=False)
    assert not root.exists()
    assert lock_holder(root) is None
    with StateDirectory.open(root, "shop"):
        assert StateDirectory.open(root, "shop", lock=False).identity.namespace == "shop"


@pytest.mark.parametrize("lock", [True, False])
def test_another_namespace_is_refused(root: Path, lock: bool) -> None:
    StateDirectory.open(root, "shop").close()
    with pytest.raises(ForeignState, match=r"'shop', not of 'films'.*state_dir of its own"):
        StateDirectory.open(root, "films", lock=lock)
    StateDirectory.open(root, "shop").close()


@pytest.mark.parametrize(("number", "release"), [(FORMAT + 1, "newer release"), (FORMAT - 1, "older release")])
def test_another_format_is_refused_naming_both_versions(root: Path, number: int, release: str) -> None:
    with StateDirectory.open(root, "shop") as directory:
        other = msgspec.structs.replace(directory.identity, format=number)
        directory.layout.identity.write_bytes(seal(other))
    with pytest.raises(OtherFormat, match=rf"format {number}.*reads formats? (up to )?{FORMAT}\..*{release}"):
        StateDirectory.open(root, "shop")


def test_another_cluster_is_refused_and_a_backfill_takes_the_first_it_meets(root: Path) -> None:
    with StateDirectory.open(root, "shop") as directory:
        assert directory.identity.cluster_id is None
        directory.bind("first", {"interactions": "t1"})
    with StateDirectory.open(root, "shop") as directory:
        directory.bind("first", {"interactions": "t1", "items": "t2"})
        with pytest.raises(ForeignState, match=r"cluster first, not to second.*bootstrap_servers"):
            directory.bind("second", {"interactions": "t1"})
        with pytest.raises(ForeignState, match="Topic items was made anew"):
            directory.bind("first", {"interactions": "t1", "items": "t3"})
    with StateDirectory.open(root, "shop") as directory:
        assert directory.identity.topic_ids == {"interactions": "t1", "items": "t2"}


def test_ids_a_broker_does_not_tell_are_not_compared(root: Path) -> None:
    with StateDirectory.open(root, "shop") as directory:
        directory.bind("", {"interactions": ""})
        assert directory.identity.cluster_id is None
        directory.bind("first", {"interactions": "t1"})
        directory.bind("", {"interactions": ""})
        assert directory.identity.topic_ids == {"interactions": "t1"}


def test_a_lost_identity_is_not_made_up_again(root: Path) -> None:
    with StateDirectory.open(root, "shop") as directory:
        write_number(directory.layout.latest, 1)
        directory.layout.identity.unlink()
    with pytest.raises(StateError, match=r"has LATEST but no identity\.json"):
        StateDirectory.open(root, "shop")
    assert lock_holder(root) is None


def test_a_path_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StateError, match=r"file.* cannot be written"):
        StateDirectory.open(tmp_path / "file" / "state", "shop")


def test_every_flipped_bit_of_identity_and_pointers_is_noticed(root: Path) -> None:
    with StateDirectory.open(root, "shop") as directory:
        layout = directory.layout
        write_number(layout.latest, 42)
    readers: dict[Path, Callable[[], object]] = {
        layout.identity: lambda: StateDirectory.open(root, "shop", lock=False),
        layout.latest: lambda: read_number(layout.latest),
    }
    for path, read in readers.items():
        good = path.read_bytes()
        for place in range(len(good)):
            damaged = bytearray(good)
            damaged[place] ^= 1 << (place % 8)
            path.write_bytes(damaged)
            with pytest.raises(CorruptCheckpoint, match=f"{path.name} is damaged"):
                read()
        path.write_bytes(good)
    StateDirectory.open(root, "shop").close()
    assert read_number(layout.latest) == 42


@pytest.mark.parametrize("content", [b"", b"42", b"42\n", b"-1 6b86b273ff34fce1\n", b"x"])
def test_a_pointer_that_is_empty_or_not_ours_is_damage(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "LATEST").write_bytes(content)
    with pytest.raises(CorruptCheckpoint, match="LATEST is damaged"):
        read_number(tmp_path / "LATEST")


@pytest.mark.parametrize("where", ["", "checkpoints", "LATEST", "segments/g000/events.seg"])
@pytest.mark.parametrize("mode", [0o020, 0o002])
def test_what_others_can_write_is_refused_in_one_sentence(
    root: Path, where: str, mode: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getegid", lambda: -1)  # whoever runs this, the group is another's
    StateDirectory.open(root, "shop").close()
    path = root / where
    path.parent.mkdir(exist_ok=True)
    if not path.is_dir():
        path.write_bytes(b"")
    path.chmod(path.stat().st_mode | mode)
    with pytest.raises(StateError, match=r"can be written by other users \(mode 0\d\d\d\)") as refused:
        StateDirectory.open(root, "shop")
    assert str(path) in refused.value.message
    assert "chmod -R go-w" in refused.value.hint
    path.chmod(path.stat().st_mode & ~mode)
    StateDirectory.open(root, "shop").close()


def test_a_link_in_it_is_refused(root: Path, tmp_path: Path) -> None:
    StateDirectory.open(root, "shop").close()
    (root / "LATEST").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StateError, match="is a link"):
        StateDirectory.open(root, "shop")


def test_it_may_be_reached_through_a_link(root: Path, tmp_path: Path) -> None:
    StateDirectory.open(root, "shop").close()
    (tmp_path / "link").symlink_to(root)
    StateDirectory.open(tmp_path / "link", "shop").close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_belongs_to_another_user_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    StateDirectory.open(root, "shop").close()
    os.chown(root / "identity.json", 12345, 12345)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(StateError, match=r"identity\.json belongs to another user \(number 12345\)"):
        StateDirectory.open(root, "shop")
    os.chown(root / "identity.json", 1000, 1000)  # the rest is root's, who may do anything anyway
    StateDirectory.open(root, "shop").close()


@pytest.mark.parametrize(("group", "refused"), [(10_001, False), (10_002, True)])
def test_a_group_that_is_the_users_own_may_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: int, refused: bool
) -> None:
    """As on a volume of Kubernetes, whose files are given to `fsGroup`."""
    mode = stat.S_IFDIR | stat.S_ISGID | 0o770
    monkeypatch.setattr(Path, "lstat", lambda _: os.stat_result((mode, 0, 0, 1, 0, group, 0, 0, 0, 0)))
    monkeypatch.setattr(os, "geteuid", lambda: 10_001)
    monkeypatch.setattr(os, "getegid", lambda: 10_001)
    if refused:
        with pytest.raises(StateError, match="can be written by other users"):
            require_private(tmp_path)
    else:
        require_private(tmp_path)
