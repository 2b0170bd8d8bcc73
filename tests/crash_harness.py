"""Daemons that are killed: real processes on a stream that is all there.

A process that a test kills is forked from one that has imported torch already (`forkserver` of the standard library),
so that dozens fit into a minute. Whatever it is killed at, the next one goes on with the same files and servers.
"""

from __future__ import annotations

import faulthandler
import itertools
import multiprocessing
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray
from torch.optim.optimizer import register_optimizer_step_post_hook

from models.learner import Learner, LearnReport
from service import crash_points
from streams.kafka_producer import EventProducer
from streams.simulator import Simulator, World
from streams.simulator_messages import Message, messages
from tests.daemon_process import Place

EVENTS, MAX_EVENTS, PARTITIONS = 1_800, 300, 4
SPOILED = 1_000
"""The candidate that learns the event at this place of the log comes out spoiled, and is refused."""
GARBAGE = b"{not an event"
TOMBSTONE = b""
"""Stands for a null value: a deletion."""
PATIENCE_S = 60.0
"""Longest life of one daemon; only one that hangs lives so long."""

LOG = "daemon.log"

_fork = multiprocessing.get_context("forkserver")
# The last is what torch imports at the first step of an optimizer, for seconds.
_fork.set_forkserver_preload(["service.daemon", "service.cli", "torch._dynamo"])
_numbers = itertools.count(1)


@dataclass
class Feed:
    """A stream with everything in it that has to be accounted for, as it lies on a broker."""

    topics: dict[str, str]
    sent: list[Message] = field(default_factory=list)
    repeated: int = 0
    unusable: int = 0

    @classmethod
    def sample(cls, topics: dict[str, str], *, events: int = EVENTS) -> Feed:
        """A small world; some interactions are sent twice, and some are no events."""
        world = World(seed=5, users=40, items=60, events=events, latent_dim=4, no_repeat=20)
        feed = cls(topics)
        for message in messages(Simulator(world)):
            feed.sent.append(message)
            if message.kind == "interactions" and message.number % 97 == 0:
                feed.sent.append(message)
                feed.repeated += 1
            if message.kind == "interactions" and message.number % 131 == 0:
                feed.sent.append(message._replace(value=GARBAGE))
                feed.unusable += 1
        return feed

    def cut(self, *, number: int) -> list[Message]:
        """Takes off what begins with the interaction of this number, and returns it."""
        at = next(i for i, message in enumerate(self.sent) if message.number >= number)
        self.sent, rest = self.sent[:at], self.sent[at:]
        return rest

    def gone_after(self, later: Sequence[Message]) -> tuple[str, str]:
        """A user and an item of this feed's events of whom `later` says nothing, nor of anyone whose id begins so."""

        def missing(name: str) -> str:
            past, future = ({str(one[name]) for one in _events(messages)} for messages in (self.sent, later))
            return sorted(one for one in past if not any(other.startswith(one) for other in future | past - {one}))[0]

        return missing("user_id"), missing("item_id")

    def delete(self, kind: Literal["items", "users"], one: str) -> None:
        """Take an item or user away, after all that was sent so far."""
        self.sent.append(self.sent[-1]._replace(kind=kind, key=one.encode(), value=TOMBSTONE))

    def send(self, producer: EventProducer, *, since: int = 0) -> int:
        """Makes the topics and puts on them what was not `sent` before; returns how much that is by now."""
        names = [self.topics[kind] for kind in ("interactions", "items", "users")]
        producer.ensure_topics(names, partitions=PARTITIONS)
        for message in self.sent[since:]:
            value = None if message.value == TOMBSTONE else message.value
            producer.send(self.topics[message.kind], message.key, value)
        producer.flush()
        return len(self.sent)

    def interactions(self) -> Counter[tuple[str | None, str | None, float]]:
        """User, item and time of every interaction, each as often as it has to be learned: once. None for those who
        were deleted later."""
        counted: Counter[tuple[str | None, str | None, float]] = Counter()
        gone: set[str] = set()
        seen: set[str] = set()
        for message in reversed(self.sent):
            if message.value == TOMBSTONE:
                gone.add(message.key.decode())
            for one in _events([message]):
                if one["event_id"] not in seen:
                    who, what = one["user_id"], one["item_id"]
                    nobody = who in gone  # with whom goes what they did
                    counted[None if nobody else who, None if nobody or what in gone else what, one["time"]] += 1
                seen.add(one["event_id"])
        return counted


def _events(messages: Iterable[Message]) -> Iterator[dict[str, Any]]:
    for message in messages:
        if message.kind == "interactions" and message.value != GARBAGE:
            yield msgspec.json.decode(message.value)


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
        train={"batch": 64, "learning_rate": 0.03, "replay_ratio": 0.5},
        # a shadow's weights and figures have to come back just the same
        shadow={"train": {"learning_rate": 0.01, "replay_ratio": 1.0}, "model": {"fusion": "sum"}},
        evaluate={"k": 10, "max_per_phase": 60},
        promotion={"tolerance": 0.0, "confidence": 0.6, "min_events": 50},
        publish={"buckets": 4, "keep_versions": 2},
        log={"level": "info"},
    )
    return place


class Life:
    """One `headwater run --once`, from its start to its end or its killing."""

    def __init__(self, place: Place, *, die_at: str = "", die_at_step: int = 0) -> None:
        self._log = place.directory / LOG
        self._process: BaseProcess = _fork.Process(
            target=_run_once, args=(str(place.path), str(self._log), die_at, die_at_step), daemon=True
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

    def said(self) -> str:
        return self._log.read_text()[-4000:]


def live(place: Place, *, die_at: str = "", die_at_step: int = 0) -> int:
    """One life to its end; its exit code. Kills one that hangs, and fails with the stacks of its threads."""
    life = Life(place, die_at=die_at, die_at_step=die_at_step)
    code = life.join()
    if code is None:
        life.say_where()
    life.kill()
    assert code is not None, f"it hangs: {life.said()}"
    return code


def run_to_the_end(place: Place) -> None:
    """The life that nobody ends; fails with its log if it fails."""
    code = live(place)
    assert code == 0, f"exit code {code}: {(place.directory / LOG).read_text()[-4000:]}"


def _run_once(config: str, log: str, die_at: str, die_at_step: int) -> None:
    with open(log, "ab", buffering=0) as file:  # noqa: PTH123 - for its descriptor
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    if die_at:
        os.environ[crash_points.VARIABLE] = die_at
    if die_at_step:
        _die_at_step(die_at_step)
    _spoil_one_candidate()
    sys.argv = ["headwater", "run", "--once", "-c", config]
    from service.cli import main

    main()


def _die_at_step(number: int) -> None:
    steps = itertools.count(1)

    def after_step(*_: object) -> None:
        if next(steps) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    register_optimizer_step_post_hook(after_step)


def _spoil_one_candidate() -> None:
    """Learning that went wrong, the same way in every run: what a refusal takes back must come back after a crash."""
    learn = Learner.learn

    def spoiling(self: Learner, positions: NDArray[np.int64], *, replay_ratio: float) -> LearnReport:
        report = learn(self, positions, replay_ratio=replay_ratio)
        if SPOILED in positions:
            turn(self)
            with self.averages.in_place():  # what is served, and so judged
                turn(self)
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
