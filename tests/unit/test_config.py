"""The configuration: sources and their order, what is refused and how it is said, secrets, documentation."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from models.spec import ModelSpec
from service.config import Config, KafkaConfig, RedisConfig, config_digest, load_config, read_secret
from service.errors import ConfigError, SecretError
from service.reference import configuration_table, documented


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in [name for name in os.environ if name.upper().startswith("HEADWATER__")]:
        monkeypatch.delenv(variable)


def write(directory: Path, text: str) -> Path:
    path = directory / "headwater.toml"
    path.write_text(text)
    return path


def test_defaults_are_the_documented_ones() -> None:
    config = load_config(None)
    assert config == Config()
    assert (config.namespace, config.seed, config.state_dir) == ("headwater", 0, Path("var/headwater"))
    assert config.events.min_time.isoformat() == "1990-01-01T00:00:00+00:00"


def test_environment_wins_over_file_and_overrides_over_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, 'namespace = "file"\n[kafka]\nbootstrap_servers = "file:1"\ngroup_id = "file"\n')
    monkeypatch.setenv("HEADWATER__KAFKA__BOOTSTRAP_SERVERS", "environment:2")
    monkeypatch.setenv("HEADWATER__NAMESPACE", "environment")
    config = load_config(path, overrides={"namespace": "override"})
    assert (config.namespace, config.kafka.bootstrap_servers) == ("override", "environment:2")
    assert config.kafka.group_id == "file"


def test_mappings_come_from_the_environment_as_json_or_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWATER__MODEL__MODALITIES", '{"text": 384, "video": 64}')
    monkeypatch.setenv("HEADWATER__MODEL__FRAMES__VIDEO", "16")
    monkeypatch.setenv("HEADWATER__EVENTS__FIELDS__USER_ID", "uid")
    config = load_config(None)
    assert config.model.modalities == {"text": 384, "video": 64}
    assert config.model.frames == {"video": 16}
    assert config.events.fields == {"user_id": "uid"}


def test_calling_config_directly_reads_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWATER__NAMESPACE", "environment")
    assert Config().namespace == "headwater"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            '[kafka]\nbootstrap_server = "x"',
            'unknown key "bootstrap_server" in [kafka]; the nearest known one is "bootstrap_servers" in [kafka].',
        ),
        ("max_events = 3", 'unknown key "max_events"; the nearest known one is "max_events" in [phase].'),
        ("[model]\ndims = 3", 'unknown key "dims" in [model]; the nearest known one is "dim" in [model].'),
        ("[kafak]\nx = 1", 'unknown key "kafak"; the nearest known one is "kafka" at the top level.'),
        ("[phase]\nmax_events = 1.5", '"max_events" in [phase] must be a whole number, not 1.5.'),
        ('[phase]\nmax_events = "many"', '"max_events" in [phase] must be a whole number, not "many".'),
        ("[phase]\nmax_events = 0", '"max_events" in [phase] must be greater than or equal to 1, not 0.'),
        ("[http]\nhost = 3", '"host" in [http] must be text in quotes, not 3.'),
        ('[model]\nhead = "big"', '"head" in [model] must be one of "dot", "mlp", not "big".'),
        ('[model.modalities]\ntext = "x"', '"text" in [model.modalities] must be a whole number, not "x".'),
        ("model = 3", '"model" must be a table, not 3.'),
        ("[model]\ndim = 0", '"dim" in [model] must be at least 1, not 0.'),
        ("[model]\nlikeness = -1", '"likeness" in [model] must be 0 or greater, not -1.'),
        (
            "[model]\nvintage = 1",
            '"vintage" in [model] must be 0 or at least 2, not 1: one time alone tells nothing of another.',
        ),
        (
            "[train.actions]\n" + "\n".join(f"a{number} = -1.0" for number in range(64)),
            "[train.actions] names 64 actions, of which 63 at most are told apart",
        ),
        ("[model]\nvintage = -1", '"vintage" in [model] must be 0 or greater, not -1.'),
        ("[model]\nfactors = -1", '"factors" in [model] must be 0 or greater, not -1.'),
        ("[model]\ncooccurrence = -1", '"cooccurrence" in [model] must be 0 or greater, not -1.'),
        ("[train]\ndropout = 1.0", '"dropout" in [train] must be at least 0 and less than 1, not 1.0.'),
        ("[model.frames]\nvideo = 3", '"video" in [model.frames] is not one of [model.modalities].'),
        (
            '[kafka]\nitems_topic = "interactions"',
            'the topic "interactions" in [kafka] is named for more than one kind',
        ),
        ('[kafka]\nsecurity_protocol = "SASL_SSL"', 'also needs "security_sasl_mechanism"'),
        ('[redis]\nurl = "http://x"', '"url" in [redis] must start with one of redis://'),
        ("[events]\nmin_time = 1990-01-01T00:00:00", "must be a time with its zone"),
    ],
)
def test_one_sentence_says_what_is_wrong(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, text))
    assert sentence in str(caught.value)
    assert len(caught.value.problems) == 1


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, 'sed = 1\n[http]\nport = "x"\n[log]\nlevel = "loud"'))
    assert len(caught.value.problems) == 3


def test_bad_toml_names_the_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="line 2"):
        load_config(write(tmp_path, "seed = 1\nseed = = 2\n"))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no configuration file .*absent\.toml"):
        load_config(tmp_path / "absent.toml")


@pytest.mark.parametrize(
    ("variable", "sentence"),
    [
        ("HEADWATER__KAFKA__BOOTSTRAP_SERVER", 'nearest known one is "bootstrap_servers" in [kafka]'),
        ("HEADWATER__KAFAK__BOOTSTRAP_SERVERS", 'nearest known one is "bootstrap_servers" in [kafka]'),
        ("HEADWATER__SEDE", 'nearest known one is "seed" at the top level'),
    ],
)
def test_unknown_environment_variables_are_refused_too(
    monkeypatch: pytest.MonkeyPatch, variable: str, sentence: str
) -> None:
    monkeypatch.setenv(variable, "x")
    with pytest.raises(ConfigError) as caught:
        load_config(None)
    assert sentence in str(caught.value)


def test_an_environment_variable_that_is_not_json_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWATER__KAFKA", "{oops")
    with pytest.raises(ConfigError, match="not valid JSON"):
        load_config(None)
    monkeypatch.delenv("HEADWATER__KAFKA")
    monkeypatch.setenv("HEADWATER__MODEL__MODALITIES", "{oops")
    with pytest.raises(ConfigError, match=r'"modalities" in \[model\] must be a table, not "{oops"'):
        load_config(None)


def test_a_config_cannot_change() -> None:
    with pytest.raises(ValidationError):
        Config().seed = 3
    with pytest.raises(ValidationError):
        Config().kafka.group_id = "x"


def test_digest_follows_what_decides_the_weights() -> None:
    base = config_digest(Config())
    variants: list[dict[str, Any]] = [{"seed": 1}, {"model": {"dim": 3}}, {"train": {"batch": 3}}]
    assert len({base, *(config_digest(Config(**variant)) for variant in variants)}) == 4
    assert config_digest(Config(namespace="other", kafka=KafkaConfig(group_id="other"))) == base
    forward: dict[str, Any] = {"modalities": {"a": 1, "b": 2}}
    backward: dict[str, Any] = {"modalities": {"b": 2, "a": 1}}
    assert config_digest(Config(model=ModelSpec(**forward))) == config_digest(Config(model=ModelSpec(**backward)))


def test_secrets_are_read_anew_and_never_shown(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("first\n")
    first = read_secret(path)
    assert first is not None
    assert first.get_secret_value() == "first"
    assert "first" not in repr(first)
    path.write_text("second")
    second = read_secret(path)
    assert second is not None
    assert second.get_secret_value() == "second"
    assert read_secret(None) is None


def test_an_unreadable_or_empty_secret_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SecretError, match="cannot be read"):
        read_secret(tmp_path / "absent")
    (tmp_path / "empty").write_text(" \n")
    with pytest.raises(SecretError, match="is empty"):
        read_secret(tmp_path / "empty")


def test_a_password_in_the_url_is_not_shown() -> None:
    assert "hush" not in repr(Config(redis=RedisConfig(url="redis://:hush@host")))


def test_the_documentation_is_the_code() -> None:
    assert documented("configuration") == configuration_table()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "[train.align]\nclip = 1.0",
            '"clip" in [train.align] must be one of "infonce", "cosine", "triplet", not "clip".',
        ),
        ("[train.align]\ncosine = 0", '"cosine" in [train.align] must be greater than 0 and finite, not 0.0.'),
        (
            "[train.auxiliary]\nranking = 1",
            '"ranking" in [train.auxiliary] must be one of "rating", "click", not "ranking".',
        ),
        (
            '[model]\nobjective = "click"\n[train.auxiliary]\nclick = 1',
            '"click" in [train.auxiliary] is the "objective" in [model] already.',
        ),
        ("[train]\nmodality_dropout = 1", '"modality_dropout" in [train] must be at least 0 and less than 1, not 1.0.'),
    ],
)
def test_what_is_learned_beside_is_checked(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_config(write(tmp_path, text))
    assert sentence in refused.value.problems


@pytest.mark.parametrize("url", ['["redis://me:pa55word@host"]', '"http://me:pa55word@host"', "{a = 'pa55word'}"])
def test_a_password_in_a_wrong_url_is_not_shown(tmp_path: Path, url: str) -> None:
    path = tmp_path / "headwater.toml"
    path.write_text(f"[redis]\nurl = {url}\n")
    with pytest.raises(ConfigError, match='"url" in \\[redis\\] must') as refused:
        load_config(path)
    assert "pa55word" not in str(refused.value)
    assert "pa55word" not in repr(load_config(None, {"redis": {"url": "redis://me:pa55word@host"}}))
