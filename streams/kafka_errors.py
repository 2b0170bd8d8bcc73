"""Turns the Kafka client's errors and settings into ours: one sentence each, and nothing silently ignored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from kafka import errors as kafka_errors

from streams.source_types import SourceDenied, SourceError, SourceUnavailable, TopicMissing

_SECURITY_PREFIXES = ("security_", "sasl_", "ssl_")

DENIED = (
    kafka_errors.SaslAuthenticationFailedError,
    kafka_errors.UnsupportedSaslMechanismError,
    kafka_errors.AuthorizationError,
)
"""What a broker answers to those whom it does not let in."""


def client_settings(bootstrap_servers: str | Sequence[str], security: Mapping[str, Any] | None) -> dict[str, Any]:
    """The settings that every client of the broker takes: where it is, and how to be let in.

    `security` holds `security_protocol`, `sasl_*` and `ssl_*` as kafka-python names them; None values are left out.
    Raises `ValueError` for any other name.
    """
    servers = bootstrap_servers.split(",") if isinstance(bootstrap_servers, str) else list(bootstrap_servers)
    settings: dict[str, Any] = {"bootstrap_servers": [server.strip() for server in servers]}
    for name, value in (security or {}).items():
        if not name.startswith(_SECURITY_PREFIXES):
            raise ValueError(f"{name!r} is no security setting; they begin with {', '.join(_SECURITY_PREFIXES)}")
        if value is not None:
            settings[name] = value
    return settings


def translated(error: BaseException, doing: str) -> SourceError:
    """Our error for one of the client's, raised while `doing` (as in "reading orders")."""
    if isinstance(error, SourceError):
        return error
    if isinstance(error, DENIED):
        return SourceDenied(
            f"the broker refuses us while {doing}: {_words(error)}; check [kafka] security_* and the ACLs"
        )
    return SourceUnavailable(f"the broker gives no answer while {doing}: {_words(error)}")


@contextmanager
def translating(doing: str) -> Iterator[None]:
    """Raises `SourceUnavailable`, `SourceDenied` or `TopicMissing` in place of the client's errors."""
    try:
        yield
    except SourceError:
        raise
    except kafka_errors.UnknownTopicOrPartitionError as error:
        topic = error.args[0] if error.args and isinstance(error.args[0], str) else None
        raise (TopicMissing(topic) if topic else translated(error, doing)) from error
    except (kafka_errors.KafkaError, OSError) as error:
        raise translated(error, doing) from error


def _words(error: BaseException) -> str:
    text = " ".join(str(part) for part in error.args) or type(error).__name__
    return f"{type(error).__name__.removesuffix('Error')} ({text})"
