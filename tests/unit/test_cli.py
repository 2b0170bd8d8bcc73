"""The command line: sentences instead of tracebacks, exit codes, tables and JSON, and its documentation."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from typer.testing import CliRunner

from service.cli import app
from service.cli_errors import complain
from service.config import Config, HttpConfig, load_config
from service.connections import redis_sink
from service.errors import UnknownId
from service.http import build_app
from service.http_client import ADDRESS_FILE
from service.http_server import HttpServer
from service.metrics import Metrics
from service.reference import command_sections, documented
from streams.embedded import free_port
from streams.redis_keys import Pointer

VERBS = (
    "demo run replay produce doctor status versions rollback promote promote-shadow pause resume "
    "lookup similar recommend explain"
)


@pytest.fixture
def runner() -> CliRunner:
    return CliRunner(env={"COLUMNS": "200", "HEADWATER_CONFIG": ""})


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("the daemon did not start", "The daemon did not start. Why"),
        ("var/demo was made by another release.", "var/demo was made by another release. Why"),
        ("a.toml cannot be read.", "a.toml cannot be read. Why"),
    ],
)
def test_a_complaint_is_a_sentence_and_leaves_paths_as_they_are(
    message: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    complain(message, "Why")
    assert capsys.readouterr().err == f"{said}\n"


def write_config(directory: Path, namespace: str, redis: str) -> Path:
    path = directory / "headwater.toml"
    path.write_text(
        f'namespace = "{namespace}"\nstate_dir = "{directory}"\n'
        f'[redis]\nurl = "{redis}"\n[http]\nport = {free_port()}\n'
    )
    return path


@pytest.fixture(autouse=True)
def no_others_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Verbs run in this process, where clients of brokers that other tests share go on logging."""
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("kafka."):
            monkeypatch.setattr(logging.getLogger(name), "disabled", True)


def test_help_names_every_verb(runner: CliRunner) -> None:
    shown = runner.invoke(app, ["--help"]).output
    assert all(verb in shown for verb in VERBS.split())


def test_the_documentation_is_the_code() -> None:
    assert documented("cli") == command_sections()


def test_version(runner: CliRunner) -> None:
    assert runner.invoke(app, ["--version"]).output.strip()


@pytest.mark.parametrize(
    "verb", [["run"], ["status"], ["recommend", "u"], ["lookup", "items", "i"], ["produce", "f.csv"]]
)
def test_a_bad_configuration_is_one_sentence(runner: CliRunner, tmp_path: Path, verb: list[str]) -> None:
    path = tmp_path / "headwater.toml"
    path.write_text("[kafka]\nbootstrap = 'x'\n")
    result = runner.invoke(app, [*verb, "-c", str(path)])
    assert (result.exit_code, result.stdout) == (1, "")
    assert 'unknown key "bootstrap" in [kafka]' in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        ["unheard-of"],
        ["replay"],
        ["replay", "f.csv", "--preset", "textbook"],
        ["replay", "--preset", "unheard-of"],
        ["lookup", "things", "1"],
        ["recommend", "u", "--k", "0"],
        ["promote"],
    ],
)
def test_a_wrong_command_line_exits_2(runner: CliRunner, wrong: list[str]) -> None:
    assert runner.invoke(app, wrong).exit_code == 2


def test_ctrl_c_is_quiet(runner: CliRunner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupted(*_: object) -> list[Any]:
        raise KeyboardInterrupt

    monkeypatch.setattr("service.lookup.lookup", interrupted)
    result = runner.invoke(app, ["lookup", "items", "i", "-c", str(write_config(tmp_path, "n", "redis://localhost"))])
    assert (result.exit_code, result.output) == (130, "")


def test_redis_away_is_one_sentence(runner: CliRunner, tmp_path: Path) -> None:
    path = write_config(tmp_path, "shop", f"redis://127.0.0.1:{free_port()}/0")
    result = runner.invoke(app, ["lookup", "items", "i", "-c", str(path)])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("Redis is away")


@pytest.mark.servers
def test_lookup_reads_as_a_ranking_service_does(
    runner: CliRunner, tmp_path: Path, redis_url: str, namespace: str
) -> None:
    path = write_config(tmp_path, namespace, redis_url)
    before = runner.invoke(app, ["lookup", "items", "i", "-c", str(path)])
    assert (before.exit_code, "Nothing is published" in before.stderr) == (1, True)
    publish(load_config(path))
    both = runner.invoke(app, ["lookup", "items", "i/1", "absent", "-c", str(path), "--json"])
    assert both.exit_code == 1
    assert json.loads(both.stdout) == [
        {"id": "i/1", "version": 1, "found": True, "vector": [1.0, 2.0]},
        {"id": "absent", "version": 1, "found": False, "vector": None},
    ]
    nobody = runner.invoke(app, ["lookup", "users", "nobody", "-c", str(path), "--json"])
    assert json.loads(nobody.stdout) == [{"id": "nobody", "version": 1, "found": False, "vector": [0.0, 0.5]}]
    table = runner.invoke(app, ["lookup", "items", "i/1", "-c", str(path)])
    assert (table.exit_code, "i/1" in table.stdout, "2.236" in table.stdout) == (0, True, True)


def publish(config: Config) -> None:
    """One version with one item, as the daemon would."""
    with redis_sink(config) as sink:
        epoch = sink.claim()
        sink.write(1, "items", ["i/1"], np.array([[1, 2]], dtype=np.float32))
        sink.flip(
            Pointer(
                version=1,
                epoch=epoch,
                dim=2,
                buckets=config.publish.buckets,
                items=1,
                users=0,
                default_user=np.array([0, 0.5], dtype="<f4").tobytes(),
                published_at="2026-01-02T03:04:05Z",
                event_time="2026-01-02T03:04:04Z",
                writer="test",
            )
        )


class Daemon:
    """What a running daemon would answer."""

    def status(self) -> dict[str, Any]:
        return {}

    def ready(self) -> tuple[bool, str]:
        return True, ""

    def recommend(self, user_id: str, k: int, include_seen: bool) -> list[dict[str, Any]]:
        return [
            {"item_id": f"{user_id}-{include_seen}-{n}", "score": -n, "attributes": {"title": "[red]"}}
            for n in range(k)
        ]

    def similar(self, item_id: str, k: int) -> list[dict[str, Any]]:
        raise UnknownId(f"no item {item_id!r} is known.")

    def explain(self, user_id: str, item_id: str) -> dict[str, Any]:
        event = {
            "item_id": "[bold]", "action": "[blue]", "value": 4.5, "time": 1e9, "attributes": {"title": "[green]"},
            "score": 0.25,
        }  # fmt: skip
        return {
            "user_id": user_id, "item_id": item_id, "version": 3, "score": 1.5, "attributes": {"title": "[red]"},
            "item": {"modalities": {"[text]": 0.5}, "id": 0.125, "bias": 0.0, "rest": 0.875},
            "user": {"anyone": 1.0, "history": [event], "rest": -0.0625},
        }  # fmt: skip

    def command(self, name: str, args: Mapping[str, Any]) -> dict[str, Any]:
        return {}


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Path]:
    """The config of a running daemon."""
    path = write_config(tmp_path, "shop", "redis://localhost")
    served = build_app(Daemon(), Metrics(CollectorRegistry()), namespace="shop", token_file=None)
    with HttpServer(served, HttpConfig(port=0), address_file=tmp_path / ADDRESS_FILE):
        yield path


def test_recommend_asks_the_running_daemon(runner: CliRunner, running: Path) -> None:
    result = runner.invoke(app, ["recommend", "a/b", "--k", "2", "--include-seen", "--json", "-c", str(running)])
    assert json.loads(result.stdout) == [
        {"item_id": "a/b-True-0", "score": 0, "attributes": {"title": "[red]"}},
        {"item_id": "a/b-True-1", "score": -1, "attributes": {"title": "[red]"}},
    ]
    table = runner.invoke(app, ["recommend", "u", "-c", str(running)]).stdout
    assert "u-False-19" in table
    assert "[red]" in table, "an attribute is text, not markup"


def test_a_refusal_of_the_daemon_is_one_sentence(runner: CliRunner, running: Path) -> None:
    result = runner.invoke(app, ["similar", "i", "-c", str(running)])
    assert (result.exit_code, result.stderr) == (1, "No item 'i' is known.\n")


def test_explain_shows_both_sides_of_a_score(runner: CliRunner, running: Path) -> None:
    result = runner.invoke(app, ["explain", "ann/1", "one", "--json", "-c", str(running)])
    assert json.loads(result.stdout)["user_id"] == "ann/1"
    table = runner.invoke(app, ["explain", "ann/1", "one", "-c", str(running)]).stdout
    for text in ("one for ann/1, by version 3", "[red]", "[text]", "[bold]", "[blue] 4.5", "[green]", "2001-09-09"):
        assert text in table
    for figure in ("+0.5000", "+0.1250", "+0.2500", "-0.0625"):
        assert figure in table
    assert table.count("+1.5000") == 2, "each side ends with the score"
    assert "mean" not in table, "a ranking has no base"


def test_explain_without_state_is_one_sentence(runner: CliRunner, tmp_path: Path) -> None:
    result = runner.invoke(app, ["explain", "u", "i", "-c", str(write_config(tmp_path, "shop", "redis://localhost"))])
    assert (result.exit_code, result.stdout) == (1, "")
    assert "has no version to answer from" in result.stderr
