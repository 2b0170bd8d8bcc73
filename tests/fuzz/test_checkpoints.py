"""A small share of `python -m tests.fuzz --checkpoints`, and that it would find what it looks for."""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from prometheus_client import CollectorRegistry

from service.checkpoint_files import CheckpointFiles
from service.engine import Engine
from service.errors import CorruptCheckpoint
from service.interventions import carry_out
from service.metrics import Metrics
from service.state_dir import StateDirectory
from tests.fuzz.checkpoints import CheckpointFuzz, fuzz_checkpoints
from tests.fuzz.in_children import Outcome, in_children
from tests.fuzz.stored_state import made_right

COUNT = 100


@pytest.mark.slow
def test_damaged_checkpoints_are_refused_or_served_whole() -> None:
    counts = fuzz_checkpoints(COUNT, seed=random.SystemRandom().randrange(2**32))
    told = Counter[str]()
    for (_, what), count in counts.items():
        told[what] += count
    assert told.keys() == {"refused", "served", "fell back"}
    assert sum(count for (kind, _), count in counts.items() if kind.endswith("made right")) > 0.8 * COUNT


@pytest.fixture(scope="module")
def fuzz(tmp_path_factory: pytest.TempPathFactory) -> CheckpointFuzz:
    return CheckpointFuzz(1, tmp_path_factory.mktemp("fuzz"))


def test_digests_made_right_are_right(fuzz: CheckpointFuzz) -> None:
    for name in fuzz._names:
        right = made_right(fuzz.files, name)
        assert [changed for changed in right if right[changed] != fuzz.files[changed]] == [], name


def test_the_same_number_is_the_same_damage(fuzz: CheckpointFuzz) -> None:
    first = [fuzz.attempt(number) for number in range(8)]
    assert [fuzz.attempt(number) for number in range(8)] == first


def _found(fuzz: CheckpointFuzz, names: list[str], *, right: bool, most: int = 80) -> bool:
    """Whether a fault is found within so many attempts on these files alone."""
    fuzz = copy.copy(fuzz)
    fuzz._weights, fuzz._others = names, names
    with mock.patch("tests.fuzz.checkpoints.RIGHT", float(right)):
        for number in range(most):
            try:
                if fuzz.attempt(number).what == "fault":
                    return True
            except Exception:  # noqa: BLE001 - any is what is looked for
                return True
    return False


def _with_state(fuzz: CheckpointFuzz, change: Callable[[dict[str, Any]], object]) -> None:
    """Puts the state directory there with the newest version's state changed, and its digests right."""
    name = fuzz._weights[-1]
    state = torch.load(io.BytesIO(fuzz.files[name]), weights_only=True)
    change(state["trainer"]["learner"])
    out = io.BytesIO()
    torch.save(state, out)
    fuzz._put(made_right({**fuzz.files, name: out.getvalue()}, name))


DAMAGE: dict[str, Callable[[dict[str, Any]], object]] = {
    "a moment that is not finite": lambda s: s["optimizer"]["state"][0]["exp_avg"].view(-1)[0].fill_(torch.nan),
    "a negative second moment": lambda s: s["optimizer"]["state"][0]["exp_avg_sq"].view(-1)[0].fill_(-1.0),
    "uphill steps": lambda s: s["optimizer"]["param_groups"][0].update(maximize=True),
    "events that there are not": lambda s: s["popularity"].update(position=10**6),
    "a row too many": lambda s: s["bias"].update(
        {name: torch.cat((part, part[-1:])) for name, part in s["bias"].items()}
    ),
    "a weight less": lambda s: s["scorer"].popitem(),
    "another type": lambda s: s["residual"].update(power=s["residual"]["power"].double()),
    "a step before the first": lambda s: s.update(steps=-1),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_state_that_no_learner_wrote_is_refused_whatever_its_digest(fuzz: CheckpointFuzz, damage: str) -> None:
    _with_state(fuzz, DAMAGE[damage])
    assert "cannot be used" in _opened(fuzz)


def test_it_finds_a_loader_that_trusts_digests(fuzz: CheckpointFuzz) -> None:
    _with_state(fuzz, DAMAGE["a moment that is not finite"])
    with mock.patch("service.trainer.Trainer.check"), pytest.raises(ArithmeticError):
        fuzz._serve(b"")


@pytest.mark.slow
def test_it_finds_rows_that_nobody_checks(fuzz: CheckpointFuzz) -> None:
    with mock.patch("models.stored.check_events"), mock.patch("service.resuming.content_explained"):
        assert _found(fuzz, ["segments/g000/events.seg"], right=True)


@pytest.mark.slow
def test_it_finds_bytes_that_nobody_hashes(fuzz: CheckpointFuzz) -> None:
    class AnyDigest(str):
        def __ne__(self, other: object) -> bool:
            return False

        __hash__ = str.__hash__

    manifest = CheckpointFiles.manifest

    def trusting(files: CheckpointFiles, version: int) -> Any:
        found = manifest(files, version)
        for entry in found.files.values():
            object.__setattr__(entry, "sha256", AnyDigest(entry.sha256))
        return found

    with mock.patch.object(CheckpointFiles, "manifest", trusting):
        assert _found(fuzz, fuzz._weights, right=False)


class Deadly:
    """Attempt 3 kills its process, attempt 5 raises."""

    def prepare(self) -> None: ...

    def attempt(self, number: int) -> Outcome:
        if number == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        if number == 5:
            raise ValueError("five")
        return Outcome("some", "served")


def test_a_child_that_dies_is_told_and_the_rest_goes_on() -> None:
    tally = in_children(Deadly(), range(8), batch=6, progress=lambda _done, _tally: None)
    assert [number for number, *_ in tally.faults] == [3, 5]
    assert tally.counts["some", "served"] == 6


# -- what is planted


class Payload:
    """What a pickle would run when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.write_text, (self.path, "run")


@pytest.mark.parametrize("form", ["a pickle", "an archive as torch writes it", "inside a state"])
def test_a_pickle_that_would_run_code_is_refused_and_not_run(fuzz: CheckpointFuzz, tmp_path: Path, form: str) -> None:
    mark, planted = tmp_path / "mark", tmp_path / "planted"
    value: Any = Payload(mark)
    if form == "a pickle":
        planted.write_bytes(pickle.dumps(value))
    else:
        torch.save({"trainer": {"learner": value}, "maxima": []} if form == "inside a state" else value, planted)
    pickle.loads(planted.read_bytes()) if form == "a pickle" else torch.load(planted, weights_only=False)
    assert mark.read_text() == "run", "it is a program"
    mark.unlink()
    for name in fuzz._weights:
        fuzz._put(made_right({**fuzz.files, name: planted.read_bytes()}, name))
        outcome = _opened(fuzz)
        assert outcome.startswith(str(fuzz.root / Path(name).parent)) or name != fuzz._weights[-1]
        assert not mark.exists()


def _opened(fuzz: CheckpointFuzz) -> str:
    """What a start on this directory says."""
    try:
        fuzz._serve(b"")
    except CorruptCheckpoint as error:
        return error.message
    return ""


def test_weights_that_are_finite_but_serve_what_is_not_are_refused(fuzz: CheckpointFuzz) -> None:
    def enlarge(state: dict[str, Any]) -> None:
        for tensor in state["scorer"].values():
            if tensor.is_floating_point():
                tensor.fill_(3e38)

    _with_state(fuzz, enlarge)
    assert "not finite" in _opened(fuzz)


@pytest.mark.parametrize("name", ["parent", "weights_of"])
def test_a_version_that_descends_from_itself_is_refused_and_not_followed_for_ever(
    fuzz: CheckpointFuzz, name: str
) -> None:
    path = fuzz._weights[-1].replace("weights.pt", "manifest.json")
    manifest = json.loads(fuzz.files[path])
    manifest.pop("digest")
    manifest[name] = manifest["version"]
    files = {**fuzz.files, path: json.dumps(manifest, indent=2).encode()}
    fuzz._put(made_right(files, path))
    assert fuzz._serve(b"")[1:] == (1, 1), "the version before it takes its place"


def test_a_rollback_to_a_damaged_version_changes_nothing(fuzz: CheckpointFuzz) -> None:
    name = fuzz._weights[0]
    fuzz._put(made_right({**fuzz.files, name: b"PK\x03\x04 and nothing more"}, name))
    with StateDirectory.open(fuzz.root, fuzz.config.namespace) as state:
        engine = Engine(config=fuzz.config, state=state, metrics=Metrics(CollectorRegistry()), clock=time.time)
        with pytest.raises(CorruptCheckpoint, match="v000001"):
            carry_out(engine, "rollback", {"to": 1})
        assert not engine.hold.held
        assert engine.store.numbers() == [1, 2]
