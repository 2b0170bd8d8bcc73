"""A Kafka client hears what was said to it before the other side hung up."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from kafka.net.compat import KafkaNetClient

from streams.kafka_transport import read_to_the_end


class Listener:
    """A connection's protocol, which notes what it is told, in order."""

    _sensors = None

    def __init__(self) -> None:
        self.heard: list[bytes | BaseException | None] = []

    def data_received(self, data: bytes) -> None:
        self.heard.append(data)

    def connection_lost(self, error: BaseException | None) -> None:
        self.heard.append(error)


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


@pytest.fixture
def client(server: socket.socket) -> Iterator[Any]:
    client = KafkaNetClient(bootstrap_servers=f"127.0.0.1:{server.getsockname()[1]}")
    yield client
    client.close()


def connected(client: Any, server: socket.socket, says: bytes) -> Any:
    """The client's end of a connection on which the server has said this and hung up, nothing of which is read yet."""
    host, port = server.getsockname()
    node = SimpleNamespace(host=host, port=port)
    transport = client._net.run(client._manager._build_transport, node)
    ours, _ = server.accept()
    with ours:
        ours.sendall(says)
    waiting = select.poll()
    waiting.register(transport._sock, select.POLLRDHUP)
    assert waiting.poll(10_000), "the end never came"
    return transport


def heard(client: Any, transport: Any) -> list[bytes | BaseException | None]:
    """All that the client's loop tells a connection's protocol until the connection is closed."""
    listener = Listener()
    transport.set_protocol(listener)
    transport.resume_reading()
    while not transport.is_closing():
        client._net.poll(timeout_ms=1_000)
    return listener.heard


@pytest.mark.parametrize("length", [1, 4096, 50_000])
def test_what_was_said_before_the_end_is_heard_and_then_the_end(
    client: Any, server: socket.socket, length: int
) -> None:
    read_to_the_end(client._manager)
    said = bytes(n % 251 for n in range(length))
    *parts, end = heard(client, connected(client, server, said))
    assert b"".join(part for part in parts if isinstance(part, bytes)) == said
    assert "socket disconnected" in str(end)


def test_an_end_without_a_word_is_told_at_once(client: Any, server: socket.socket) -> None:
    read_to_the_end(client._manager)
    (end,) = heard(client, connected(client, server, b""))
    assert "socket disconnected" in str(end)
