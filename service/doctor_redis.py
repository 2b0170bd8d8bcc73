"""Doctor's checks of Redis: reachable, new enough, room for a version, no eviction, a clock that agrees."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from service.checks import Check, failed, passed, warned
from service.config import Config
from service.connections import redis_options, redis_sink
from service.errors import ConfigError
from streams.publisher import RedisSink
from streams.redis_connection import connect, translated
from streams.sink_types import SinkError, SinkUnavailable

OLDEST = (6, 2)
CLOCK_S = 2.0
# What Redis takes for a hash field beside its bytes, roughly: entries, two string headers, the table's share.
FIELD_BYTES = 120


def check_redis(config: Config, timeout_s: float) -> Iterator[Check]:
    """Whether it answers first: without that, the rest cannot be known and is left out."""
    try:
        options = {**redis_options(config), "timeout_s": min(timeout_s, config.redis.timeout_s)}
        client = connect(**options)
        with translated():
            client.ping()
            server: dict[str, Any] = client.info("server")
            memory: dict[str, Any] = client.info("memory")
            seconds, microseconds = client.time()
        here = time.time()
        sink = redis_sink(config)
    except (SinkError, ConfigError, ValueError) as error:
        away = isinstance(error, SinkUnavailable)
        hint = "Start it, or mend url in [redis]." if away else "Mend the [redis] table."
        yield failed("redis", f"{str(error).rstrip('.')}.", hint)
        return
    with sink:
        yield passed("redis", "answers.")
        yield _version(server)
        yield _policy(memory)
        yield _room(config, memory, sink)
    client.close()
    yield _clock(seconds + microseconds / 1e6 - here)


def _version(server: dict[str, Any]) -> Check:
    text = str(server["redis_version"])
    if tuple(int(part) for part in text.split(".")[:2]) < OLDEST:
        return failed("redis version", f"{text} is too old.", "Use Redis 6.2 or newer, or Valkey.")
    return passed("redis version", f"{server.get('server_name', 'redis')} {server.get('valkey_version', text)}.")


def _policy(memory: dict[str, Any]) -> Check:
    policy, limit = memory.get("maxmemory_policy", "noeviction"), int(memory.get("maxmemory", 0))
    if not limit or policy == "noeviction":
        return passed("redis eviction", f"{policy}: nothing is dropped.")
    hint = "CONFIG SET maxmemory-policy noeviction"
    if policy.startswith("volatile"):
        said = f"{policy} may drop a superseded version before its grace is over."
        return warned("redis eviction", said, hint)
    return failed("redis eviction", f"{policy} drops vectors when memory is short: readers would miss items.", hint)


def _room(config: Config, memory: dict[str, Any], sink: RedisSink) -> Check:
    """Room for the next version beside what is there."""
    used, limit = int(memory["used_memory"]), int(memory.get("maxmemory", 0))
    said = f"{used / 1e6:.0f} MB used" + (f" of {limit / 1e6:.0f} MB." if limit else ", no limit set.")
    try:
        pointer = sink.pointer()
    except SinkError as error:
        return failed("redis memory", f"{str(error).rstrip('.')}.", f"Look at {config.namespace}:current.")
    if not limit or pointer is None:
        return passed("redis memory", said)
    needed = (pointer.items + pointer.users) * (4 * pointer.dim + FIELD_BYTES)
    if limit - used < needed:
        hint = "Raise maxmemory; docs/redis.md has the sizing formula."
        return failed("redis memory", f"{said[:-1]}; the next version needs {needed / 1e6:.0f} MB.", hint)
    return passed("redis memory", said)


def _clock(ahead_s: float) -> Check:
    if abs(ahead_s) > CLOCK_S:
        said = f"Redis' clock and this one are {abs(ahead_s):.1f} s apart."
        return warned("clock", said, "Run NTP on both: freshness and absurd times are judged by the clock.")
    return passed("clock", "agrees with Redis' to the second.")
