"""Rolling back moves the model and its vectors back together, while users, items and deletions stay today's; the same
on a running daemon and without one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from service.checkpoints import CheckpointStore
from service.control import pause, promote, resume, rollback, status, versions
from service.daemon import run
from service.errors import CommandRefused, NoCheckpoint
from streams.redis_keys import Pointer
from tests.daemon_process import DaemonProcess, Place
from tests.integration.rollback_history import (
    DIM,
    GONE_ITEM,
    GONE_USER,
    NEW_ITEM,
    TARGET,
    TOLERANCE,
    History,
    Served,
    copied,
    five_phases,
    look,
    message,
    same_weights,
)

pytestmark = [pytest.mark.servers, pytest.mark.slow]


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> History:
    return five_phases(tmp_path_factory.mktemp("rollback"))


@pytest.fixture
def place(history: History, tmp_path: Path) -> Iterator[Place]:
    with copied(history, tmp_path / "place") as place:
        yield place


def check_rolled_back(history: History, place: Place, before: Pointer, version: int) -> Served:
    """What must hold after a rollback to `TARGET`, whoever carried it out."""
    now, then = look(place), history.at_target
    # The version and the pointer go on, the weights go back.
    assert now.pointer.version == version > before.version
    assert now.pointer.previous == before.version
    assert same_weights(place, version, TARGET)
    assert not same_weights(place, before.version, TARGET)
    # Today's catalogue: what came is there, what was deleted is not.
    mentioned = {json.loads(m.value)["item_id"] for m in history.sent if m.kind != "users"}
    assert now.items.keys() == mentioned - {GONE_ITEM}
    assert GONE_ITEM in then.items
    assert NEW_ITEM not in then.items
    assert GONE_USER in then.users
    assert GONE_USER not in now.users
    # N's weights: whatever is not popularity is as it was when N was served …
    for item in then.items.keys() & now.items.keys():
        # its length is another for an item that was untouched then and is no longer (`models.calibration`)
        np.testing.assert_allclose(direction(now.items[item]), direction(then.items[item]), rtol=0, atol=TOLERANCE)
    assert np.any(now.items[NEW_ITEM][:DIM])
    # … over today's histories, whose ages and whose popularity, which is subtracted from them, go on: who has not
    # clicked since is much nearer to who it was then than to who it was until now, and who has is another.
    was, is_now, until_now = (one.users[history.quiet][:DIM] for one in (then, now, history.at_last))
    assert np.linalg.norm(is_now - was) < np.linalg.norm(until_now - was) / 3
    assert not np.allclose(now.users[history.returned][:DIM], then.users[history.returned][:DIM], atol=1e-3)
    return now


def direction(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    """The personal part of a published vector, of length 1."""
    return np.asarray(vector[:DIM] / np.linalg.norm(vector[:DIM]))


def test_the_same_result_with_a_daemon_and_without(history: History, tmp_path: Path) -> None:
    with copied(history, tmp_path / "without") as place:
        assert run(place.config, once=True) == 0
        before = look(place).pointer
        said = rollback(place.config, to=TARGET, relearn=False, dry_run=False)
        assert (said["from"], said["to"], said["published"]) == (before.version, TARGET, True)
        without = check_rolled_back(history, place, before, said["version"])
        assert status(place.config)["promotion"] == "held"

    with copied(history, tmp_path / "with") as place:
        daemon = DaemonProcess(place)
        with daemon:
            daemon.wait_ready()
            assert daemon.post("/admin/rollback", {"to": TARGET}, token=None)[0] == 401
            assert daemon.post("/admin/rollback", {"to": TARGET}, token="guessed")[0] == 401
            code, said = daemon.post("/admin/rollback", {"to": TARGET})
            assert code == 200, said
            within = check_rolled_back(history, place, before, said["version"])
            goes_on_while_held(history, place, daemon, said["version"])
            assert daemon.terminate() == 0, daemon.tail()

    assert within.pointer.version == without.pointer.version
    for one, other in ((within.items, without.items), (within.users, without.users)):
        assert one.keys() == other.keys()
        for id_ in one:
            np.testing.assert_allclose(one[id_], other[id_], rtol=0, atol=TOLERANCE)


def goes_on_while_held(history: History, place: Place, daemon: DaemonProcess, version: int) -> None:
    """After a rollback on a running daemon: held, learning goes on, until `resume`, and `promote` serves what was
    held."""
    events = sum(line.events for line in place.lines())
    state = daemon.status()
    assert (state["promotion"], state["champion"], state["serving"]) == ("held", version, version)
    assert f"to {TARGET}" in state["held_because"]
    assert daemon.metric("headwater_promotion_held") == 1

    first, second = (part for part in np.array_split(np.arange(len(history.more)), 2))
    place.send([history.more[n] for n in first])
    events += sum(history.more[n].kind == "interactions" for n in first)
    daemon.wait_learned(events)
    held = place.lines()[-1]
    assert held.decision == "held"
    assert held.version is not None
    assert held.version > version
    assert look(place).pointer.version == daemon.status()["champion"] == version
    assert daemon.metric("headwater_phases_total", decision="held") >= 1

    code, said = daemon.post("/admin/promote", {"version": held.version})
    assert code == 200, said
    assert look(place).pointer.version == said["version"] > held.version
    assert same_weights(place, said["version"], held.version)
    assert daemon.status()["promotion"] == "on"
    assert daemon.metric("headwater_promotion_held") == 0

    place.send([history.more[n] for n in second])
    events += sum(history.more[n].kind == "interactions" for n in second)
    daemon.wait_learned(events)
    daemon.wait_until("the last version", lambda: look(place).pointer.version == place.lines()[-1].version)
    assert place.lines()[-1].decision == "promoted"
    assert GONE_ITEM not in look(place).items
    assert sum(line.events for line in place.lines()) == events


def test_a_dry_run_changes_nothing(place: Place) -> None:
    assert run(place.config, once=True) == 0
    files, served = contents(place), look(place).pointer
    said = [
        rollback(place.config, to=TARGET, relearn=True, dry_run=True),
        promote(place.config, version=TARGET, dry_run=True),
        pause(place.config, dry_run=True),
        resume(place.config, dry_run=True),
    ]
    assert [one["dry_run"] for one in said] == [True] * 4
    assert contents(place) == files
    assert look(place).pointer == served


def contents(place: Place) -> dict[str, bytes]:
    return {
        str(path): path.read_bytes() for path in place.state_dir.rglob("*") if path.is_file() and path.name != "lock"
    }


def test_versions_tell_lineage_decisions_and_reasons(place: Place) -> None:
    assert run(place.config, once=True) == 0
    new = rollback(place.config, to=TARGET, relearn=False, dry_run=False)["version"]
    rows = {row["version"]: row for row in versions(place.config)["versions"]}
    phases = [line.version for line in place.lines()]
    assert [rows[version]["parent"] for version in phases] == [None, *phases[:-1]]
    assert [rows[version]["decision"] for version in phases] == ["promoted"] * len(phases)
    assert all(row["reason"].endswith(".") for row in rows.values())
    assert (rows[new]["decision"], rows[new]["weights_of"], rows[new]["is"]) == ("by hand", TARGET, "champion")
    assert f"version {TARGET}" in rows[new]["reason"]
    assert rows[phases[-1]]["is"] == "latest"


def test_without_a_number_it_is_the_version_served_before(place: Place) -> None:
    assert run(place.config, once=True) == 0
    champion = look(place).pointer.version
    first = rollback(place.config, to=None, relearn=False, dry_run=False)
    assert (first["from"], first["to"]) == (champion, champion - 1)
    second = rollback(place.config, to=None, relearn=False, dry_run=False)
    assert (second["from"], second["to"]) == (first["version"], champion - 2)
    assert same_weights(place, second["version"], champion - 2)


def test_what_cannot_be_served_again_is_refused_with_nothing_changed(place: Place) -> None:
    assert run(place.config, once=True) == 0
    champion = look(place).pointer.version
    files = contents(place)
    with pytest.raises(CommandRefused, match="is the one that is served"):
        rollback(place.config, to=champion, relearn=False, dry_run=False)
    with pytest.raises(NoCheckpoint, match="999"):
        rollback(place.config, to=999, relearn=False, dry_run=False)
    with pytest.raises(NoCheckpoint, match="999"):
        promote(place.config, version=999, dry_run=False)
    changed = {path for path, content in contents(place).items() if files.get(path) != content}
    assert changed == set()
    assert look(place).pointer.version == champion


def test_relearning_goes_on_from_the_old_weights_and_todays_offsets(history: History, place: Place) -> None:
    assert run(place.config, once=True) == 0
    learned = place.lines()
    said = rollback(place.config, to=TARGET, relearn=True, dry_run=False)
    store = CheckpointStore(place.state_dir, keep_versions=99)
    assert store.latest() == store.champion() == said["version"]
    manifest = store.manifest(said["version"])
    assert manifest.offsets == learned[-1].end, "offsets never go back"

    resume(place.config, dry_run=False)
    place.send(history.more)
    assert run(place.config, once=True) == 0
    lines = place.lines()
    assert [line.phase for line in lines] == list(range(1, len(lines) + 1))
    assert lines[: len(learned)] == learned
    next_line = lines[len(learned)]
    assert next_line.start == learned[-1].end
    assert next_line.version is not None
    assert store.manifest(next_line.version).parent == said["version"]
    assert sum(line.events for line in lines) == sum(m.kind == "interactions" for m in [*history.sent, *history.more])


def test_a_rollback_with_redis_away_is_published_on_its_return(history: History, place: Place) -> None:
    with DaemonProcess(place) as daemon:
        daemon.wait_ready()
        before = look(place).pointer
        assert place.redis is not None
        place.redis.kill()
        code, said = daemon.post("/admin/rollback", {"to": TARGET})
        assert code == 200, said
        assert said["published"] is False
        place.redis.start()
        daemon.wait_until("the version in Redis", lambda: published(place) == said["version"])
        daemon.wait_ready()
        # Redis has forgotten what was served before.
        assert said["from"] == before.version
        assert same_weights(place, said["version"], TARGET)
        assert GONE_ITEM not in look(place).items
        assert daemon.terminate() == 0, daemon.tail()


def test_deletions_are_not_taken_for_a_loss(history: History, place: Place) -> None:
    assert run(place.config, once=True) == 0
    served = look(place)
    pause(place.config, dry_run=False)
    gone = sorted(served.items)[:5]
    place.send([*history.more, *(message("items", item, {"item_id": item, "deleted": True}) for item in gone)])
    assert run(place.config, once=True) == 0
    assert place.lines()[-1].decision == "held"
    assert not set(gone) & look(place).items.keys()
    # More than one in a hundred is gone from the served version, as it was asked to be.
    assert run(place.config, once=True) == 0
    assert look(place).pointer.version == served.pointer.version


def published(place: Place) -> int | None:
    with place.sink() as sink:
        pointer = sink.pointer()
    return None if pointer is None else pointer.version
