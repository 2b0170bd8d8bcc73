"""Makes connected Kafka clients, or says why there is none, leaving nothing behind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka.errors import KafkaError
from kafka.net.compat import KafkaNetClient

from streams.kafka_errors import DENIED, translated
from streams.kafka_records import read_any_header_name
from streams.kafka_transport import read_to_the_end
from streams.source_types import SourceDenied


def connected_consumer(settings: Mapping[str, Any]) -> KafkaConsumer:
    """A `KafkaConsumer` of these settings that has reached a broker, and never makes the topics it asks for.

    Raises `SourceUnavailable`, or `SourceDenied` when a broker was reached but refused us.
    """
    read_any_header_name()
    consumer = _connected(KafkaConsumer, settings)
    _forbid_making_topics(consumer._cluster)
    return consumer


def connected_producer(settings: Mapping[str, Any]) -> KafkaProducer:
    """A `KafkaProducer`, likewise."""
    producer = _connected(KafkaProducer, settings)
    _forbid_making_topics(producer._metadata)
    _ask_once(producer._metadata)
    return producer


def connected_admin(settings: Mapping[str, Any]) -> KafkaAdminClient:
    """A `KafkaAdminClient`, likewise."""
    return _connected(KafkaAdminClient, settings)


def _connected(kind: type, settings: Mapping[str, Any]) -> Any:
    clients: list[KafkaNetClient] = []
    failures: list[BaseException] = []

    def client(**configs: Any) -> KafkaNetClient:
        made = KafkaNetClient(**configs)
        clients.append(made)
        read_to_the_end(made._manager)
        _watch_connecting(made._manager, failures)
        return made

    servers = ", ".join(settings["bootstrap_servers"])
    try:
        connected = kind(kafka_client=client, **settings)
    except (KafkaError, OSError) as error:
        # By now there are sockets and perhaps a thread, and nobody else holds the client to end them.
        for made in clients:
            made.close()
        # While it bootstraps the client retries even what cannot succeed, and reports nothing but a timeout in the end.
        reasons = [translated(failure, f"connecting to {servers}") for failure in [error, *failures]]
        refusals = [reason for reason in reasons if isinstance(reason, SourceDenied)]
        raise (refusals or reasons)[-1] from error
    for made in clients:
        del made._manager.get_connection  # the instance's own: the watched one
    return connected


def _watch_connecting(manager: Any, failures: list[BaseException]) -> None:
    """Note why connections fail, and end the client's attempts at one that is refused: no retry changes a password."""
    get_connection = manager.get_connection

    def watched(*args: Any, **options: Any) -> Any:
        for failure in failures:
            if isinstance(failure, DENIED):
                raise failure
        connection = get_connection(*args, **options)
        connection.init_future.add_errback(failures.append)
        return connection

    manager.get_connection = watched


def _forbid_making_topics(cluster: Any) -> None:
    # The client has a setting for this (`allow_auto_create_topics`), which it forgets on the way to where it matters.
    cluster.config["allow_auto_create_topics"] = False


def _ask_once(cluster: Any) -> None:
    """Wake the client for news of the topics only when none are awaited already.

    A producer asks in every turn of its loop while it has ever sent to a topic that is gone, and each time wakes itself
    from the wait between turns: it would spin, and take a core from all else in the process.
    """
    request_update = cluster.request_update

    def asked_once() -> Any:
        awaited = cluster._future
        if cluster._need_update and awaited is not None and not awaited.is_done:
            return awaited
        return request_update()

    cluster.request_update = asked_once
