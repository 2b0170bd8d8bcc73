"""What a broker says before it hangs up reaches us.

The Kafka client drops bytes that it reads together with the end of the stream. A broker that refuses a password says so
and closes at once: where the client is the slower of the two, it never learns why, and tries until it times out.
"""

from __future__ import annotations

from typing import Any


def read_to_the_end(manager: Any) -> None:
    """Make every connection of a client's `KafkaConnectionManager` hand over what it has received before it tells that
    the other side has closed."""
    build = manager._build_transport

    async def built(*args: Any, **options: Any) -> Any:
        transport = await build(*args, **options)
        _tell_the_end_later(transport)
        return transport

    manager._build_transport = built


def _tell_the_end_later(transport: Any) -> None:
    receive, ends = transport._sock_recv, list[BaseException]()

    def received() -> tuple[bytes, BaseException | None]:
        data, end = (b"", ends[0]) if ends else receive()
        if data and end is not None:
            ends.append(end)  # for the next call, which comes soon: a socket at its end stays readable
            return data, None
        return data, end

    transport._sock_recv = received
