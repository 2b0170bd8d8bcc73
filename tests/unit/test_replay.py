"""Replay: files through the same phases, resumable, and the judge's cuts."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
import torch

from models.spec import ModelSpec
from service.config import Config
from service.config_tables import PhaseConfig
from service.errors import InputFileError
from service.phase_log import read_phase_lines
from service.replay import judge_cuts, replay


def events(path: Path, first: int, last: int) -> Path:
    rows = [
        {"user_id": f"u{n % 7}", "item_id": f"i{(n * 5) % 11}", "action": "view", "time": 1_700_000_000 + n}
        for n in range(first, last)
    ]
    path.write_bytes(b"\n".join(map(msgspec.json.encode, rows)) + b"\n")
    return path


def config_of(directory: Path) -> Config:
    return Config(
        namespace="test", state_dir=directory, model=ModelSpec(dim=4, history=3), phase=PhaseConfig(max_events=50)
    )


def final_weights(directory: Path) -> dict[str, torch.Tensor]:
    newest = sorted((directory / "checkpoints").iterdir())[-1]
    state = torch.load(newest / "weights.pt", weights_only=True)
    scorer: dict[str, torch.Tensor] = state["trainer"]["learner"]["scorer"]
    return scorer


def test_an_interrupted_replay_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    whole = events(tmp_path / "whole.jsonl", 0, 200)
    part = events(tmp_path / "part.jsonl", 0, 100)
    assert replay(config_of(tmp_path / "a"), [whole]) == 0
    assert replay(config_of(tmp_path / "b"), [part]) == 0
    assert replay(config_of(tmp_path / "b"), [whole]) == 0
    lines_a, lines_b = (read_phase_lines(tmp_path / name / "phases.jsonl") for name in "ab")
    assert [line.events for line in lines_a] == [line.events for line in lines_b] == [50] * 4
    assert [line.end for line in lines_a] == [line.end for line in lines_b]
    mine, resumed = final_weights(tmp_path / "a"), final_weights(tmp_path / "b")
    assert all(torch.equal(mine[name], resumed[name]) for name in mine)


def test_a_line_that_is_no_event_is_counted_and_the_rest_is_learned(tmp_path: Path) -> None:
    path = events(tmp_path / "events.jsonl", 0, 60)
    path.write_bytes(b"rubbish\n" + path.read_bytes())
    out = tmp_path / "out.json"
    assert replay(config_of(tmp_path / "state"), [path], json_out=out) == 0
    summary = json.loads(out.read_text())
    assert (summary["events"], summary["rejected"]) == (60, 1)
    assert "recall_at_20" in summary["metrics"]


def test_events_that_have_no_topic_to_go_to_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = events(tmp_path / "events.jsonl", 0, 60)
    path.write_bytes(b'{"user_id": "u1"}\n{"user_id": "u2"}\n' + path.read_bytes())
    out = tmp_path / "out.json"
    assert replay(config_of(tmp_path / "state"), [path], json_out=out) == 0
    summary = json.loads(out.read_text())
    assert (summary["events"], summary["rejected"], summary["no_topic"]) == (60, 0, {"users": 2})
    assert "there is no [kafka] users_topic" in " ".join(capsys.readouterr())  # brackets are no markup


def test_the_judge_leaves_no_state_behind(tmp_path: Path) -> None:
    path = events(tmp_path / "events.jsonl", 0, 50)
    out = tmp_path / "out.json"
    assert replay(config_of(tmp_path / "state"), [path], judge=True, json_out=out) == 0
    assert not (tmp_path / "state").exists()
    assert json.loads(out.read_text())["events"] == 50


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="There is no file"):
        replay(config_of(tmp_path / "state"), [tmp_path / "absent.jsonl"])


def test_cuts_part_no_timestamp() -> None:
    times = [0.0, 1.0, 1.0, 1.0, 2.0, 3.0, 3.0, 4.0, 5.0, 6.0]
    cuts = judge_cuts(times, warm=0.2, phases=4)
    assert cuts[0] == 0
    assert cuts[-1] == len(times)
    assert all(times[cut] != times[cut - 1] for cut in cuts[1:-1])
