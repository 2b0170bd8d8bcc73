"""Doctor: what it says of sound and broken configurations, absent servers, and real ones."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from service.checks import Check
from service.doctor import examine
from service.state_dir import StateDirectory
from streams.embedded import free_port
from tests.servers import Broker, new_redis


def write_config(directory: Path, kafka: str = "", redis: str = "", topics: Sequence[str] = (), more: str = "") -> Path:
    nowhere = f"127.0.0.1:{free_port()}"
    interactions, items = topics or ("absent", "")
    path = directory / "headwater.toml"
    path.write_text(
        f'state_dir = "{directory / "state"}"\n'
        f"[http]\nport = 0\n"
        f'[kafka]\nbootstrap_servers = "{kafka or nowhere}"\n'
        f'interactions_topic = "{interactions}"\nitems_topic = "{items}"\n'
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


def send(broker: Broker, topic: str, values: list[bytes]) -> str:
    for value in values:
        broker.producer.send(topic, b"u", value)
    broker.producer.flush()
    return topic


def clicks(count: int) -> list[bytes]:
    event = {"user_id": "u", "item_id": "i", "action": "view", "time": "2026-01-02T03:04:05Z"}
    return [json.dumps(event).encode()] * count


@pytest.mark.servers
def test_settings_that_only_their_users_know_are_checked(tmp_path: Path, kafka: Broker, redis_url: str) -> None:
    more = '[model]\nfusion = "melting"\n[events.fields]\nuser = "uid"\n'
    checks = examine(write_config(tmp_path, kafka.address, redis_url, more=more))
    said = [check.detail for check in checks if check.outcome == "FAIL"]
    assert any("melting" in detail for detail in said)
    assert any("`user`" in detail for detail in said)


@pytest.mark.servers
def test_real_servers_pass(tmp_path: Path, kafka: Broker, redis_url: str) -> None:
    topics = [send(kafka, kafka.topic(partitions=2), clicks(20)), kafka.topic(compacted=True)]
    path = write_config(tmp_path, kafka.address, redis_url, topics)
    checks = by_name(examine(path))
    assert [check for check in checks.values() if check.outcome == "FAIL"] == []
    assert checks[f"topic {topics[0]}"].detail.startswith("2 partitions")
    assert checks["events"].detail.startswith("20 of the newest 20")
    assert checks["event ids"].outcome == "WARN"
    assert not (tmp_path / "state").exists(), "doctor only looks"


@pytest.mark.servers
def test_missing_topics_and_unusable_events_fail(tmp_path: Path, kafka: Broker, redis_url: str) -> None:
    nonsense = send(kafka, kafka.topic(), [b"nonsense"] * 20)
    assert (
        by_name(examine(write_config(tmp_path, kafka.address, redis_url, [nonsense, "absent"])))["topic absent"].outcome
        == "FAIL"
    )
    events = by_name(examine(write_config(tmp_path, kafka.address, redis_url, [nonsense, ""])))["events"]
    assert (events.outcome, "not_json 20" in events.detail) == ("FAIL", True)


@pytest.mark.servers
def test_state_of_another_cluster_fails(tmp_path: Path, kafka: Broker, redis_url: str) -> None:
    path = write_config(tmp_path, kafka.address, redis_url, [kafka.topic(), ""])
    with StateDirectory.open(tmp_path / "state", "headwater") as state:
        state.bind("another", {})
        checks = by_name(examine(path))
    assert checks["cluster identity"].outcome == "FAIL"
    assert "in use by process" in checks["state directory"].detail


@pytest.mark.servers
def test_an_evicting_redis_fails(tmp_path: Path, kafka: Broker) -> None:
    settings = {"maxmemory": "50mb", "maxmemory-policy": "allkeys-lru"}
    with new_redis("embedded", tmp_path / "redis", settings=settings) as evicting:
        checks = by_name(examine(write_config(tmp_path, kafka.address, evicting.address)))
    assert checks["redis eviction"].outcome == "FAIL"
