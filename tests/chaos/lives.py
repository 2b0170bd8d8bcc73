"""Daemons that are killed: real processes on a stream that is all there.

A process that is killed is forked from one that has imported torch already (`forkserver` of the standard library), so
that dozens fit into a minute. Whatever it is killed at, the next one goes on with the same files and servers.
"""

from __future__ import annotations

import faulthandler
import itertools
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch.optim.optimizer import register_optimizer_step_post_hook

from models.calibration import FLOOR, UNTOUCHED
from models.learner import Learner, LearnReport
from models.scorer import SCALES
from service import crash_points
from tests.chaos import planted, witness
from tests.chaos.feed import Feed
from tests.chaos.remains import LEARNED
from tests.daemon_process import Place

MAX_EVENTS = 100
SPOILED = 330
"""The candidate that learns the event at this place of the log comes out spoiled, and is refused.

Its phase is one whose champion ranks the few held-out events well above chance, or nothing could be worse, and comes
after one whose candidate was hardly better than the champion, for the gate pools the two."""
PATIENCE_S = 60.0
"""Longest life of one daemon; only one that hangs lives so long."""
KILLED = -signal.SIGKILL

LOG = "daemon.log"

_fork = multiprocessing.get_context("forkserver")
# The last is what torch imports at the first step of an optimizer, for seconds.
_fork.set_forkserver_preload(["service.daemon", "service.cli", "torch._dynamo", "tests.chaos.lives"])
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Death:
    """How a life is to end."""

    kind: Literal["point", "step", "disk", "moment"]
    """At a named point, after a step of the optimizer, at a call that changes the disk (a write stays half done), or
    after so many seconds, whatever it does then."""
    name: str = ""
    number: int = 1
    """The how manieth point of this name, step or call since the start."""
    seconds: float = 0.0

    def __str__(self) -> str:
        if self.kind == "moment":
            return f"after {self.seconds:.3f} s"
        return f"{self.name}:{self.number}" if self.kind == "point" else f"{self.kind} {self.number}"


def place_on(feed: Feed, directory: Path, *, broker: str, redis_url: str) -> Place:
    """A configuration, namespace and state directory of its own, reading `feed`."""
    number = next(_numbers)
    place = Place(directory / f"place-{number}", f"crash{number}-{os.getpid()}", broker, redis_url)
    kafka = {f"{kind}_topic": topic for kind, topic in feed.topics.items()}
    place.configure(
        # Nothing may be cut by the clock here: uninterrupted runs must be alike.
        kafka={**kafka, "dead_letter_topic": "", "partition_idle_s": 600.0},
        phase={"max_events": MAX_EVENTS, "max_wait_s": 3600.0},
        model={"history": 5},
        train={"batch": 64, "learning_rate": 0.03, "replay_ratio": 0.5, "replay_patience": 0.0},
        # a shadow's weights and figures have to come back just the same
        shadow={"train": {"learning_rate": 0.01, "replay_ratio": 1.0}, "model": {"fusion": "sum"}},
        evaluate={"k": 10, "max_per_phase": 20},
        promotion={"tolerance": 0.0, "confidence": 0.6, "min_events": 20},
        publish={"buckets": 4, "keep_versions": 2},
        log={"level": "info"},
    )
    return place


class Life:
    """One `headwater run --once`, from its start to its end or its killing."""

    def __init__(self, place: Place, death: Death | None = None, *, fault: str = "") -> None:
        self._log = place.directory / LOG
        self._process: BaseProcess = _fork.Process(
            target=_run_once, args=(str(place.path), str(place.directory), death, fault), daemon=True
        )
        self._process.start()

    def join(self, timeout_s: float = PATIENCE_S) -> int | None:
        """The exit code (negative: the signal that killed it); None while it still runs."""
        self._process.join(timeout_s)
        return self._process.exitcode

    def kill(self) -> int:
        """SIGKILL, wherever it is; the exit code, which is 0 where it had just ended."""
        self._process.kill()
        self._process.join(PATIENCE_S)
        code = self._process.exitcode
        self._process.close()
        assert code is not None
        return code

    def say_where(self) -> None:
        """Has it write the stacks of its threads into its log."""
        assert self._process.pid is not None
        os.kill(self._process.pid, signal.SIGUSR1)
        self._process.join(1.0)


def said(place: Place) -> str:
    """The end of the log of a place's lives."""
    return (place.directory / LOG).read_text()[-4000:]


def live(place: Place, death: Death | None = None, *, fault: str = "") -> int:
    """One life to its end; its exit code. Kills one that hangs, and fails with the stacks of its threads."""
    life = Life(place, death, fault=fault)
    code = life.join(death.seconds if death is not None and death.kind == "moment" else PATIENCE_S)
    if code is None and death is not None and death.kind == "moment":
        return life.kill()
    if code is None:
        life.say_where()
    life.kill()
    assert code is not None, f"it hangs: {said(place)}"
    return code


def run_to_the_end(place: Place, *, fault: str = "") -> None:
    """The life that nobody ends; fails with its log if it fails."""
    code = live(place, fault=fault)
    assert code == 0, f"exit code {code}: {said(place)}"


def _run_once(config: str, directory: str, death: Death | None, fault: str) -> None:
    with open(Path(directory) / LOG, "ab", buffering=0) as file:  # noqa: PTH123 - for its descriptor
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    _spoil_one_candidate()
    if fault:
        planted.FAULTS[fault].plant()
    witness.watch(Path(directory) / LEARNED)  # last: it sees what is learned from, whatever was planted
    if death is not None:
        {"point": _die_at_point, "step": _die_at_step, "disk": _die_at_disk}.get(death.kind, _nothing)(death)
    sys.argv = ["headwater", "run", "--once", "-c", config]
    from service.cli import main

    main()


def _nothing(_death: Death) -> None:
    """Somebody else kills it."""


def _die_at_point(death: Death) -> None:
    os.environ[crash_points.VARIABLE] = f"{death.name}:{death.number}"


def _die_at_step(death: Death) -> None:
    steps = itertools.count(1)

    def after_step(*_: object) -> None:
        if next(steps) == death.number:
            os.kill(os.getpid(), signal.SIGKILL)

    register_optimizer_step_post_hook(after_step)


def _die_at_disk(death: Death) -> None:
    calls = itertools.count(1)

    def dying(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if next(calls) == death.number:
                if name == "write":
                    real(args[0], bytes(args[1])[: len(args[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **options)

        return call

    for name in ("write", "fsync", "ftruncate", "mkdir", "rename", "replace", "unlink", "rmdir"):
        setattr(os, name, dying(name, getattr(os, name)))


def _spoil_one_candidate() -> None:
    """Learning that went wrong, the same way in every run: what a refusal takes back must come back after a crash."""
    learn = Learner.learn

    def spoiling(self: Learner, positions: NDArray[np.int64], **options: Any) -> LearnReport:
        report = learn(self, positions, **options)
        if SPOILED in positions:
            turn(self)
            with self.averages.in_place():  # what is served, and so judged
                turn(self)
            # or what is counted beside the weights would still tell who is popular
            self.calibration.mean[:SCALES] = FLOOR
            self.calibration.mean[SCALES:UNTOUCHED] = -1.0
        return report

    def turn(self: Learner) -> None:
        self.residual.values.neg_()
        self.bias.values.neg_()
        for module in (self.scorer.item_popularity, self.scorer.popular):
            for weights in module.parameters():
                weights.data.neg_()
        for weights in self.scorer.encoders.parameters():
            weights.data.zero_()  # turned round they would do no harm: users are made of items

    Learner.learn = spoiling  # type: ignore[method-assign]
