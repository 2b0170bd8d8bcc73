"""What can be configured about the scorer and its training.

These dataclasses are the `[model]` and `[train]` tables of the configuration file: they are stated here once, validated
by `service.config`, and known to nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

Alignment = Literal["infonce", "cosine", "triplet"]
Auxiliary = Literal["rating", "click"]
VALUES_READ = 64
"""Least number of a user's last events whose values `rating` reads: a level takes more events to know than a taste of
the moment."""
FORBID_UNKNOWN: dict[str, str | bool] = {"extra": "forbid", "use_attribute_docstrings": True}


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """The `[model]` table: the shape of the scorer."""

    __pydantic_config__: ClassVar[dict[str, str | bool]] = FORBID_UNKNOWN

    dim: int = 64
    """Size of the personal part of a user or item vector."""
    history: int = 20
    """How many of a user's last events the user tower reads."""
    fusion: str = "gated"
    """How an item's modalities become one vector: `sum`, `mean`, `weighted`, `concat`, `gated`, `attention`,
    `bilinear`, `multilinear`, `cross_attention` or `transformer`; formulas and sources are in `models/fusion*.py`."""
    head: Literal["dot", "mlp"] = "dot"
    """`dot`: a plain dot product of the published vectors; `mlp`: a small network over the pair."""
    objective: Literal["ranking", "rating", "click"] = "ranking"
    """What is learned: which item comes next, the value given, or whether the action was positive, for which some have
    to be negative (a weight below 0 in `actions`)."""
    modalities: Mapping[str, int] = field(default_factory=dict)
    """Item modalities by name, each with the length of its vectors, e.g. `{text = 384, image = 128}`."""
    frames: Mapping[str, int] = field(default_factory=dict)
    """Which of the modalities are sequences of frame vectors (video, audio), each with the most frames kept."""
    user_features: Mapping[str, int] = field(default_factory=dict)
    """User features by name, each with the length of its vectors."""
    likeness: int = 128
    """How many numbers of a published vector tell of the announced features as they are, which is what untouched items
    are best found by; 0: none. Only `ranking` with head `dot`, and only where there are modalities."""
    vintage: int = 32
    """How many numbers of a published vector tell when an item came, beside all others; 0: none. Only `ranking` with
    head `dot`."""

    cooccurrence: int = 64
    """How many numbers of a published vector tell which items the same users choose; 0: none. Only `ranking` and
    `rating`, with head `dot`."""

    factors: int = 16
    """How many numbers of a published vector tell of what users want in as few dimensions as their choices bear out, at
    most; 0: none. Only `ranking` with head `dot`."""

    def __post_init__(self) -> None:
        # tables have no order: neither has what is learned
        for name in ("modalities", "frames", "user_features"):
            object.__setattr__(self, name, dict(sorted(getattr(self, name).items())))

    @property
    def likeness_dim(self) -> int:
        """How many numbers of a published vector are likeness."""
        return self.likeness if self.objective == "ranking" and self.head == "dot" and self.modalities else 0

    @property
    def vintage_dim(self) -> int:
        """How many numbers of a published vector are vintage."""
        return self.vintage if self.objective == "ranking" and self.head == "dot" else 0

    @property
    def cooccurrence_dim(self) -> int:
        """How many numbers of a published vector are co-occurrence."""
        return self.cooccurrence if self.objective in ("ranking", "rating") and self.head == "dot" else 0

    @property
    def factors_dim(self) -> int:
        """How many numbers of a published vector are factors."""
        return self.factors if self.objective == "ranking" and self.head == "dot" else 0

    @property
    def alike_dim(self) -> int:
        """How many numbers tell which items are alike: likeness, vintage, co-occurrence, factors, in this order."""
        return self.told_dim + self.cooccurrence_dim + self.factors_dim

    @property
    def told_dim(self) -> int:
        """How many of these are of what was told of an item, and not of who chose it: likeness and vintage."""
        return self.likeness_dim + self.vintage_dim

    @property
    def events_read(self) -> int:
        """How many of a user's last events are looked at: by the user tower, or for the values they have."""
        return max(self.history, VALUES_READ) if self.objective == "rating" else self.history


@dataclass(frozen=True, kw_only=True)
class TrainSpec:
    """The `[train]` table: how the scorer learns from each phase."""

    __pydantic_config__: ClassVar[dict[str, str | bool]] = FORBID_UNKNOWN

    device: Literal["cpu", "cuda", "auto"] = "cpu"
    """Where the weights learn; bit-for-bit resumption is promised on `cpu`."""
    threads: int = 0
    """Threads of torch while learning; 0: half of the cores, for part of a phase runs beside the rest, in as many."""
    batch: int = 256
    """Examples in one step."""
    sampled_batch: int = 512
    """The same where negatives are sampled: a step costs the most for them, however many examples share them. Steps of
    more than `batch` are longer by the root of how many times that is, and averages as much shorter."""
    learning_rate: float = 3e-3
    """Step size of AdamW."""
    weight_decay: float = 1e-4
    """Decoupled weight decay of AdamW."""
    dropout: float = 0.3
    """Dropout inside the user tower."""
    average: float = 0.98
    """How much of the average that is served stays in each step; 0 serves the weights of the last step."""
    id_dropout: float = 0.5
    """Share of training steps in which what an item has of its own is hidden, so that content alone stays useful: of
    one that nothing happened to yet; half as much after 20 events, a third after 40."""
    encoder_dropout: float = 0.0
    """Dropout inside the encoders of items' modalities."""
    modality_dropout: float = 0.0
    """Share of the modalities of encoded items that are hidden in a step; never all that an item has."""
    align: Mapping[Alignment, float] = field(default_factory=dict)
    """Losses that draw an item's modalities together, each with its weight: `infonce`, `cosine`, `triplet`."""
    auxiliary: Mapping[Auxiliary, float] = field(default_factory=dict)
    """Objectives that the same vectors learn beside the one in `[model]`, each with its weight; none is served."""
    distil: float = 0.0
    """Weight of keeping replayed examples' scores near those of the weights that a phase began with; 0: free."""
    replay_ratio: float = 2.0
    """Stored examples learned again for each new one."""
    replay_patience: float = 4.0
    """Phases that may wait in Kafka before less is replayed: twice as many halve the ratio until learning has caught
    up; 0: the ratio never falls. What waits before learning has caught up for the first time is not hurried."""
    replay_half_life: float = 50_000
    """Age, in events, at which a stored example is half as likely to be replayed."""
    replay_rare: float = 0.0
    """How far replay favours items that little happened to: 0 draws events as they are, 1 items almost alike."""
    full_softmax_items: int = 5_000
    """Largest announced catalogue that `ranking` normalises over in full; beyond it negatives are sampled."""
    content_rows: int = 1024
    """Most items of a step whose gradient goes on into the encoders: all of a large catalogue would cost most."""
    negatives: int = 2048
    """Uniform negatives of a step, where they are sampled."""
    repeats: bool = False
    """Whether `ranking` learns events of an item that the user had before; recommendations leave such items out."""
    actions: Mapping[str, float] = field(default_factory=lambda: {"default": 1.0, "skip": -1.0, "dislike": -1.0})
    """Weight of each action; negative ones are kept in histories but never learned as positives."""
