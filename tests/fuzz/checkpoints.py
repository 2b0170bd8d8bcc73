"""Damaged state directories, opened as the daemon opens them: refused in one sentence, or served whole.

What counts as a fault: an exception that is no `HeadwaterError`, a process that dies or hangs, vectors that are not
finite or not of their length, answers that are not JSON; and, where the digests were left alone, anything served that
is not what an undamaged version serves, bit for bit.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import random
import resource
import shutil
import signal
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
import numpy as np
import structlog
import torch
from prometheus_client import CollectorRegistry

from models.overlay import Overlay
from models.serving import Snapshot
from service.engine import Engine
from service.errors import HeadwaterError
from service.metrics import Metrics
from service.sealed import write_number
from service.state_dir import StateDirectory
from tests.fuzz.in_children import Outcome
from tests.fuzz.stored_state import Files, config_for, damaged, made_right, small_state, versions_in
from tests.fuzz.unchanged import Restored

RIGHT = 0.9
"""Share of the damaged files whose digests are made right again."""
WEIGHTS_SHARE = 0.15
"""Share of the damage that is done to weights: these take ten times as long to read as all the rest."""
PATIENCE_S = 60
MEMORY_BYTES = 8 * 2**30


@dataclass
class CheckpointFuzz:
    """Attempt number n does the same damage whenever and wherever it is made."""

    seed: int
    scratch: Path
    files: Files = field(init=False)

    def __post_init__(self) -> None:
        self.scratch.mkdir(parents=True, exist_ok=True)
        with _quiet():
            self.files = small_state(self.scratch / "made")
        self.root = self.scratch / "state"
        self.config = config_for(self.root)
        self._loaded: dict[str, Any] = {}
        self._attempts = 0
        self._restored, self._metrics = Restored(), Metrics(CollectorRegistry())
        self._whole: dict[tuple[int | None, int | None], bytes] = {}
        self._names = sorted(name for name in self.files if name != "lock")
        self._weights = [name for name in self._names if name.endswith("weights.pt")]
        self._others = [name for name in self._names if name not in self._weights]
        self._remember_whole()

    def prepare(self) -> None:
        """In the child: no attempt may eat the machine's memory."""
        signal.signal(signal.SIGALRM, _give_up)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))

    def attempt(self, number: int) -> Outcome:
        """One damaged directory: what became of it."""
        chance = random.Random(f"{self.seed}:{number}")
        name = chance.choice(self._weights if chance.random() < WEIGHTS_SHARE else self._others)
        right = chance.random() < RIGHT
        content = damaged(self.files, name, chance)
        files = {**self.files, name: content}
        if right:
            with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):  # too broken to be made right
                files = made_right(files, name)
        unchanged = files == self.files
        self._put(files)
        kind = f"{Path(name).name} {'made right' if right else 'as it was'}"
        signal.alarm(PATIENCE_S)
        try:
            with _quiet():
                served, parent, champion = self._serve(files.get("tombstones.jsonl", b""))
        except HeadwaterError as error:
            said = str(error)
            if not said or len(said) > 1000 or "\n" in said:
                return Outcome(kind, "fault", f"not one sentence: {said[:300]!r}")
            return Outcome(kind, "fault", f"refused without damage: {said}") if unchanged else Outcome(kind, "refused")
        finally:
            signal.alarm(0)
        problem, digest = ("", b"") if served is None else self._restored.once(served, _judged)
        if problem:
            return Outcome(kind, "fault", problem)
        # Nothing tells of deletions whose lines are gone as a whole from the end of their file.
        cut = name == "tombstones.jsonl" and self.files[name].startswith(content) and content[-1:] in (b"", b"\n")
        if not right and not cut and self._whole.get((parent, champion)) != digest:
            return Outcome(kind, "fault", f"version {champion} over {parent} is served, and is not what was saved")
        return Outcome(kind, "served" if parent == versions_in(self.files)[-1] else "fell back")

    # -- inside

    def _remember_whole(self) -> None:
        """What undamaged versions serve, whichever of them LATEST and CHAMPION fall back to."""
        versions = versions_in(self.files)
        for latest in versions:
            for champion in versions[: versions.index(latest) + 1]:
                self._put(self.files)
                write_number(self.root / "LATEST", latest)
                write_number(self.root / "CHAMPION", champion)
                for later in versions[versions.index(latest) + 1 :]:  # or it would be taken up again
                    shutil.rmtree(self.root / f"checkpoints/v{later:06d}")
                with _quiet():
                    served, *found = self._serve(self.files["tombstones.jsonl"])
                assert served is not None
                problem, self._whole[found[0], found[1]] = _judged(served)
                assert not problem, "an undamaged state is served whole"

    def _put(self, files: Files) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        for name, data in files.items():
            path = self.root / name
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.write_bytes(data)
        self.root.chmod(0o700)

    def _load(self, file: Any, **how: Any) -> Any:
        """`torch.load`, but what is undamaged is read once: most damage is done to other files than the weights."""
        assert how["weights_only"] is True
        data = file.read()
        key = hashlib.sha256(data).hexdigest()
        if data not in self.files.values():
            return _torch_load(io.BytesIO(data), **how)
        if key not in self._loaded:
            self._loaded[key] = _torch_load(io.BytesIO(data), **how)
        return self._loaded[key]

    def _serve(self, tombstones: bytes) -> tuple[Snapshot | None, int | None, int | None]:
        """What a daemon that starts here serves, and from which versions; None where it has none."""
        undamaged = {id(state["trainer"]["learner"]): key for key, state in self._loaded.items()}
        with (
            StateDirectory.open(self.root, self.config.namespace) as state,
            mock.patch("service.checkpoint_files.torch.load", self._load),
            self._restored.in_use(undamaged, tombstones),
        ):
            engine = Engine(config=self.config, state=state, metrics=self._metrics, clock=time.time)
            engine.interrupted()
            champion = engine.store.champion()
            if champion is None:
                return None, engine.parent, None
            # the same weights over the same memory, where the two are one version: then now and then is enough
            self._attempts += 1
            if champion == engine.parent and self._attempts % 16:
                self._restored.once(engine.parent_snapshot, lambda _: _require_finite(engine.trainer.state_dict()))
                return engine.parent_snapshot, engine.parent, champion
            _require_finite(engine.trainer.state_dict())
            return engine.champion_snapshot(champion), engine.parent, champion


_torch_load = torch.load


def _judged(served: Snapshot) -> tuple[str, bytes]:
    """What is wrong with what is served, empty if nothing; and a digest of all of it."""
    digest = hashlib.sha256(repr((served.item_ids, served.user_ids())).encode())
    for kind, ids in (("items", served.item_ids), ("users", served.user_ids())):
        vectors = served.vectors(kind)  # type: ignore[arg-type]
        digest.update(vectors.tobytes())
        if vectors.shape != (len(ids), served.dim) or vectors.dtype != np.float32:
            return f"{kind} are {vectors.dtype} of shape {vectors.shape}", b""
        if kind == "items" and not np.isfinite(vectors).all():
            return f"a vector of {kind} is not finite", b""
        if not all(type(one) is str for one in ids) or len(set(ids)) != len(ids):
            return f"an id of {kind} is none, or there twice", b""
    for user in (*served.user_ids()[:1], "nobody"):
        msgspec.json.encode(Overlay(served).recommend(user, k=3), enc_hook=lambda value: value.item())
    return "", digest.digest()


def _require_finite(value: Any) -> None:
    if isinstance(value, torch.Tensor):
        found = bool(torch.isfinite(value).all())
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            _require_finite(inner)
        return
    else:
        found = not isinstance(value, float) or math.isfinite(value)
    if not found:
        raise ArithmeticError("learning would go on from numbers that are not finite")


def _give_up(*_: object) -> None:
    raise TimeoutError(f"not done within {PATIENCE_S} s")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No logs, and no waiting for a disk: what is tested is what is read, and the files are thrown away."""
    with structlog.testing.capture_logs(), mock.patch("os.fsync"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.seterr(all="ignore")
        yield


def fuzz_checkpoints(count: int, *, seed: int, first: int = 0) -> Counter[tuple[str, str]]:
    """So many attempts, in this process: for tests. Raises AssertionError at the first fault."""
    with tempfile.TemporaryDirectory(prefix="headwater-fuzz-") as scratch:
        fuzz, counts = CheckpointFuzz(seed, Path(scratch)), Counter[tuple[str, str]]()
        for number in range(first, first + count):
            outcome = fuzz.attempt(number)
            assert outcome.what != "fault", f"seed {seed}, attempt {number}, {outcome.kind}: {outcome.why}"
            counts[outcome.kind, outcome.what] += 1
        return counts
