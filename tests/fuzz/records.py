"""Mutated records through intake as the daemon runs it: each is accepted or a dead letter, and what is accepted goes on
into memory, onto the fast path, to disk and back.

An attempt is a batch of records, from producers that are nearly right: a good event with one to four things done to its
values or bytes, JSON or MessagePack, with CloudEvents headers and odd keys.
"""

from __future__ import annotations

import base64
import json
import random
from collections import Counter
from collections.abc import Mapping
from queue import Queue
from typing import Any

import msgspec
import numpy as np
from prometheus_client import CollectorRegistry

from models.learner import Learner
from models.memory import EventBatch, Memory
from models.serving import Snapshot
from service.arrivals import ClosedPhase
from service.collecting import apply_content, collect, remember
from service.config import Config
from service.connections import event_decoder
from service.dedupe import Deduplicator
from service.fast_path import FastPath
from service.id_limits import IdLimits
from service.intake import Intake
from service.live import Live, Serving
from service.metrics import Metrics
from streams.dead_letters import DeadLetter
from streams.event_values import REASONS
from streams.events import Record
from streams.memory_sink import MemorySink
from streams.memory_source import MemorySource, MemoryTopics
from tests.fuzz.in_children import Outcome
from tests.fuzz.mutations import mutated_bytes, mutated_value, odd_value

BATCH = 1000
"""Records in an attempt."""
TOPICS = ("interactions", "items", "users")
NOW = 1_750_000_000.0
LETTER_BYTES = 4000


class RecordFuzz:
    """Attempt number n takes the same records in whenever it is made."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.config = Config.model_validate(
            {
                "kafka": {"users_topic": "users", "dead_letter_topic": "dead"},
                "model": {
                    "dim": 2, "history": 2, "modalities": {"image": 2, "video": 2}, "frames": {"video": 3},
                    "user_features": {"taste": 2},
                },
                "events": {"max_record_bytes": 4000},
                "phase": {"max_events": BATCH},
            }
        )  # fmt: skip

    def prepare(self) -> None:
        """A version is served, so that the fast path has something to do."""
        model, train = self.config.model, self.config.train
        self._memory = Memory(model, train.actions)
        self._memory.announce("i1", NOW, {"image": np.ones(2, np.float32)})
        clicks = EventBatch(["u1"], ["i1"], ["click"], np.array([np.nan], np.float32), np.array([NOW]))
        self._memory.append(clicks)
        learner = Learner(model, train, self._memory, seed=1)
        learner.pass_over(1)
        self._snapshot = Snapshot.build(model, learner.state_dict(), self._memory, version=1)

    def attempt(self, number: int) -> Outcome:
        """One batch. Anything that breaks is raised."""
        chance = random.Random(f"{self.seed}:{number}")
        topics = MemoryTopics()
        sent: Counter[str] = Counter()
        for name in TOPICS:
            topics.create(name)
        for _ in range(BATCH):
            topic, key, value, headers = mutated_record(chance)
            stamp = chance.choice((int(NOW * 1000), int(NOW * 1000), -1, 0))
            topics.append(topic, key, value, stamp, headers=headers)
            sent[topic] += 1
        letters, sink = _Letters(), MemorySink()
        phases = self._take_in(topics, letters, sink)
        taken = Counter({"interactions": sum(len(phase.interactions) + phase.rejected for phase in phases)})
        for topic, content in (("items", "items"), ("users", "users")):
            refused = sum(letter.record.topic == topic for letter in letters.sent)
            taken[topic] = sum(len(getattr(phase, content)) for phase in phases) + refused
        if taken != sent or sum(phase.rejected for phase in phases) != letters.of("interactions"):
            return Outcome("records", "fault", f"sent {dict(sent)}, accepted or refused {dict(taken)}")
        if problem := _of_letters(letters) or _of_vectors(sink) or self._of_memory(phases):
            return Outcome("records", "fault", problem)
        return Outcome("batches of records", "taken in")

    def _take_in(self, topics: MemoryTopics, letters: _Letters, sink: MemorySink) -> list[ClosedPhase]:
        live, metrics = Live(), Metrics(CollectorRegistry())
        live.current = Serving(self._snapshot)
        source = _UntilFinished(topics, TOPICS)
        queue: Queue[ClosedPhase] = Queue(maxsize=BATCH)
        intake = Intake(
            config=self.config, source=source, decoder=event_decoder(self.config),
            fast_path=FastPath(live=live, sink=sink, metrics=metrics, clock=lambda: NOW), dead_letters=letters,
            phases=queue, metrics=metrics, clock=lambda: NOW, positions=source.beginning(), maxima={},
            stop_at=source.end(),
        )  # fmt: skip
        source.intake = intake
        intake.run()
        return [queue.get_nowait() for _ in range(queue.qsize())]

    def _of_memory(self, phases: list[ClosedPhase]) -> str:
        """What is remembered of the accepted records, and read back from its bytes."""
        model, actions = self.config.model, self.config.train.actions
        memory, stored = Memory(model, actions), dict[str, list[bytes]]()
        limits = IdLimits(self.config.events)
        for phase in phases:
            collected = collect(
                phase, dedupe=Deduplicator(capacity=1000), late_before=None, limits=limits, memory=memory
            )
            apply_content(memory, collected.content, cluster_id="")
            remember(memory, collected)
            for name, chunk in memory.drain().items():
                stored.setdefault(name, []).append(chunk)
        again = Memory.restore(model, actions, stored)
        if again.items.ids != memory.items.ids or again.users.ids != memory.users.ids:
            return "ids are others after they were read back"
        ours, theirs = memory.rewrite(), again.rewrite()
        # When an item was first mentioned is forgotten with the user who did: so its contents may differ in that.
        if any(ours[name] != theirs[name] for name in ("vocabulary", "events", "profiles")):
            return "what was remembered is something else after it was read back"
        if len(ours["contents"]) != len(theirs["contents"]):
            return "contents are lost when they are read back"
        return ""


class _UntilFinished(MemorySource):
    """Stops its intake once that has everything in phases."""

    intake: Intake

    def poll(self, timeout_s: float) -> list[Record]:
        if self.intake.finished.is_set():
            self.intake.stop()
        return super().poll(0.0)


class _Letters:
    """Keeps what cannot be used, as it would be written."""

    def __init__(self) -> None:
        self.sent: list[DeadLetter] = []

    def send(self, record: Record, reason: str, detail: str) -> None:
        self.sent.append(DeadLetter(record, reason, detail))

    def flush(self) -> None: ...

    def of(self, topic: str) -> int:
        return sum(letter.record.topic == topic for letter in self.sent)


def _of_letters(letters: _Letters) -> str:
    """Every letter has a known reason and one sentence, and is read back as it was written."""
    for letter in letters.sent:
        if letter.reason not in REASONS or not letter.detail or "\n" in letter.detail:
            return f"{letter.reason!r} says {letter.detail[:200]!r}"
        fitted = letter.fitted(LETTER_BYTES)
        written = Record("dead", 0, 0, 0, fitted.key, fitted.record.value, tuple(fitted.headers))
        again = DeadLetter.read(written)
        if (again.record, again.reason) != (fitted.record, fitted.reason):
            return f"a letter is read back as another: {again!r:.300}"
    return ""


def _of_vectors(sink: MemorySink) -> str:
    for kind in ("items", "users"):
        ids = list(sink.ids(1, kind))
        for raw in sink.read(1, kind, ids):
            if raw is None or not np.isfinite(np.frombuffer(raw, "<f4")).all():
                return f"a vector of {kind} is not finite"
    return ""


# -- what producers send


def mutated_record(chance: random.Random) -> tuple[str, bytes | None, bytes | None, list[tuple[str, bytes]]]:
    """Topic, key, value and headers of a record that is nearly right, or right."""
    topic = chance.choice(TOPICS)
    body: Any = _event(topic, chance)
    way = chance.random()
    if way < 0.5:
        body = mutated_value(body, chance, odd_value)
    raw = _encoded(body, chance)
    if way > 0.7:
        raw = mutated_bytes(raw, chance)
    if way > 0.97:
        raw = chance.choice(
            (b"", b"{" * 3000, b"[" * 3000, b"\x91" * 3000, b"\x81" * 3000, b"1" * 3000, b'"' + b"a" * 5000)
        )
    value = None if chance.random() < 0.02 else raw
    key = chance.choice((b"k", b"i1", b"u1", None, b"", b"\xff", b"k" * 600))
    headers = []
    if chance.random() < 0.2:
        for name in chance.sample(("ce_id", "ce_type", "ce_time", "x", "header:x", "topic"), chance.randrange(3)):
            known = chance.choice((b"", b"x", b"\xff", b"2025-06-15T00:00:00Z", b"2025-06-15", b"9" * 400))
            headers.append((name, mutated_bytes(known, chance) if chance.random() < 0.5 else known))
    return topic, key, value, headers


def _event(topic: str, chance: random.Random) -> dict[str, Any]:
    user, item = (f"{kind}{chance.randrange(50)}" for kind in "ui")
    time = chance.choice(
        (NOW - chance.random() * 1e6, (NOW - 5) * 1000, "2025-06-15T10:00:00Z", "2025-06-15T10:00:00+02:00")
    )
    if topic == "interactions":
        action = chance.choice(("click", "view", "rating", "skip"))
        event = {"user_id": user, "item_id": item, "action": action, "time": time}
        return event | chance.choice(({}, {"value": chance.random()}, {"event_id": str(chance.random())}))
    if chance.random() < 0.1:
        return {"user_id" if topic == "users" else "item_id": user if topic == "users" else item, "deleted": True}
    if topic == "users":
        return {"user_id": user, "features": {"taste": _vector(chance)}}
    features: dict[str, Any] = {"image": _vector(chance)}
    if chance.random() < 0.5:
        features["video"] = [_vector(chance) for _ in range(chance.randrange(1, 5))]
    return {
        "item_id": item,
        "time": time,
        "features": features,
        "text": "a text",
        "attributes": {"a": [1, {"b": None}]},
    }


def _vector(chance: random.Random) -> Any:
    numbers = [chance.random(), chance.random() * 1e6]
    packed = np.array(numbers, "<f4").tobytes()
    return chance.choice((numbers, base64.b64encode(packed).decode(), packed))


def _encoded(body: Any, chance: random.Random) -> bytes:
    if chance.random() < 0.3:
        try:
            return msgspec.msgpack.encode(body)
        except (OverflowError, UnicodeEncodeError, RecursionError, TypeError):
            pass
    try:
        return json.dumps(body, default=_as_text).encode()
    except (RecursionError, ValueError, TypeError):
        return b"{"


def _as_text(value: Any) -> Any:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


def fuzz_records(count: int, *, seed: int) -> Mapping[str, int]:
    """So many batches, in this process: for tests. Raises AssertionError at the first fault."""
    fuzz, counts = RecordFuzz(seed), Counter[str]()
    fuzz.prepare()
    for number in range(count):
        outcome = fuzz.attempt(number)
        assert outcome.what != "fault", f"seed {seed}, batch {number}: {outcome.why}"
        counts[outcome.what] += 1
    return counts
