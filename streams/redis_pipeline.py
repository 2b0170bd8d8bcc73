"""Sending many commands to Redis without a round trip each: `run` for their replies, `stream` for bulk."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import hiredis
import redis

from streams.redis_connection import Client, translated

Command = tuple[str | bytes | int, ...]

_PIPELINE_BYTES = 256 * 1024
"""What `stream` sends before it reads the replies to what it sent before; bounds the server's buffers."""


def run(client: Client, commands: Iterable[Command], *, at_once: int = 256) -> list[Any]:
    """Send commands in pipelines of `at_once`; replies in order. Raises `SinkUnavailable` or `SinkRefused`."""
    replies: list[Any] = []
    with translated(), client.pipeline(transaction=False) as opened:
        pipeline: Any = opened
        for command in commands:
            pipeline.execute_command(*command)
            if len(pipeline) >= at_once:
                replies += pipeline.execute()
        if len(pipeline):
            replies += pipeline.execute()
    return replies


def stream(client: Client, commands: Iterable[Command]) -> None:
    """Send large commands whose replies do not matter, packing the next ones while the server works on the last.

    A redis-py pipeline takes turns with the server and looks at each argument in Python; this is about twice as fast.
    A Cluster keeps its pipeline, which knows the nodes. Raises `SinkUnavailable` or `SinkRefused`.
    """
    if not isinstance(client, redis.Redis):
        run(client, commands, at_once=4)
        return
    with translated():
        connection: Any = client.connection_pool.get_connection()
        try:
            packed: list[bytes] = []
            size = unanswered = 0
            for command in commands:
                packed.append(hiredis.pack_command(command))  # type: ignore[arg-type]  # any number of arguments
                size += len(packed[-1])
                if size >= _PIPELINE_BYTES:
                    connection.send_packed_command(packed)
                    _read_replies(connection, unanswered)
                    packed, size, unanswered = [], 0, len(packed)
            connection.send_packed_command(packed)
            _read_replies(connection, unanswered + len(packed))
        except BaseException:
            connection.disconnect()  # replies may be on their way; the next user must not read them
            raise
        finally:
            client.connection_pool.release(connection)


def _read_replies(connection: Any, count: int) -> None:
    for _ in range(count):
        connection.read_response()
