"""A real Prometheus, with the configuration and rules that `deploy/` ships, scrapes the served `/metrics`."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client import CollectorRegistry

from service.config import HttpConfig
from service.http import build_app
from service.http_server import HttpServer
from service.metrics import Metrics
from streams.embedded import ServerProcess
from tests.unit.test_http import Daemon

SHIPPED = Path(__file__).parents[2] / "deploy" / "prometheus"
PATIENCE_S = 60.0

pytestmark = pytest.mark.servers


class Prometheus(ServerProcess):
    """One Prometheus on a free port, with `config` for its configuration and its data in its directory."""

    name = "prometheus"

    def __init__(self, *, binary: str, config: dict[str, Any], directory: Path) -> None:
        super().__init__(directory=directory)
        self._binary, self._config = binary, config

    def command(self, port: int) -> list[str]:
        file = self.directory / "prometheus.yml"
        file.write_text(yaml.safe_dump(self._config), encoding="utf-8")
        return [
            self._binary,
            f"--config.file={file}",
            f"--storage.tsdb.path={self.directory / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--log.level=warn",
        ]


@pytest.fixture
def metrics() -> Metrics:
    """Of a daemon that has learned a phase and lost some records."""
    metrics = Metrics(CollectorRegistry())
    metrics.events.inc(5000)
    metrics.lost.inc(3)
    metrics.champion_version.set(7)
    metrics.consumer_lag_records.labels("interactions", "0").set(20)
    metrics.consumer_lag_records.labels("interactions", "1").set(22)
    metrics.freshness_seconds.labels("user").observe(0.2)
    metrics.prequential.labels('odd "name"\\ of\na metric').set(0.25)
    return metrics


@pytest.fixture
def address(metrics: Metrics) -> Iterator[str]:
    """Where the daemon's HTTP listens."""
    with HttpServer(build_app(Daemon(), metrics, namespace="shop", token_file=None), HttpConfig(port=0)) as server:
        yield "{}:{}".format(*server.address)


@pytest.fixture
def client(prometheus: str, address: str, tmp_path: Path) -> Iterator[httpx.Client]:
    """A client of a Prometheus that looks at that address, more often than the shipped configuration has it."""
    config = yaml.safe_load((SHIPPED / "prometheus.yml").read_text(encoding="utf-8"))
    config["global"] = {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "200ms"}
    config["rule_files"] = [str(SHIPPED / name) for name in config["rule_files"]]
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [address]
    with (
        Prometheus(binary=prometheus, config=config, directory=tmp_path) as server,
        httpx.Client(base_url=f"http://{server.address}", trust_env=False) as client,
    ):
        yield client


def ask(client: httpx.Client, query: str) -> list[dict[str, Any]]:
    """The query's result, once there is one."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        answer = client.get("/api/v1/query", params={"query": query})
        # Before it is ready, it answers 503.
        if answer.status_code == 200 and (result := answer.json()["data"]["result"]):
            return list(result)
        time.sleep(0.05)
    targets = client.get("/api/v1/targets").text
    pytest.fail(f"{query} has no result; targets: {targets}")


def value(client: httpx.Client, query: str) -> float:
    (only,) = ask(client, query)
    return float(only["value"][1])


def test_prometheus_finds_what_the_daemon_counts(client: httpx.Client, metrics: Metrics) -> None:
    assert value(client, 'up{job="headwater"} == 1') == 1
    assert value(client, "headwater_events_total") == 5000
    assert value(client, "headwater_champion_version") == 7
    assert value(client, 'headwater_freshness_seconds_count{kind="user"}') == 1
    (odd,) = ask(client, "headwater_prequential")
    assert odd["metric"]["metric"] == 'odd "name"\\ of\na metric'
    metrics.events.inc()
    assert value(client, "headwater_events_total == 5001") == 5001


def test_the_shipped_rules_record_and_fire(client: httpx.Client) -> None:
    assert value(client, "instance:headwater_consumer_lag_records:sum") == 42
    (alert,) = ask(client, 'ALERTS{alertname="HeadwaterLost"}')
    assert alert["metric"]["alertstate"] == "firing"
    assert alert["metric"]["severity"] == "critical"


def test_promtool_accepts_what_is_served(address: str, promtool: str) -> None:
    served = httpx.get(f"http://{address}/metrics", trust_env=False)
    done = subprocess.run([promtool, "check", "metrics"], input=served.content, capture_output=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")
