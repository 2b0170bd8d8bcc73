"""The daemon's HTTP over a real socket: routes, refusals, tokens, odd ids, start and stop."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from service.config import Config, HttpConfig
from service.errors import CommandRefused, ConfigError, NotReady, NotRunning, UnknownId
from service.http import build_app
from service.http_client import ADDRESS_FILE, DaemonClient
from service.http_server import HttpServer
from service.metrics import Metrics

ODD_IDS = ["a/b/", "ä ö", "50%", "a?b=c#d", "line\nbreak\n", "..", "a//b", "%2F", "+", "\u0000", "😀"]


class Daemon:
    """An App that answers from what a test sets."""

    def __init__(self) -> None:
        self.is_ready = (True, "")
        self.asked: list[tuple[Any, ...]] = []

    def status(self) -> dict[str, Any]:
        return {"version": 3, "metrics": {"ndcg": np.float32(0.5), "undefined": math.nan}}

    def ready(self) -> tuple[bool, str]:
        return self.is_ready

    def recommend(self, user_id: str, k: int, include_seen: bool) -> list[dict[str, Any]]:
        self.asked.append((user_id, k, include_seen))
        if not self.is_ready[0]:
            raise NotReady("no champion yet.")
        if user_id == "crash":
            raise RuntimeError("an inside view")
        return [{"item_id": "one", "score": np.float32(1.5), "attributes": {}}]

    def similar(self, item_id: str, k: int) -> list[dict[str, Any]]:
        if item_id == "unknown":
            raise UnknownId(f"no item {item_id!r} is known.")
        self.asked.append((item_id, k))
        return []

    def explain(self, user_id: str, item_id: str) -> dict[str, Any]:
        self.asked.append((user_id, item_id))
        return {"score": np.float64(0.5)}

    def command(self, name: str, args: Mapping[str, Any]) -> dict[str, Any]:
        if args.get("version") == 99:
            raise CommandRefused("there is no version 99.")
        return {"command": name, **args}


@pytest.fixture
def daemon() -> Daemon:
    return Daemon()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(CollectorRegistry())


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text("open sesame\n")
    return path


@pytest.fixture
def server(daemon: Daemon, metrics: Metrics, token_file: Path, tmp_path: Path) -> Iterator[HttpServer]:
    app = build_app(daemon, metrics, namespace="shop", token_file=token_file)
    with HttpServer(app, HttpConfig(port=0), address_file=tmp_path / ADDRESS_FILE) as running:
        yield running


@pytest.fixture
def client(server: HttpServer) -> Iterator[httpx.Client]:
    host, port = server.address
    with httpx.Client(base_url=f"http://{host}:{port}", trust_env=False) as client:
        yield client


@pytest.fixture
def daemon_client(server: HttpServer, tmp_path: Path, token_file: Path) -> DaemonClient:
    return DaemonClient(Config(namespace="shop", state_dir=tmp_path, http=HttpConfig(token_file=token_file)))


def test_health_and_readiness(client: httpx.Client, daemon: Daemon) -> None:
    assert client.get("/healthz").status_code == 200
    assert client.get("/readyz").json() == {"ready": True, "reason": ""}
    daemon.is_ready = (False, "bootstrapping")
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json()["reason"]) == (503, "bootstrapping")
    assert client.get("/recommend/u").status_code == 503


def test_status_is_json_even_where_numbers_are_not(client: httpx.Client) -> None:
    assert client.get("/status").json() == {"version": 3, "metrics": {"ndcg": 0.5, "undefined": None}}


def test_recommend_passes_its_arguments(client: httpx.Client, daemon: Daemon) -> None:
    answer = client.get("/recommend/ann", params={"k": 7, "include_seen": 1})
    assert answer.json() == [{"item_id": "one", "score": 1.5, "attributes": {}}]
    client.get("/recommend/ann")
    assert daemon.asked == [("ann", 7, True), ("ann", 20, False)]


@pytest.mark.parametrize("path", ["/recommend/u?k=0", "/recommend/u?k=1001", "/similar/i?k=x", "/similar/i?k=-1"])
def test_k_has_its_limits(client: httpx.Client, path: str) -> None:
    answer = client.get(path)
    assert (answer.status_code, "from 1 to 1000" in answer.json()["error"]) == (400, True)


@pytest.mark.parametrize(
    "path",
    ["/recommend/u?include_seen=maybe", "/recommend/", "/similar/", "/explain/u", "/explain/u/", "/explain/u/a/b"],
)
def test_other_bad_requests(client: httpx.Client, path: str) -> None:
    assert client.get(path).status_code == 400


@pytest.mark.parametrize("identifier", ODD_IDS)
def test_ids_may_hold_any_character(daemon: Daemon, daemon_client: DaemonClient, identifier: str) -> None:
    daemon_client.recommend(identifier, 5, False)
    daemon_client.similar(identifier, 5)
    daemon_client.explain(identifier, "one")
    assert daemon_client.explain("ann", identifier) == {"score": 0.5}
    assert daemon.asked == [(identifier, 5, False), (identifier, 5), (identifier, "one"), ("ann", identifier)]


def test_an_unknown_item_is_404_with_a_sentence(client: httpx.Client, daemon_client: DaemonClient) -> None:
    answer = client.get("/similar/unknown")
    assert (answer.status_code, answer.json()) == (404, {"error": "no item 'unknown' is known."})
    with pytest.raises(UnknownId, match="no item 'unknown'"):
        daemon_client.similar("unknown", 20)


def test_a_failure_shows_no_inside_view(client: httpx.Client) -> None:
    answer = client.get("/recommend/crash")
    assert answer.status_code == 500
    assert "inside view" not in answer.text


def test_unknown_routes_and_methods(client: httpx.Client) -> None:
    assert client.get("/nothing").status_code == 404
    assert client.get("/admin/pause").status_code == 405
    assert client.post("/status").status_code == 405


def test_admin_verbs_need_the_token(client: httpx.Client, token_file: Path) -> None:
    assert client.post("/admin/pause").status_code == 401
    assert client.post("/admin/pause", headers={"Authorization": "Bearer open sesam"}).status_code == 401
    assert client.post("/admin/pause", headers={"Authorization": "Basic open sesame"}).status_code == 401
    right = {"Authorization": "Bearer open sesame"}
    assert client.post("/admin/pause", headers=right).json() == {"command": "pause", "dry_run": False}
    token_file.write_text("changed")
    assert client.post("/admin/pause", headers=right).status_code == 401
    token_file.unlink()
    assert client.post("/admin/pause", headers=right).status_code == 403


def test_without_a_token_file_admin_verbs_are_off(daemon: Daemon, metrics: Metrics) -> None:
    app = build_app(daemon, metrics, namespace="shop", token_file=None)
    with HttpServer(app, HttpConfig(port=0)) as server:
        host, port = server.address
        url = f"http://{host}:{port}/admin/pause"
        answer = httpx.post(url, headers={"Authorization": "Bearer x"}, trust_env=False)
    assert (answer.status_code, "token_file" in answer.json()["error"]) == (403, True)


@pytest.mark.parametrize(
    ("verb", "body", "code"),
    [
        ("rollback", b"", 200),
        ("rollback", b'{"to": 3, "relearn": true}', 200),
        ("rollback", b'{"two": 3}', 400),
        ("rollback", b'{"to": "three"}', 400),
        ("rollback", b"{", 400),
        ("promote", b"", 400),
        ("promote", b'{"version": 99}', 409),
        ("promote-shadow", b'{"dry_run": true}', 200),
        ("promote-shadow", b'{"version": 3}', 400),
        ("destroy", b"", 404),
    ],
)
def test_admin_bodies(client: httpx.Client, verb: str, body: bytes, code: int) -> None:
    answer = client.post(f"/admin/{verb}", content=body, headers={"Authorization": "Bearer open sesame"})
    assert answer.status_code == code
    assert ("error" in answer.json()) == (code != 200)


def test_the_client_carries_commands_and_refusals(daemon_client: DaemonClient) -> None:
    done = daemon_client.command("rollback", {"to": 2})
    assert done == {"command": "rollback", "to": 2, "relearn": False, "dry_run": False}
    assert daemon_client.status()["version"] == 3
    with pytest.raises(CommandRefused, match="no version 99"):
        daemon_client.command("promote", {"version": 99})


def test_another_namespace_is_not_this_daemon(server: HttpServer, tmp_path: Path) -> None:
    with pytest.raises(NotRunning, match="'other'"):
        DaemonClient(Config(namespace="other", state_dir=tmp_path)).status()


def test_nobody_answers_once_stopped(daemon: Daemon, metrics: Metrics, tmp_path: Path) -> None:
    server = HttpServer(
        build_app(daemon, metrics, namespace="shop", token_file=None),
        HttpConfig(port=0),
        address_file=tmp_path / ADDRESS_FILE,
    )
    server.start()
    _, port = server.address
    assert (tmp_path / ADDRESS_FILE).exists()
    server.stop()
    server.stop()
    assert not (tmp_path / ADDRESS_FILE).exists()
    with pytest.raises(NotRunning):
        DaemonClient(Config(namespace="shop", state_dir=tmp_path, http=HttpConfig(port=port))).status()


def test_a_taken_port_is_one_sentence(server: HttpServer, daemon: Daemon, metrics: Metrics) -> None:
    app = build_app(daemon, metrics, namespace="shop", token_file=None)
    with pytest.raises(ConfigError, match="cannot listen on"):
        HttpServer(app, HttpConfig(port=server.address[1])).start()


def test_metrics_count_requests_by_route_and_code(client: httpx.Client) -> None:
    for path in ("/similar/one", "/similar/two", "/similar/unknown", "/nothing", "/recommend/crash"):
        client.get(path)
    text = client.get("/metrics").text
    assert 'headwater_http_requests_total{code="200",route="/similar/{id}"} 2.0' in text
    assert 'headwater_http_requests_total{code="404",route="/similar/{id}"} 1.0' in text
    assert 'headwater_http_requests_total{code="404",route="other"} 1.0' in text
    assert 'headwater_http_requests_total{code="500",route="/recommend/{id}"} 1.0' in text
