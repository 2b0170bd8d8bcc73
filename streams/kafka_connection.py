"""Makes a connected Kafka consumer, or says why there is none, leaving nothing behind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kafka import KafkaConsumer
from kafka.errors import KafkaError
from kafka.net.compat import KafkaNetClient

from streams.kafka_errors import translated
from streams.source_types import SourceError


def connected_consumer(settings: Mapping[str, Any]) -> KafkaConsumer:
    """A `KafkaConsumer` of these settings that has reached a broker.

    Raises `SourceUnavailable`, or `SourceDenied` when a broker was reached but refused us.
    """
    clients: list[KafkaNetClient] = []

    def client(**configs: Any) -> KafkaNetClient:
        clients.append(KafkaNetClient(**configs))
        return clients[-1]

    try:
        consumer = KafkaConsumer(kafka_client=client, **settings)
    except (KafkaError, OSError) as error:
        # The consumer's I/O thread is running by now, and nobody else holds the client to end it.
        refusal = _why_failed(clients, settings, error)
        for made in clients:
            made.close()
        raise refusal from error
    forbid_making_topics(consumer._cluster)
    return consumer


def forbid_making_topics(cluster: Any) -> None:
    """Keep a client from making the topics it asks for, where the broker would.

    The client has a setting for this (`allow_auto_create_topics`), which it forgets on the way to where it matters.
    """
    cluster.config["allow_auto_create_topics"] = False


def _why_failed(clients: list[KafkaNetClient], settings: Mapping[str, Any], error: BaseException) -> SourceError:
    servers = ", ".join(settings["bootstrap_servers"])
    for client in clients:
        manager: Any = client._manager
        for broker in client.cluster.bootstrap_brokers():
            # While bootstrapping the client retries even what cannot succeed, and reports a timeout in the end.
            denied = manager.auth_failure(broker.node_id)
            if denied is not None:
                return translated(denied, f"connecting to {servers}")
    return translated(error, f"connecting to {servers}")
