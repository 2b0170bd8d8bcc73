"""Doctor's checks of Kafka: brokers, topics, identity, offsets still there, and a look at the newest events."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing

from service.checkpoints import CheckpointStore
from service.checks import Check, failed, passed, warned
from service.config import Config
from service.connections import event_decoder, event_topics, kafka_source
from service.errors import ConfigError, StateError
from service.manifest import by_partition
from service.state_dir import Layout, StateDirectory
from streams.events import DecodeError, Record
from streams.kafka_source import KafkaSource
from streams.source_types import SourceDenied, SourceError, TopicMissing

SAMPLE_PER_PARTITION = 100
MANY_REJECTED = 0.01


def check_kafka(config: Config, timeout_s: float) -> Iterator[Check]:
    """Brokers first: without one, the rest cannot be known and is left out."""
    missing: list[str] = []
    optional = [config.kafka.dead_letter_topic] if config.kafka.dead_letter_topic else []
    for number, topic in enumerate(event_topics(config) + optional):
        try:
            with closing(kafka_source(config, topics=[topic], group=False, timeout_s=timeout_s)) as source:
                partitions = source.partitions()[topic]
                records = sum(source.end().values()) - sum(source.beginning().values())
        except TopicMissing:
            missing.append(topic)
            partitions, records = [], 0
        except SourceDenied as error:
            yield failed("broker", f"{error}.", "Check [kafka] security_* and the user's ACLs.")
            return
        except (SourceError, ConfigError) as error:
            hint = "Start the broker, or mend bootstrap_servers and security_* in [kafka]."
            yield failed("broker", f"{str(error).rstrip('.')}.", hint)
            return
        if number == 0:
            yield passed("broker", f"{config.kafka.bootstrap_servers} answers.")
        if topic not in missing:
            yield passed(f"topic {topic}", f"{len(partitions)} partitions, {records} offsets.")
        elif topic in optional:
            yield warned(
                f"topic {topic}", "does not exist: dead letters will be lost.", "Create it, one partition is enough."
            )
        else:
            hint = "Create it (headwater produce does), or correct its name in [kafka]."
            yield failed(f"topic {topic}", "does not exist.", hint)
    if set(missing) & set(event_topics(config)):
        return
    with closing(kafka_source(config, group=False, timeout_s=timeout_s)) as source:
        try:
            yield from _identity(config, source)
            yield from _offsets(config, source)
            yield from _events(config, source, timeout_s)
        except SourceError as error:
            yield failed("broker", f"{str(error).rstrip('.')}.", "It went away while being looked at; try again.")


def _identity(config: Config, source: KafkaSource) -> Iterator[Check]:
    if not Layout(config.state_dir.absolute()).identity.exists():
        return
    try:
        known = StateDirectory.open(config.state_dir, config.namespace, lock=False).identity
    except StateError:
        return  # Said by the state directory's own check.
    found = source.identity()
    hint = "Point [kafka] at the cluster that this state belongs to, or start with another state_dir."
    if known.cluster_id and known.cluster_id != found.cluster_id:
        said = f"the state belongs to cluster {known.cluster_id}, the broker to {found.cluster_id}."
        yield failed("cluster identity", said, hint)
        return
    anew = [t for t, uuid in found.topic_ids.items() if known.topic_ids.get(t, uuid) != uuid]
    if anew:
        said = f"deleted and made anew since the last checkpoint: {', '.join(anew)}."
        yield failed("cluster identity", said, hint)
    else:
        yield passed("cluster identity", f"cluster {found.cluster_id}, as in the state directory.")


def _offsets(config: Config, source: KafkaSource) -> Iterator[Check]:
    """Whether everything after the last checkpoint can still be read."""
    try:
        store = CheckpointStore(config.state_dir, keep_versions=config.publish.keep_versions)
        latest = store.latest() if config.state_dir.is_dir() else None
        wanted = by_partition(store.manifest(latest).offsets) if latest is not None else {}
    except StateError:
        return  # Said by the checkpoint's own check.
    if not wanted:
        return
    beginning, end = source.beginning(), source.end()
    gone = {tp: beginning[tp] - offset for tp, offset in wanted.items() if tp in beginning and offset < beginning[tp]}
    if gone:
        said = f"{sum(gone.values())} offsets were deleted before they were learned."
        hint = 'Set "on_data_loss" = "count" in [kafka] to go on without them, and raise the topic\'s retention.'
        yield failed("offsets", said, hint) if config.kafka.on_data_loss == "stop" else warned("offsets", said, hint)
        return
    behind = sum(max(0, end[tp] - wanted.get(tp, beginning[tp])) for tp in end)
    yield passed("offsets", f"all there; learning is {behind} offsets behind.")


def _events(config: Config, source: KafkaSource, timeout_s: float) -> Iterator[Check]:
    """Decodes the newest interactions: are they usable, and do they carry ids?"""
    topic = config.kafka.interactions_topic
    records = _newest(source, topic, timeout_s)
    if not records:
        yield passed("events", f"{topic} has no records to look at yet.")
        return
    try:
        decoder = event_decoder(config)
    except ValueError:
        return  # Said by the configuration's own check.
    rejected: Counter[str] = Counter()
    without_id, example = 0, ""
    for record in records:
        try:
            without_id += decoder.interaction(record).event_id is None
        except DecodeError as error:
            rejected[error.reason] += 1
            example = example or error.detail
    usable = len(records) - rejected.total()
    if rejected.total() > MANY_REJECTED * len(records):
        reasons = ", ".join(f"{reason} {count}" for reason, count in rejected.most_common())
        said = f"{rejected.total()} of the newest {len(records)} cannot be used ({reasons}), e.g.: {example}"
        hint = "Compare a record with docs/events.md; [events] fields maps other names."
        yield failed("events", said, hint) if not usable else warned("events", said, hint)
    else:
        yield passed("events", f"{usable} of the newest {len(records)} can be used.")
    if without_id:
        said = f"{without_id} of {usable} have no event_id: only offsets protect them from being learned twice."
        yield warned("event ids", said, "Send an event_id, so that a producer's retries are recognised.")
    elif usable:
        yield passed("event ids", "every event has one.")


def _newest(source: KafkaSource, topic: str, timeout_s: float) -> list[Record]:
    beginning, end = source.beginning(), source.end()
    start = {tp: max(beginning[tp], end[tp] - SAMPLE_PER_PARTITION) for tp in end if tp[0] == topic}
    reading = {tp: offset for tp, offset in start.items() if offset < end[tp]}
    if not reading:
        return []
    source.assign(reading)
    records: list[Record] = []
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and not all(source.position(tp) >= end[tp] for tp in reading):
        records += source.poll(0.5)
    return records
