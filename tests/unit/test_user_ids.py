"""Hashed user ids: what every reader can compute, what nothing stored tells, and what a lost key may not do."""

from __future__ import annotations

import hashlib
import hmac
import json
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from service.config import Config
from service.connections import event_decoder, user_ids
from service.control import local_app
from service.engine import Engine
from service.errors import ForeignState, SecretError, UnknownId
from service.metrics import Metrics
from service.replay import replay
from service.state_dir import StateDirectory
from streams.events import Record
from streams.user_ids import fingerprint, keyed, plain

KEY = "correct horse battery staple"
NOW_MS = 1_750_000_000_000
EVENT = {"user_id": "ann@example.org", "item_id": "i1", "action": "click", "time": NOW_MS}


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_text(KEY + "\n")
    return path


def config_of(directory: Path, key_file: Path | None, **more: Any) -> Config:
    tables: dict[str, Any] = {
        "state_dir": directory / "state",
        "events": {"user_id_key_file": key_file},
        "model": {"dim": 4, "history": 4, "user_features": {"taste": 2}},
        "kafka": {"users_topic": "users"},
        "train": {"threads": 1},
    }
    return Config.model_validate(tables | more)


def test_the_hash_is_the_documented_one() -> None:
    whole = hmac.new(KEY.encode(), b"ann@example.org", hashlib.sha256).hexdigest()
    assert keyed(KEY.encode())("ann@example.org") == whole[:32] == "3fddfcebdb454c588f524ca2fea3eb55"


def test_a_user_has_one_hash_and_two_users_or_keys_have_two() -> None:
    hashed, other = keyed(KEY.encode()), keyed(b"another key, as long")
    assert hashed("1") == hashed("1")
    assert len({hashed("1"), hashed("2"), other("1"), plain("1")}) == 4


def test_ids_are_hashed_wherever_a_record_names_a_user(tmp_path: Path, key_file: Path) -> None:
    decoder, hashed = event_decoder(config_of(tmp_path, key_file)), keyed(KEY.encode())("ann@example.org")

    def record(value: Any, key: bytes | None = None) -> Record:
        return Record("t", 0, 0, NOW_MS, key, None if value is None else json.dumps(value).encode())

    assert decoder.interaction(record(EVENT)).user_id == hashed
    assert decoder.interaction(record(EVENT)).item_id == "i1"
    assert decoder.user(record({"user_id": "ann@example.org"})).user_id == hashed
    assert decoder.user(record(None, b"ann@example.org")).user_id == hashed
    assert decoder.user(record({"user_id": "ann@example.org", "deleted": True})).user_id == hashed


def test_a_key_that_is_missing_or_too_short_is_one_sentence(tmp_path: Path, key_file: Path) -> None:
    key_file.write_text("too short")
    with pytest.raises(SecretError, match="too short") as refused:
        user_ids(config_of(tmp_path, key_file))
    assert "at least 16" in str(refused.value)
    key_file.unlink()
    with pytest.raises(SecretError, match="cannot be read"):
        user_ids(config_of(tmp_path, key_file))


def learned(directory: Path, key_file: Path | None) -> Config:
    """A state directory that has learned a few clicks of Ann's."""
    config = config_of(directory, key_file)
    events = directory / "events.jsonl"
    lines = [{"user_id": "ann@example.org", "time": NOW_MS, "features": {"taste": [1.0, 0.0]}}]
    lines += [EVENT | {"item_id": f"i{n}", "time": NOW_MS + 1000 * n} for n in range(10)]
    events.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert replay(config, [events]) == 0
    return config


def test_nothing_stored_tells_the_id_and_questions_are_asked_by_it(tmp_path: Path, key_file: Path) -> None:
    config = learned(tmp_path, key_file)
    for path in config.state_dir.rglob("*"):
        assert not path.is_file() or b"ann@example" not in path.read_bytes(), path
    app = local_app(config)
    assert app.explain("ann@example.org", "i1")["score"] is not None
    assert app.recommend("ann@example.org", 5, True) != app.recommend("nobody", 5, True)
    assert not {one["item_id"] for one in app.recommend("ann@example.org", 5, False)}, "she has seen them all"
    with pytest.raises(UnknownId, match="nobody"):
        app.explain("nobody", "i1")


def test_without_a_key_ids_are_stored_as_they_are(tmp_path: Path) -> None:
    config = learned(tmp_path, None)
    found = [path for path in config.state_dir.rglob("*.seg") if b"ann@example" in path.read_bytes()]
    assert found, "or the test above could not fail"


def test_a_state_keeps_to_its_key(tmp_path: Path, key_file: Path) -> None:
    config = learned(tmp_path, key_file)
    key_file.write_text("another key, as long as it must be")
    for changed, had in ((config, "another key"), (config_of(tmp_path, None), "another key")):
        with StateDirectory.open(changed.state_dir, "headwater") as state, pytest.raises(ForeignState, match=had):
            Engine(config=changed, state=state, metrics=Metrics(CollectorRegistry()), clock=lambda: 0.0)
    identity = (config.state_dir / "identity.json").read_text()
    assert KEY not in identity
    assert fingerprint(keyed(KEY.encode())) in identity


def test_a_state_of_plain_ids_takes_no_key_later(tmp_path: Path, key_file: Path) -> None:
    learned(tmp_path, None)
    config = config_of(tmp_path, key_file)
    with StateDirectory.open(config.state_dir, "headwater") as state, pytest.raises(ForeignState, match="with no key"):
        Engine(config=config, state=state, metrics=Metrics(CollectorRegistry()), clock=lambda: 0.0)
