"""From the configuration to what talks to Kafka and Redis: the one place where settings meet the streams' own names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import structlog

from service.config import Config, read_secret
from service.errors import SecretError
from streams.events import EventDecoder, Record
from streams.kafka_dead_letters import DeadLetterSink
from streams.kafka_source import KafkaSource
from streams.publisher import RedisSink
from streams.user_ids import UserIds, keyed, plain

log = structlog.get_logger(__name__)


def event_decoder(config: Config) -> EventDecoder:
    """The decoder of the configured fields, modalities and limits. Raises ValueError for field names that cannot be."""
    return EventDecoder(
        fields=config.events.fields,
        modalities=config.model.modalities,
        frames=config.model.frames,
        user_features=config.model.user_features,
        min_time=config.events.min_time.timestamp(),
        max_ahead_s=config.events.max_ahead_s,
        max_record_bytes=config.events.max_record_bytes,
        max_id_bytes=config.events.max_id_bytes,
        user_ids=user_ids(config),
    )


def user_ids(config: Config) -> UserIds:
    """Under which id a user is stored and published. Raises `SecretError` for a key that is missing or too short."""
    key = read_secret(config.events.user_id_key_file)
    try:
        return plain if key is None else keyed(key.get_secret_value().encode())
    except ValueError as error:
        raise SecretError(
            f"the secret file {config.events.user_id_key_file} is too short: {error}",
            hint="Make one with: openssl rand -hex 32.",
        ) from error


def kafka_security(config: Config) -> dict[str, Any]:
    """`security_protocol`, `sasl_*` and `ssl_*` as the Kafka client names them. Raises `SecretError`."""
    kafka = config.kafka
    password = read_secret(kafka.security_password_file)
    settings = {
        "security_protocol": kafka.security_protocol,
        "sasl_mechanism": kafka.security_sasl_mechanism or None,
        "sasl_plain_username": kafka.security_username or None,
        "sasl_plain_password": password.get_secret_value() if password else None,
        "ssl_cafile": _text(kafka.security_ca_file),
        "ssl_certfile": _text(kafka.security_cert_file),
        "ssl_keyfile": _text(kafka.security_key_file),
    }
    return {name: value for name, value in settings.items() if value is not None}


def redis_options(config: Config) -> dict[str, Any]:
    """`url`, `username`, `timeout_s`, and `password` as a function: a changed file is read at the next connection."""
    redis = config.redis
    files = {"ssl_ca_certs": redis.ca_file, "ssl_certfile": redis.cert_file, "ssl_keyfile": redis.key_file}
    query = urlencode({name: str(path) for name, path in files.items() if path is not None})
    url = redis.url + (("&" if "?" in redis.url else "?") + query if query else "")

    def password() -> str | None:
        secret = read_secret(redis.password_file)
        return secret.get_secret_value() if secret else None

    return {
        "url": url,
        "username": redis.username or None,
        "password": password if redis.password_file else None,
        "timeout_s": redis.timeout_s,
    }


def event_topics(config: Config) -> list[str]:
    """The topics that are read: interactions, and items and users where they are configured."""
    kafka = config.kafka
    return [topic for topic in (kafka.interactions_topic, kafka.items_topic, kafka.users_topic) if topic]


def kafka_source(
    config: Config, *, topics: Sequence[str] | None = None, group: bool = True, timeout_s: float = 10.0
) -> KafkaSource:
    """The source of `topics` (all that are configured by default); it connects at first use. Raises `SecretError`.

    `group` False commits nothing, for those who only look.
    """
    return KafkaSource(
        bootstrap_servers=config.kafka.bootstrap_servers,
        topics=event_topics(config) if topics is None else topics,
        group_id=config.kafka.group_id if group else None,
        security=kafka_security(config),
        request_timeout_s=timeout_s,
    )


def dead_letters(config: Config, *, on_written: Callable[[], None] = lambda: None) -> DeadLetterSink | LoggedLetters:
    """Where records go that cannot be used: the dead letter topic, or the log if none is configured."""
    topic = config.kafka.dead_letter_topic
    if not topic:
        return LoggedLetters()
    return DeadLetterSink(
        bootstrap_servers=config.kafka.bootstrap_servers,
        topic=topic,
        security=kafka_security(config),
        on_written=on_written,
    )


class LoggedLetters:
    """No dead letter topic: what cannot be used is in the log, and stays in its own topic."""

    def send(self, record: Record, reason: str, detail: str) -> None:
        """Say where the record is and what is wrong with it."""
        log.warning(
            "a record cannot be used",
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
            reason=reason,
            detail=detail,
        )

    def flush(self) -> None:
        """The log keeps nothing back."""

    def close(self) -> None:
        """Nothing to let go of."""


def redis_sink(config: Config) -> RedisSink:
    """The store of vectors. Raises `SinkUnavailable` for a Cluster that is away, ValueError for a bad URL."""
    return RedisSink(namespace=config.namespace, buckets=config.publish.buckets, **redis_options(config))


def _text(path: Path | None) -> str | None:
    return str(path) if path else None
