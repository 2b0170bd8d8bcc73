"""Redis as Sentinel and Cluster run it, made of the servers at hand."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import redis
import tenacity

from streams.embedded import EmbeddedRedis, ServerProcess, free_port
from tests.servers import new_redis

WAIT_S = 60


def until(done: Callable[[], bool]) -> None:
    """Wait for a cluster or a failover to settle."""
    retry = tenacity.Retrying(
        stop=tenacity.stop_after_delay(WAIT_S),
        wait=tenacity.wait_fixed(0.05),
        retry=tenacity.retry_if_result(lambda settled: not settled)
        | tenacity.retry_if_exception_type(redis.RedisError),
    )
    retry(done)


class RedisSentinel(ServerProcess):
    """One Sentinel that watches one primary, `mymaster`, and decides alone."""

    name = "sentinel"

    def __init__(self, *, directory: Path, primary: EmbeddedRedis) -> None:
        super().__init__(directory=directory)
        self._primary = primary

    def command(self, port: int) -> list[str]:
        config = self.directory / "sentinel.conf"
        config.write_text(
            f"port {port}\nbind 127.0.0.1\ndir {self.directory}\n"
            f"sentinel monitor mymaster 127.0.0.1 {self._primary.port} 1\n"
            "sentinel down-after-milliseconds mymaster 500\nsentinel failover-timeout mymaster 5000\n"
        )
        binary = shutil.which("redis-server")
        assert binary is not None
        return [binary, str(config), "--sentinel"]


@contextmanager
def three_primaries(kind: str, directory: Path) -> Iterator[list[EmbeddedRedis]]:
    """A Cluster of three primaries that share the slots."""
    with ExitStack() as stack:
        nodes = []
        for number in range(3):
            settings = {"cluster-enabled": "yes", "cluster-node-timeout": "5000", "cluster-port": str(free_port())}
            nodes.append(stack.enter_context(new_redis(kind, directory / f"node{number}", settings=settings)))
        clients = [stack.enter_context(redis.Redis.from_url(node.address)) for node in nodes]
        first, last = 0, 0
        for number, client in enumerate(clients):
            last = 16384 * (number + 1) // 3 - 1
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
            first = last + 1
        for node in nodes[1:]:
            bus = redis.Redis.from_url(node.address).config_get("cluster-port")["cluster-port"]
            clients[0].execute_command("CLUSTER", "MEET", "127.0.0.1", node.port, bus)
        until(lambda: all(settled(client) for client in clients))
        yield nodes


def settled(client: Any) -> bool:
    info = client.execute_command("CLUSTER INFO")
    return bool(info["cluster_state"] == "ok" and info["cluster_known_nodes"] == "3")
