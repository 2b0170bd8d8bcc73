"""The tables of the configuration file, each a frozen class; the sentence under a field is its documentation.

`docs/configuration.md` is generated from these (a test holds the two together). `[model]` and `[train]` are stated in
`models.spec`. `service.config` puts the tables together, reads the file and the environment, and checks across tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=1)]
CountOrNone = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Days = Seconds
PositiveSeconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, lt=1)]


class Table(BaseModel):
    """What every table has in common: immutable, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True)


class KafkaConfig(Table):
    """Where events are read."""

    bootstrap_servers: str = "localhost:9092"
    """Brokers to start from, `host:port`, comma-separated."""
    group_id: str = "headwater"
    """Group that offsets are committed to, for lag tools only; the daemon itself resumes from its checkpoints."""
    interactions_topic: str = Field(default="interactions", min_length=1)
    """Topic of interactions."""
    items_topic: str = "items"
    """Compacted topic of items; empty: none."""
    users_topic: str = ""
    """Compacted topic of users; empty: none."""
    dead_letter_topic: str = ""
    """Topic for records that cannot be used; empty: they are counted and logged only."""
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    """How to talk to the brokers."""
    security_sasl_mechanism: Literal["", "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = ""
    """SASL mechanism, with the two `SASL_` protocols."""
    security_username: str = ""
    """SASL user."""
    security_password_file: Path | None = None
    """File holding the SASL password."""
    security_ca_file: Path | None = None
    """PEM file of the authorities that may have signed the brokers' certificates; none: the system's."""
    security_cert_file: Path | None = None
    """PEM file of the client's certificate."""
    security_key_file: Path | None = None
    """PEM file of the client's private key."""
    on_data_loss: Literal["stop", "count"] = "stop"
    """When Kafka has deleted records not yet learned: stop with an error, or count them as `lost` and go on."""
    buffer_records: Count = 200_000
    """Records read ahead of learning; when so many wait, the consumer pauses."""
    partition_idle_s: PositiveSeconds = 5.0
    """A partition without a record for this long no longer holds the watermark back."""


class RedisConfig(Table):
    """Where vectors are published."""

    url: str = Field(default="redis://localhost:6379/0", repr=False)
    """`redis://host:6379/0`, `rediss://…` over TLS, `unix:///path`, `redis+sentinel://host1,host2/mymaster/0` or
    `redis+cluster://host1,host2`; better keep a password out of it, in `password_file`."""
    username: str = ""
    """ACL user; empty: the default user."""
    password_file: Path | None = None
    """File holding the password."""
    ca_file: Path | None = None
    """PEM file of the authorities that may have signed the server's certificate; none: the system's."""
    cert_file: Path | None = None
    """PEM file of the client's certificate."""
    key_file: Path | None = None
    """PEM file of the client's private key."""
    timeout_s: PositiveSeconds = 5.0
    """Longest wait for a connection or an answer."""


class EventsConfig(Table):
    """What counts as a usable event."""

    fields: Mapping[str, str] = Field(default_factory=dict)
    """Other names for fields, ours = yours, e.g. `{user_id = "uid", time = "ts"}`."""
    min_time: AwareDatetime = datetime(1990, 1, 1, tzinfo=UTC)
    """Events before this are absurd and go to the dead letters."""
    max_ahead_s: Seconds = 86_400
    """Events further than this after their own Kafka timestamp are absurd and go to the dead letters."""
    dedupe_events: CountOrNone = 5_000_000
    """How many of the last event ids are remembered to drop duplicates; 8 bytes each in memory and checkpoint."""
    max_record_bytes: Count = 1_000_000
    """Larger records go to the dead letters."""
    max_id_bytes: Count = 512
    """Longest id of a user, item or event, in UTF-8 bytes."""
    max_new_ids: Count = 1_000_000
    """Users, and items, that the interactions of one phase may bring, of each; records that bring more go to the dead
    letters."""
    max_users: Count = 20_000_000
    """Users remembered at most, deleted ones included; records that bring more go to the dead letters."""
    max_items: Count = 5_000_000
    """Items remembered at most, deleted ones included; records that bring more go to the dead letters."""
    expire_items_days: Days = 0
    """Days of event time after its last event, or its announcement, at which an item is forgotten until it is announced
    again; 0: never. It still counts for `max_items` and `full_softmax_items`."""
    expire_users_days: Days = 0
    """Days of event time after their last event at which a user is forgotten, with all they did; 0: never."""
    user_id_key_file: Path | None = None
    """File holding a key, of 16 bytes or more, that user ids are hashed with before they are stored or published; none:
    they are kept as they come. Fixed for the life of a state_dir."""


class PhaseConfig(Table):
    """When a phase closes: on the first of its limits."""

    max_events: Count = 5000
    """Interactions in a phase at most."""
    max_wait_s: PositiveSeconds = 60
    """Time since the phase's first record, at most."""
    window_s: Seconds = 0
    """Length of event-time windows that phases must not cross; 0: none."""
    allowed_lateness_s: Seconds = 0
    """How far the watermark must pass a window's end before the window closes."""


class EvaluateConfig(Table):
    """How each phase's events measure the model before it learns from them."""

    k: Count = 20
    """Length of the ranked list that the metrics look at."""
    max_per_phase: Count = 2000
    """Events measured in a phase; beyond it, a seeded uniform sample of them."""
    holdout: Share = 0.2
    """Share of a phase, its last by time, that the judge keeps back; learned in the next phase."""


class PromotionConfig(Table):
    """Whether a freshly trained candidate may replace the champion."""

    mode: Literal["auto", "hold"] = "auto"
    """`auto`: serve every candidate that passes; `hold`: learn on, but serve only what is promoted by hand."""
    tolerance: float = Field(default=0.02, ge=0, lt=1)
    """Relative loss of quality against the champion that still passes."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    """How sure the paired, one-sided test must be that the candidate is worse before it is refused."""
    min_events: Count = 400
    """Held-out events that the test needs; earlier windows are pooled until there are enough."""
    windows: Count = 8
    """Held-out windows that are pooled at most."""
    floor: float = Field(default=0.1, ge=0, lt=1)
    """How far the served version's live score may stay below decayed popularity's, relative to that, before an earlier
    version that surely does better is served again."""
    auto_rollback: bool = True
    """Whether that happens by itself, while promotion is not held; the figures are there either way."""


class ShadowConfig(Table):
    """A second configuration that learns on the same stream, for comparison; off while both tables are empty."""

    model: Mapping[str, Any] = Field(default_factory=dict)
    """Keys of `[model]` that the shadow has otherwise, but for `objective`, modalities and user features."""
    train: Mapping[str, Any] = Field(default_factory=dict)
    """Keys of `[train]` that the shadow has otherwise, but for `actions`, `device` and `threads`."""


class PublishConfig(Table):
    """How versions are laid out in Redis and kept on disk."""

    buckets: Annotated[int, Field(ge=1, le=16_384)] = 64
    """Hashes that a version's ids are spread over."""
    keep_versions: Count = 5
    """Checkpoints kept on disk to roll back to."""
    grace_s: PositiveSeconds = 60
    """How long a superseded version's keys stay for readers that pinned it."""
    users_active_days: Days = 0
    """Publish only users active within so many days of the watermark, and those known by features alone; 0: all."""
    chunk: Annotated[int, Field(ge=1, le=100_000)] = 500
    """Vectors in one pipelined write; smaller is kinder to readers' latency."""


class HttpConfig(Table):
    """The daemon's own address: metrics, health, recommendations, admin verbs."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: Annotated[int, Field(ge=0, le=65_535)] = 8080
    """Port to listen on; 0: any free one, which the log and `state_dir/http.json` name."""
    token_file: Path | None = None
    """File holding the bearer token of the admin verbs; none: they are refused over HTTP."""


class LogConfig(Table):
    """What the daemon says."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least level shown."""
    format: Literal["auto", "json", "console"] = "auto"
    """`json`: one object a line; `console`: for people; `auto`: console on a terminal, JSON elsewhere."""
