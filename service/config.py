"""The whole configuration: one frozen value, read from a TOML file and the environment, and checked in one place."""

from __future__ import annotations

import hashlib
import json
import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, SecretStr, TypeAdapter, ValidationError, model_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from models.memory import ACTIONS
from models.spec import ModelSpec, TrainSpec
from service.config_problems import describe, unknown_environment
from service.config_tables import (
    EvaluateConfig,
    EventsConfig,
    HttpConfig,
    KafkaConfig,
    LogConfig,
    PhaseConfig,
    PromotionConfig,
    PublishConfig,
    RedisConfig,
    ShadowConfig,
)
from service.errors import ConfigError, SecretError

__all__ = [
    "Config",
    "EvaluateConfig",
    "EventsConfig",
    "HttpConfig",
    "KafkaConfig",
    "LogConfig",
    "PhaseConfig",
    "PromotionConfig",
    "PublishConfig",
    "RedisConfig",
    "ShadowConfig",
    "config_digest",
    "load_config",
    "read_secret",
    "shadow_of",
]

TOPOLOGIES = ("sentinel", "cluster")
ENV_PREFIX = "HEADWATER__"
SHARED_WITH_SHADOW = {
    "model": ("objective", "modalities", "frames", "user_features"),
    "train": ("actions", "device", "threads"),
}
"""What the shadow cannot have otherwise."""
SEE = "Every key is described in docs/configuration.md."


def _decode_json(table: Any) -> Any:
    """The environment gives mappings as JSON text, decoded by the settings library for models but not dataclasses."""
    if not isinstance(table, Mapping):
        return table
    return {key: _decoded(value) if isinstance(value, str) else value for key, value in table.items()}


def _decoded(text: str) -> Any:
    try:
        return json.loads(text) if text.lstrip().startswith("{") else text
    except ValueError:
        return text  # Validation names the key and shows the text.


class Config(BaseSettings):
    """The whole configuration. `load_config` reads it; calling it directly reads neither file nor environment."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        protected_namespaces=(),
    )

    namespace: str = Field(default="headwater", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    """First part of every Redis key; one per recommender that shares a Redis."""
    state_dir: Path = Path("./var/headwater")
    """Directory of checkpoints and everything else the daemon keeps; one per daemon."""
    seed: int = Field(default=0, ge=0)
    """Seed of everything random."""
    delete_deadline_days: int = Field(default=30, ge=1)
    """Checkpoints that still know a deleted user or item are pruned after so many days, kept versions or not."""
    kafka: KafkaConfig = KafkaConfig()
    redis: RedisConfig = RedisConfig()
    events: EventsConfig = EventsConfig()
    phase: PhaseConfig = PhaseConfig()
    model: Annotated[ModelSpec, BeforeValidator(_decode_json)] = ModelSpec()
    train: Annotated[TrainSpec, BeforeValidator(_decode_json)] = TrainSpec()
    evaluate: EvaluateConfig = EvaluateConfig()
    promotion: PromotionConfig = PromotionConfig()
    shadow: ShadowConfig = ShadowConfig()
    publish: PublishConfig = PublishConfig()
    http: HttpConfig = HttpConfig()
    log: LogConfig = LogConfig()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what is passed in: `load_config` merges the sources itself, so that a test's Config is what it says."""
        return (init_settings,)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if problems := [*_contradictions(self), *_of_the_shadow(self)]:
            # The sentences go through as data: a template would choke on braces in a user's names.
            raise PydanticCustomError("contradiction", "{text}", {"text": "\n".join(problems)})
        return self


def _contradictions(config: Config) -> Iterator[str]:
    """Everything that types alone cannot say: ranges inside the model's tables, and keys that need each other."""
    model, train, kafka = config.model, config.train, config.kafka
    at_least_one = {
        "model": {name: getattr(model, name) for name in ("dim", "history")},
        "train": {name: getattr(train, name) for name in ("batch", "negatives")},
    }
    for table, values in at_least_one.items():
        for name, value in values.items():
            if value < 1:
                yield f'"{name}" in [{table}] must be at least 1, not {value}.'
    for name in ("likeness", "vintage", "cooccurrence", "factors"):
        if (value := getattr(model, name)) < 0:
            yield f'"{name}" in [model] must be 0 or greater, not {value}.'
    if (named := len(train.actions.keys() - {"default"})) >= ACTIONS:
        yield (
            f"[train.actions] names {named} actions, of which {ACTIONS - 1} at most are told apart: leave out those "
            'that weigh as "default" does.'
        )
    if model.vintage == 1:
        yield '"vintage" in [model] must be 0 or at least 2, not 1: one time alone tells nothing of another.'
    for name in ("modalities", "frames", "user_features"):
        for key, value in getattr(model, name).items():
            if value < 1:
                yield f'"{key}" in [model.{name}] must be at least 1, not {value}.'
    for key in model.frames:
        if key not in model.modalities:
            yield f'"{key}" in [model.frames] is not one of [model.modalities].'
    if not train.learning_rate > 0:
        yield f'"learning_rate" in [train] must be greater than 0, not {train.learning_rate}.'
    if not train.replay_half_life > 0:
        yield f'"replay_half_life" in [train] must be greater than 0, not {train.replay_half_life}.'
    replay = ("replay_ratio", "replay_rare", "replay_patience")
    for name in ("weight_decay", "distil", *replay, "threads", "full_softmax_items"):
        if not getattr(train, name) >= 0:
            yield f'"{name}" in [train] must be 0 or greater, not {getattr(train, name)}.'
    for name in ("dropout", "average", "id_dropout", "encoder_dropout", "modality_dropout"):
        if not 0 <= getattr(train, name) < 1:
            yield f'"{name}" in [train] must be at least 0 and less than 1, not {getattr(train, name)}.'
    for name in ("align", "auxiliary"):
        for key, value in getattr(train, name).items():
            if not 0 < value < float("inf"):
                yield f'"{key}" in [train.{name}] must be greater than 0 and finite, not {value}.'
    if model.objective in train.auxiliary:
        yield f'"{model.objective}" in [train.auxiliary] is the "objective" in [model] already.'
    if kafka.security_protocol.startswith("SASL") and not kafka.security_sasl_mechanism:
        yield f'"security_protocol" = "{kafka.security_protocol}" in [kafka] also needs "security_sasl_mechanism".'
    if kafka.security_sasl_mechanism and not (kafka.security_username and kafka.security_password_file):
        yield '"security_sasl_mechanism" in [kafka] also needs "security_username" and "security_password_file".'
    topics = [kafka.interactions_topic, kafka.items_topic, kafka.users_topic, kafka.dead_letter_topic]
    for topic in sorted({topic for topic in topics if topic and topics.count(topic) > 1}):
        yield f'the topic "{topic}" in [kafka] is named for more than one kind of record.'
    schemes = ("redis://", "rediss://", "unix://", *(f"{r}+{t}://" for r in ("redis", "rediss") for t in TOPOLOGIES))
    if not config.redis.url.startswith(schemes):
        yield f'"url" in [redis] must start with one of {", ".join(schemes)}.'


def shadow_of(config: Config) -> Config | None:
    """The configuration of the shadow, None where `[shadow]` is empty. Raises `ValidationError` for its keys and
    values, which a `Config` has been checked for."""
    shadow = config.shadow
    if not shadow.model and not shadow.train:
        return None
    model = TypeAdapter(ModelSpec).validate_python({**asdict(config.model), **_decode_json(shadow.model)})
    train = TypeAdapter(TrainSpec).validate_python({**asdict(config.train), **_decode_json(shadow.train)})
    return config.model_copy(update={"model": model, "train": train, "shadow": ShadowConfig()})


def _of_the_shadow(config: Config) -> Iterator[str]:
    """What is wrong with the shadow alone."""
    for table, shared in SHARED_WITH_SHADOW.items():
        for key in getattr(config.shadow, table):
            if key in shared:
                yield f'"{key}" in [shadow.{table}] cannot differ from [{table}]: the two share events and memory.'
    try:
        other = shadow_of(config)
    except ValidationError as error:
        yield from (f"in [shadow]: {sentence}" for sentence in describe(Config, error))
        return
    known = set(_contradictions(config))
    for problem in _contradictions(other) if other else ():
        if problem not in known:
            yield problem.replace("[model", "[shadow.model").replace("[train", "[shadow.train")


def load_config(path: Path | str | None, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read a TOML file, then the environment over it, then `overrides` (nested tables like the file's) over both.

    `path` None reads no file. Raises `ConfigError` for a missing file, bad TOML, unknown keys and wrong values.
    """
    try:
        from_environment: dict[str, Any] = EnvSettingsSource(Config)()
    except SettingsError as error:
        cause = f": {error.__cause__}" if error.__cause__ else ""
        raise ConfigError(f"an environment variable is not valid JSON ({error}{cause}).", hint=SEE) from error
    problems = list(unknown_environment(Config, os.environ, ENV_PREFIX))
    merged: dict[str, Any] = {}
    for source in (_read_file(Path(path)) if path is not None else {}, from_environment, overrides or {}):
        merged = _merge(merged, source)
    try:
        config = Config(**merged)
    except ValidationError as error:
        problems += describe(Config, error)
    if problems:
        where = f"{path}: " if path is not None else ""
        raise ConfigError(where + " Also: ".join(problems), hint=SEE, problems=problems)
    return config


def config_digest(config: Config) -> str:
    """SHA-256 (hex) of what decides the weights besides the events: the model, its training and the seed."""
    decisive = {"model": asdict(config.model), "train": asdict(config.train), "seed": config.seed}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def read_secret(path: Path | None) -> SecretStr | None:
    """The password or token in a file, without surrounding white space; None for no file.

    Call it each time the secret is needed: a file that a secret store replaced is then used without a restart.
    Raises `SecretError`, which never holds the secret.
    """
    if path is None:
        return None
    try:
        secret = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise SecretError(
            f"the secret file {path} cannot be read: {reason}.", hint="Check its path and mode."
        ) from error
    if not secret:
        raise SecretError(f"the secret file {path} is empty.", hint="Write the secret into it.")
    return SecretStr(secret)


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"there is no configuration file {path}.", hint="Name an existing one with -c.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the configuration file {path} cannot be read: {error}.") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}.", hint="Mend that line.") from error


def _merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` on top of `under`, table by table."""
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged
