"""Whatever is sent to the daemon's port, it answers or hangs up, changes nothing without the token, and goes on."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.routing import Route

from service.config import HttpConfig
from service.http import COMMANDS, build_app
from service.http_server import HttpServer
from service.metrics import Metrics
from tests.fuzz.mutations import mutated_bytes
from tests.unit.test_http import Daemon

TOKEN = "open sesame"
REQUESTS = (
    b"GET /recommend/u1?k=5 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    b"GET /explain/u1/i%2F1 HTTP/1.1\r\nHost: x\r\nHeadwater-Namespace: shop\r\nConnection: close\r\n\r\n",
    b"POST /admin/rollback HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer guess\r\nContent-Length: 9\r\n"
    b'Connection: close\r\n\r\n{"to": 3}',
    b"POST /admin/pause HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    b"2\r\n{}\r\n0\r\n\r\n",
    b"GET /metrics HTTP/1.0\r\nAccept: application/openmetrics-text\r\n\r\n",
)
COUNT = 300


class Watched(Daemon):
    """Notes every command that gets through."""

    def __init__(self) -> None:
        super().__init__()
        self.commands: list[str] = []

    def command(self, name: str, args: Mapping[str, Any]) -> dict[str, Any]:
        self.commands.append(name)
        return super().command(name, args)


@pytest.fixture(scope="module")
def daemon() -> Watched:
    return Watched()


@pytest.fixture(scope="module")
def address(daemon: Watched, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    token = tmp_path_factory.mktemp("http") / "token"
    token.write_text(TOKEN)
    app = build_app(daemon, Metrics(CollectorRegistry()), namespace="shop", token_file=token)
    with HttpServer(app, HttpConfig(port=0)) as server:
        yield server.address


def answer(address: tuple[str, int], raw: bytes, *, whole: bool) -> bytes:
    """What comes back until the server hangs up. Where the request may not be `whole`, the client says that no more
    comes, and the server need not answer then."""
    with socket.create_connection(address, timeout=20) as connection:
        received = b""
        try:
            connection.sendall(raw)
            if not whole:
                connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(65536):
                received += part
        except ConnectionError:
            pass
        return received


def test_mutated_requests_are_answered_or_hung_up_on(address: tuple[str, int], daemon: Watched) -> None:
    chance, codes = random.Random(1), set()
    for _ in range(COUNT):
        received = answer(address, mutated_bytes(chance.choice(REQUESTS), chance), whole=False)
        if received:
            assert received.startswith(b"HTTP/1.1 "), received[:100]
            codes.add(int(received[9:12]))
    assert {200, 400, 401, 404} <= codes
    assert not {code for code in codes if code >= 500}
    assert daemon.commands == []
    assert httpx.get("http://{}:{}/healthz".format(*address), trust_env=False).status_code == 200


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    method=st.sampled_from(["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS"]),
    path=st.lists(
        st.sampled_from(
            [*COMMANDS, "admin", "recommend", "similar", "explain", "..", "%2e", "%00", "%ff", "metrics", "é"]
        )
        | st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
        max_size=4,
    ),
    query=st.dictionaries(st.sampled_from(["k", "include_seen", "x"]), st.text(max_size=6)),
    token=st.none() | st.text(st.characters(codec="latin-1", exclude_categories=["Cc"]), max_size=12),
    body=st.binary(max_size=40) | st.sampled_from([b"{}", b'{"to": 1}', b"[" * 5000]),
)
def test_nothing_changes_without_the_token(
    address: tuple[str, int], daemon: Watched, method: str, path: list[str], query: dict[str, str], token: str | None,
    body: bytes,
) -> None:  # fmt: skip
    target = f"/{'/'.join(quote(part, safe='%.') for part in path)}?{urlencode(query)}"
    line = f"{method} {target} HTTP/1.1\r\nHost: x\r\n".encode()
    authorization = b"" if token is None else f"Authorization: Bearer {token}\r\n".encode("latin-1")
    rest = b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body
    received = answer(address, line + authorization + rest, whole=True)
    assert received.startswith(b"HTTP/1.1 ")
    assert int(received[9:12]) < 500
    assert daemon.commands == []


def test_every_route_that_takes_more_than_a_question_is_behind_the_token() -> None:
    app: Any = build_app(Watched(), Metrics(CollectorRegistry()), namespace="shop", token_file=None)
    served: Starlette = app.app
    routes = [route for route in served.routes if isinstance(route, Route)]
    changing = [route.path for route in routes if (route.methods or set()) - {"GET", "HEAD"}]
    assert len(routes) == len(served.routes)
    assert changing == ["/admin/{name}"]


def test_it_listens_on_this_machine_alone_unless_it_is_told_otherwise() -> None:
    assert HttpConfig().host == "127.0.0.1"


def test_the_token_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare(given: bytes, wanted: bytes) -> bool:
        compared.append((given, wanted))
        return given == wanted

    (tmp_path / "token").write_text(TOKEN)
    monkeypatch.setattr("service.http.secrets.compare_digest", compare)
    app = build_app(Watched(), Metrics(CollectorRegistry()), namespace="shop", token_file=tmp_path / "token")
    with HttpServer(app, HttpConfig(port=0)) as server:
        url = "http://{}:{}/admin/pause".format(*server.address)
        for given in ("open", TOKEN):
            httpx.post(url, headers={"Authorization": f"Bearer {given}"}, trust_env=False)
    assert compared == [(b"open", TOKEN.encode()), (TOKEN.encode(), TOKEN.encode())]
