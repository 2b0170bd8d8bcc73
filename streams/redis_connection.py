"""From a URL to a Redis client: standalone, Sentinel or Cluster; TLS; ACL user; every wait bounded.

    redis://host:6379/0                            rediss://… the same over TLS
    unix:///run/redis.sock?db=0
    redis+sentinel://host1:26379,host2:26379/mymaster/0      rediss+sentinel://…
    redis+cluster://host1:7000,host2:7000                    rediss+cluster://…

User and password may stand in the URL (`redis://user:password@host`) or be given apart; options of redis-py can follow
`?` (`ssl_ca_certs`, `ssl_certfile`, `ssl_keyfile`, …). For Sentinel, user and password are those of the Redis servers;
`sentinel_username` and `sentinel_password` may follow `?`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.connection import Connection, parse_url
from redis.credentials import CredentialProvider
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    ClusterError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry
from redis.sentinel import Sentinel

from streams.sink_types import SinkRefused, SinkUnavailable

Client = redis.Redis | RedisCluster
Password = str | Callable[[], str | None] | None

_SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster")

_LACKS_RIGHT = "its ACL user lacks a right: docs/redis.md lists what the daemon and a reader need"
_WRONG_LOGIN = "it does not accept the user and password: set them in the [redis] table"
_NO_MEMORY = "it is out of memory: raise maxmemory (docs/redis.md has the sizing formula)"
_READ_ONLY = "it is a read-only replica: point [redis] url at the primary, or use redis+sentinel://"

# redis-py takes the code off a message that it has a class for, but not off one that comes out of a script.
_HINTS_BY_CLASS: tuple[tuple[type[RedisError], str], ...] = (
    (OutOfMemoryError, _NO_MEMORY),
    (ReadOnlyError, _READ_ONLY),
    (NoPermissionError, _LACKS_RIGHT),
    (AuthenticationError, _WRONG_LOGIN),
    (AuthorizationError, _LACKS_RIGHT),
)
_HINTS_BY_TEXT = {
    "OOM": _NO_MEMORY,
    "READONLY": _READ_ONLY,
    "NOPERM": _LACKS_RIGHT,
    "can't run this command": _LACKS_RIGHT,
    "WRONGPASS": _WRONG_LOGIN,
    "MISCONF": "it cannot save to its disk and refuses writes: free disk space there",
    "WRONGTYPE": "a key of this namespace holds something else: choose another namespace",
}


class _Credentials(CredentialProvider):
    """Asks for the password at each connection, so that a rotated secret is taken up without a restart."""

    def __init__(self, username: str | None, password: Callable[[], str | None]) -> None:
        self._username, self._password = username, password

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        password = self._password() or ""
        return (self._username, password) if self._username else (password,)


def connect(url: str, *, username: str | None = None, password: Password = None, timeout_s: float = 5.0) -> Client:
    """Build a client for `url`; a user or password given apart wins over the URL's.

    `password` may be a callable, asked at each new connection. A Cluster is asked for its nodes at once, so that this
    can raise `SinkUnavailable`; the others connect at first use. Raises ValueError for a URL that cannot be understood.
    """
    security, _, topology = urlsplit(url).scheme.partition("+")
    nodes, service, options = _parse(url)
    options |= {"socket_timeout": timeout_s, "socket_connect_timeout": timeout_s}
    options |= {"protocol": 2}  # Redis 6.2 and all that speak like it; nothing here needs RESP3
    options |= {"driver_info": None}  # its CLIENT SETINFO would be a denial in the ACL log at each connection
    _give_credentials(options, username, password)
    if topology == "cluster":
        _drop(options, "connection_class", "host", "port", "db")
        with translated():
            startup = [ClusterNode(host, port) for host, port in nodes]  # type: ignore[no-untyped-call]
            if security == "rediss":
                options |= {"redis_connect_func": _take_tickets}
            return RedisCluster(startup_nodes=startup, ssl=security == "rediss", retry=Retry(NoBackoff(), 3), **options)
    # One retry at once: a pooled connection may have died unseen. Longer waits are the caller's.
    options |= {"retry": Retry(NoBackoff(), 1), "health_check_interval": 30}
    if security == "rediss":
        options |= {"redis_connect_func": _greet}
    if topology == "sentinel":
        _drop(options, "connection_class", "host", "port")
        of_sentinel = {name: options.pop(f"sentinel_{name}", None) for name in ("username", "password")}
        shared = {
            name: value
            for name, value in options.items()
            if name.startswith(("socket_", "ssl", "protocol", "retry", "driver_", "redis_connect_"))
        }
        sentinel: Any = Sentinel(  # type: ignore[no-untyped-call]
            nodes, sentinel_kwargs={**shared, **of_sentinel, "ssl": security == "rediss"}
        )
        master: redis.Redis = sentinel.master_for(service, ssl=security == "rediss", **options)
        return master
    return redis.Redis.from_pool(redis.ConnectionPool(**options))


def _parse(url: str) -> tuple[list[tuple[str, int]], str, dict[str, Any]]:
    """Nodes, the Sentinel's service name, and redis-py's options for one node, out of a URL."""
    parts = urlsplit(url)
    if parts.scheme not in _SCHEMES:
        raise ValueError(f"redis url {_masked(url)!r} must begin with one of {', '.join(f'{s}://' for s in _SCHEMES)}")
    security, _, topology = parts.scheme.partition("+")
    userinfo, at, hosts = parts.netloc.rpartition("@")
    first, _, _ = hosts.partition(",")
    service, _, db = parts.path[1:].partition("/") if topology == "sentinel" else ("", "", parts.path[1:])
    if topology == "sentinel" and not service:
        raise ValueError(f"redis url {_masked(url)!r} needs the service's name: {parts.scheme}://host:26379/mymaster")
    # redis-py's own parser casts options and unquotes; it knows URLs of one host only.
    plain = urlunsplit((security, f"{userinfo}{at}{first}", f"/{db}", parts.query, ""))
    options: dict[str, Any] = dict(parse_url(plain))  # type: ignore[no-untyped-call]
    nodes = []
    for host in hosts.split(","):
        node = urlsplit(f"//{host}")
        nodes.append((node.hostname or "localhost", node.port or (26379 if topology == "sentinel" else 6379)))
    return nodes, service, options


def _give_credentials(options: dict[str, Any], username: str | None, password: Password) -> None:
    if username:
        options["username"] = username
    if callable(password):
        _drop(options, "password")
        options["credential_provider"] = _Credentials(options.pop("username", None), password)
    elif password:
        options["password"] = password


def _greet(connection: Connection) -> None:
    connection.on_connect()  # type: ignore[no-untyped-call]
    _take_tickets(connection)


def _take_tickets(connection: Connection) -> None:
    """Read the session tickets that a TLS 1.3 server sends once the handshake is over: they come before this answer.

    Unread, they make a fresh connection look as if an answer had been left on it, and redis-py refuses to use it.
    """
    connection.send_command("PING", check_health=False)  # type: ignore[no-untyped-call]
    connection.read_response()


def _drop(options: dict[str, Any], *names: str) -> None:
    for name in names:
        options.pop(name, None)


def _masked(url: str) -> str:
    """The URL without its password, for messages."""
    parts = urlsplit(url)
    _, at, hosts = parts.netloc.rpartition("@")
    return urlunsplit((parts.scheme, f"***{at}{hosts}" if at else hosts, parts.path, "", ""))


@contextmanager
def translated() -> Iterator[None]:
    """Turn redis-py's errors into `SinkRefused` (needs a person; with a hint) or `SinkUnavailable` (needs time)."""
    try:
        yield
    except (AuthenticationError, AuthorizationError) as error:  # kinds of ConnectionError, yet time will not mend them
        raise _refusal(error) from error
    except (RedisConnectionError, RedisTimeoutError, ClusterError, RedisClusterException, OSError) as error:
        raise SinkUnavailable(
            f"Redis is away ({_short(error)}): check that it runs and that the url is right"
        ) from error
    except RedisError as error:
        raise _refusal(error) from error


def _refusal(error: RedisError) -> SinkRefused:
    text = _short(error)
    hint = next((hint for kind, hint in _HINTS_BY_CLASS if isinstance(error, kind)), None)
    hint = hint or next((hint for mark, hint in _HINTS_BY_TEXT.items() if mark in text), None)
    return SinkRefused(f"Redis refused: {hint}" if hint else f"Redis refused what was asked: {text}")


def _short(error: BaseException) -> str:
    """What Redis said, without the command that redis-py puts before it in a pipeline, vectors and all."""
    text = (str(error) or type(error).__name__).rpartition("of pipeline caused error: ")[2]
    return text if len(text) <= 300 else f"{text[:300]}…"
