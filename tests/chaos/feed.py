"""A stream with everything in it that has to be accounted for, sent to a broker and read back from it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import msgspec
from kafka import KafkaConsumer
from kafka import TopicPartition as ClientPartition

from streams.kafka_connection import connected_consumer
from streams.kafka_producer import EventProducer
from streams.simulator import Simulator, World
from streams.simulator_messages import Message, messages

EVENTS, PARTITIONS = 720, 4
GARBAGE = b"{not an event"
TOMBSTONE = b""
"""Stands for a null value: a deletion."""

RecordId = tuple[str, int, int]
"""Topic, partition, offset: what names a record for good."""


class Sent(NamedTuple):
    """One record of the broker."""

    user: str
    item: str
    time: float
    event_id: str | None
    """None for what is no event."""


@dataclass
class Feed:
    """Messages, and the topics that they are for."""

    topics: dict[str, str]
    sent: list[Message] = field(default_factory=list)
    deleted: dict[str, RecordId] = field(default_factory=dict)
    """Ids of users and items, and where their deletions lie; filled by `interactions`."""

    @classmethod
    def sample(cls, topics: dict[str, str], *, events: int = EVENTS) -> Feed:
        """A small world; some interactions are sent twice, and some are no events."""
        world = World(seed=5, users=40, items=60, events=events, latent_dim=4, no_repeat=20)
        feed = cls(topics)
        for message in messages(Simulator(world)):
            feed.sent.append(message)
            if message.kind == "interactions" and message.number % 97 == 0:
                feed.sent.append(message)
            if message.kind == "interactions" and message.number % 131 == 0:
                feed.sent.append(message._replace(value=GARBAGE))
        return feed

    def cut(self, *, number: int) -> list[Message]:
        """Takes off what begins with the interaction of this number, and returns it."""
        at = next((i for i, message in enumerate(self.sent) if message.number >= number), len(self.sent))
        self.sent, rest = self.sent[:at], self.sent[at:]
        return rest

    def gone_after(self, later: Sequence[Message]) -> tuple[str, str] | None:
        """A user and an item of this feed's events of whom `later` says nothing, nor of anyone whose id begins so;
        None where there are none that were not deleted yet."""

        def missing(name: str) -> str | None:
            past, future = ({str(one[name]) for one in _events(messages)} for messages in (self.sent, later))
            past -= {message.key.decode() for message in self.sent if message.value == TOMBSTONE}
            alone = [one for one in past if not any(other.startswith(one) for other in future | past - {one})]
            return min(alone, default=None)

        user, item = missing("user_id"), missing("item_id")
        return None if user is None or item is None else (user, item)

    def delete(self, kind: Literal["items", "users"], one: str) -> None:
        """Take an item or user away, after all that was sent so far."""
        self.sent.append(self.sent[-1]._replace(kind=kind, key=one.encode(), value=TOMBSTONE))

    def send(self, producer: EventProducer, *, since: int = 0) -> int:
        """Makes the topics and puts on them what was not `sent` before; returns how much that is by now."""
        producer.ensure_topics(list(self.topics.values()), partitions=PARTITIONS)
        for message in self.sent[since:]:
            value = None if message.value == TOMBSTONE else message.value
            producer.send(self.topics[message.kind], message.key, value)
        producer.flush()
        return len(self.sent)

    def interactions(self, broker: str) -> dict[RecordId, Sent]:
        """What lies on the interactions topic, read with a client of its own that knows nothing of Headwater; notes
        the deletions that lie on the others."""
        with _consumer(broker) as consumer:
            for kind in ("items", "users"):
                for place, key, value in self._read(consumer, kind):
                    if value is None:
                        self.deleted[key.decode()] = place
            return {place: _sent(key, value) for place, key, value in self._read(consumer, "interactions")}

    def _read(self, consumer: KafkaConsumer, kind: str) -> Iterator[tuple[RecordId, bytes, bytes | None]]:
        partitions = [ClientPartition(self.topics[kind], number) for number in range(PARTITIONS)]
        consumer.assign(partitions)
        consumer.seek_to_beginning(*partitions)
        waiting = sum(message.kind == kind for message in self.sent)
        while waiting:
            for tp, records in consumer.poll(timeout_ms=500).items():
                for record in records:
                    waiting -= 1
                    yield (tp.topic, tp.partition, record.offset), record.key, record.value


@contextlib.contextmanager
def _consumer(broker: str) -> Iterator[KafkaConsumer]:
    settings = {"bootstrap_servers": [broker], "enable_auto_commit": False, "auto_offset_reset": "earliest"}
    consumer = connected_consumer(settings)
    try:
        yield consumer
    finally:
        consumer.close()


def _sent(key: bytes, value: bytes | None) -> Sent:
    if value is None or value == GARBAGE:
        return Sent(key.decode(), "", 0.0, None)
    event: dict[str, Any] = msgspec.json.decode(value)
    return Sent(event["user_id"], event["item_id"], event["time"], event["event_id"])


def _events(messages: Iterable[Message]) -> Iterator[dict[str, Any]]:
    for message in messages:
        if message.kind == "interactions" and message.value != GARBAGE:
            yield msgspec.json.decode(message.value)
