"""Doctor: what it says of sound and broken configurations, absent servers, and real ones."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.checks import Check
from service.config import load_config
from service.connections import redis_sink
from service.doctor import examine
from service.state_dir import StateDirectory
from streams.embedded import EmbeddedBroker, EmbeddedRedis, free_port
from streams.kafka_producer import EventProducer


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker(directory=tmp_path_factory.mktemp("broker")) as running:
        with EventProducer(bootstrap_servers=running.address) as producer:
            producer.ensure_topics(["clicks", "goods", "broken"], partitions=2, compacted=["goods"])
            for number in range(20):
                event = {"user_id": "u", "item_id": f"i{number}", "action": "view", "time": "2026-01-02T03:04:05Z"}
                producer.send("clicks", b"u", json.dumps(event).encode(), timestamp_ms=1_767_323_045_000)
                producer.send("broken", b"u", b"nonsense", timestamp_ms=1_767_323_045_000)
            producer.flush()
        yield running


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(directory=tmp_path_factory.mktemp("redis")) as running:
        yield running


def write_config(directory: Path, kafka: str = "", redis: str = "", more: str = "") -> Path:
    nowhere = f"127.0.0.1:{free_port()}"
    path = directory / "headwater.toml"
    path.write_text(
        f'state_dir = "{directory / "state"}"\n'
        f"[http]\nport = 0\n"
        f'[kafka]\nbootstrap_servers = "{kafka or nowhere}"\ninteractions_topic = "clicks"\nitems_topic = "goods"\n'
        f'[redis]\nurl = "{redis or "redis://" + nowhere}"\n{more}'
    )
    return path


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def test_a_broken_configuration_ends_it(tmp_path: Path) -> None:
    path = write_config(tmp_path, more="[phase]\nmax_event = 1\n[log]\nlevel = 3\n")
    checks = examine(path)
    assert [check.outcome for check in checks] == ["FAIL", "FAIL"]
    assert "max_events" in checks[0].detail


def test_absent_servers_fail_with_a_hint_and_hide_nothing_else(tmp_path: Path) -> None:
    # A process of its own: the Kafka client leaves a refused connection's socket to the garbage collector.
    command = [sys.executable, "-m", "service.cli", "doctor", "--json", "-c", str(write_config(tmp_path))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    checks = by_name([Check(**check) for check in json.loads(done.stdout)])
    assert (done.returncode, done.stderr) == (1, "")
    assert checks["configuration"].outcome == "PASS"
    assert checks["state directory"].outcome == "PASS"
    assert (checks["broker"].outcome, checks["redis"].outcome) == ("FAIL", "FAIL")
    assert checks["broker"].hint
    assert checks["redis"].hint


@pytest.mark.servers
def test_settings_that_only_their_users_know_are_checked(
    tmp_path: Path, broker: EmbeddedBroker, redis: EmbeddedRedis
) -> None:
    more = '[model]\nfusion = "melting"\n[events.fields]\nuser = "uid"\n'
    checks = examine(write_config(tmp_path, broker.address, redis.address, more))
    said = [check.detail for check in checks if check.outcome == "FAIL"]
    assert any("melting" in detail for detail in said)
    assert any("`user`" in detail for detail in said)


@pytest.mark.servers
def test_real_servers_pass(tmp_path: Path, broker: EmbeddedBroker, redis: EmbeddedRedis) -> None:
    checks = by_name(examine(write_config(tmp_path, broker.address, redis.address)))
    assert [check for check in checks.values() if check.outcome == "FAIL"] == []
    assert checks["topic clicks"].detail.startswith("2 partitions")
    assert checks["events"].detail.startswith("20 of the newest 20")
    assert checks["event ids"].outcome == "WARN"
    assert not (tmp_path / "state").exists(), "doctor only looks"
    config = load_config(write_config(tmp_path, broker.address, redis.address))
    with redis_sink(config) as sink:
        assert sink.pointer() is None


@pytest.mark.servers
def test_missing_topics_and_unusable_events_fail(tmp_path: Path, broker: EmbeddedBroker, redis: EmbeddedRedis) -> None:
    path = write_config(tmp_path, broker.address, redis.address)
    path.write_text(path.read_text().replace('"goods"', '"absent"'))
    assert by_name(examine(path))["topic absent"].outcome == "FAIL"
    path.write_text(path.read_text().replace('"absent"', '""').replace('"clicks"', '"broken"'))
    events = by_name(examine(path))["events"]
    assert (events.outcome, "not_json 20" in events.detail) == ("FAIL", True)


@pytest.mark.servers
def test_state_of_another_cluster_fails(tmp_path: Path, broker: EmbeddedBroker, redis: EmbeddedRedis) -> None:
    with StateDirectory.open(tmp_path / "state", "headwater") as state:
        state.bind("another", {})
        checks = by_name(examine(write_config(tmp_path, broker.address, redis.address)))
    assert checks["cluster identity"].outcome == "FAIL"
    assert "in use by process" in checks["state directory"].detail


@pytest.mark.servers
def test_an_evicting_redis_fails(tmp_path: Path, broker: EmbeddedBroker) -> None:
    settings = {"maxmemory": "50mb", "maxmemory-policy": "allkeys-lru"}
    with EmbeddedRedis(directory=tmp_path / "redis", settings=settings) as evicting:
        checks = by_name(examine(write_config(tmp_path, broker.address, evicting.address)))
    assert checks["redis eviction"].outcome == "FAIL"
