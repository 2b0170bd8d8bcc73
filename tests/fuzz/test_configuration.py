"""Whatever a configuration file holds, it is a configuration or a list of sentences."""

from __future__ import annotations

import random
import tomllib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.config import Config, load_config, shadow_of
from service.config_problems import known_keys
from service.connections import event_decoder, redis_options, user_ids
from service.errors import ConfigError
from tests.daemon_process import toml
from tests.fuzz.mutations import mutated_bytes

EXAMPLE = Path(__file__).parents[2] / "deploy" / "examples" / "headwater.toml"
COUNT = 300

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
    | st.sampled_from(["", "../..", "redis://", "ranking", "\0", "inf", "2026-01-01T00:00:00Z", "{"])
)  # fmt: skip
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
)
keys = st.sampled_from(known_keys(Config)) | st.tuples(st.text(max_size=8), st.text(max_size=8))


def loaded(path: Path | None, tables: dict[str, object] | None = None) -> bool:
    """Loads it, and uses it as the daemon's start does; whether it is a configuration."""
    try:
        config = load_config(path, tables)
        event_decoder(config)
        user_ids(config)
        redis_options(config)
        shadow_of(config)
    except ConfigError as error:
        said = error.problems
    except ValueError as error:  # of the decoder, which `doctor` and the command line show as it is
        said = (str(error),)
    else:
        return True
    assert said
    assert all(sentence.strip() and "Traceback" not in sentence for sentence in said)
    return False


@pytest.mark.slow
def test_a_damaged_file_is_loaded_or_refused(tmp_path: Path) -> None:
    whole, path, chance = EXAMPLE.read_bytes(), tmp_path / "headwater.toml", random.Random(1)
    path.write_bytes(whole)
    assert loaded(path)
    whole_still = 0
    for _ in range(COUNT):
        path.write_bytes(mutated_bytes(whole, chance))
        whole_still += loaded(path)
    assert 0.02 * COUNT < whole_still < 0.98 * COUNT


@pytest.mark.slow
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(keys, values, max_size=4))
def test_any_values_are_a_configuration_or_sentences(tmp_path: Path, given: dict[tuple[str, str], object]) -> None:
    tables: dict[str, object] = {}
    for (table, key), value in given.items():
        if not table:
            tables[key] = value
        elif isinstance(inner := tables.setdefault(table, {}), dict):
            inner[key] = value
    loaded(None, tables)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(keys, st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)))
def test_any_environment_is_a_configuration_or_sentences(given: dict[tuple[str, str], str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for (table, key), value in given.items():
            name = f"HEADWATER__{table}__{key}" if table else f"HEADWATER__{key}"
            if "=" not in name and "\0" not in name and name.isprintable() and name.isascii():
                patch.setenv(name.upper(), value)
        loaded(None)


def test_the_writer_of_the_tests_is_read_back() -> None:
    tables = {"a": 1, "b": {"c": "d", "e": {"f": [1, 2]}}}
    assert tomllib.loads(toml(tables)) == tables
