"""Passwords and certificates on Apache Kafka: let in with the right ones, told plainly with wrong ones."""

from __future__ import annotations

import select
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kafka.net.transport import KafkaSSLTransport

from streams.embedded import free_port
from streams.kafka_dead_letters import DeadLetterSink
from streams.kafka_producer import EventProducer
from streams.kafka_source import KafkaSource
from streams.source_types import SourceDenied, SourceUnavailable
from tests.servers import ApacheKafka, kafka_kinds
from tests.tls import kafka_settings, make_certificate

pytestmark = [
    pytest.mark.servers,
    pytest.mark.skipif("apache" not in kafka_kinds(), reason="needs Apache Kafka: set HEADWATER_TEST_KAFKA"),
    pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate"),
]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1 and its key, in one PEM file."""
    return make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory, certificate: Path) -> Iterator[str]:
    """The address of a broker that wants TLS and a password."""
    port = free_port(consecutive=2)
    settings = kafka_settings(port, certificate, {"admin": "secret", "reader": "let-me-in"})
    directory = tmp_path_factory.mktemp("secured")
    with ApacheKafka(directory=directory, port=port, settings=settings) as broker:
        yield broker.address


@pytest.fixture
def credentials(certificate: Path) -> dict[str, Any]:
    return {
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "PLAIN",
        "sasl_plain_username": "reader",
        "sasl_plain_password": "let-me-in",
        "ssl_cafile": str(certificate / "cert.pem"),
    }


def test_with_the_right_password_everything_works(secured: str, credentials: dict[str, Any]) -> None:
    with EventProducer(bootstrap_servers=secured, security=credentials) as producer:
        producer.ensure_topics(["events"], partitions=1)
        producer.send("events", b"k", b"v")
        producer.flush()
    sink = DeadLetterSink(bootstrap_servers=secured, security=credentials, topic="dead")
    source = KafkaSource(bootstrap_servers=secured, security=credentials, topics=["events"], group_id="g")
    source.assign(source.beginning())
    (record,) = source.poll(10.0)
    sink.send(record, "not_json", "it is not")
    sink.flush()
    source.commit({("events", 0): 1})
    source.close()
    sink.close()


def test_a_wrong_password_is_a_refusal(secured: str, credentials: dict[str, Any]) -> None:
    wrong = {**credentials, "sasl_plain_password": "wrong"}
    source = KafkaSource(bootstrap_servers=secured, security=wrong, topics=["events"], request_timeout_s=60.0)
    with pytest.raises(SourceDenied, match=r"refuses us.*check \[kafka\] security"):
        source.partitions()
    with pytest.raises(SourceDenied):
        EventProducer(bootstrap_servers=secured, security=wrong, timeout_s=60.0)


def test_a_client_slower_than_the_broker_hears_the_refusal_too(
    secured: str, credentials: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    receive = KafkaSSLTransport._sock_recv

    def slowly(transport: KafkaSSLTransport) -> Any:
        hung_up = select.poll()
        hung_up.register(transport._sock, select.POLLRDHUP)
        hung_up.poll(300)
        return receive(transport)

    monkeypatch.setattr(KafkaSSLTransport, "_sock_recv", slowly)
    wrong = {**credentials, "sasl_plain_password": "wrong"}
    source = KafkaSource(bootstrap_servers=secured, security=wrong, topics=["events"], request_timeout_s=10.0)
    with pytest.raises(SourceDenied):
        source.partitions()


def test_an_unknown_authority_is_not_trusted(secured: str, credentials: dict[str, Any]) -> None:
    trusting = {name: value for name, value in credentials.items() if name != "ssl_cafile"}
    source = KafkaSource(bootstrap_servers=secured, security=trusting, topics=["events"], request_timeout_s=3.0)
    with pytest.raises(SourceUnavailable, match="certificate verify failed"):
        source.partitions()
