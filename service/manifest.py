"""What a checkpoint says of itself: `manifest.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from service.phase_log import Decision, Offsets, PhaseLine
from service.sealed import Sealed
from service.segments import Count, Digest, Extent

Position = Mapping[tuple[str, int], int]
"""Next offset to read by (topic, partition): the form in which a source takes it."""


class CheckpointFacts(Sealed, frozen=True, kw_only=True):
    """What the phase knows about the checkpoint it saves; everything else in the manifest the store finds itself."""

    created_at: float
    """Epoch seconds."""
    decision: Decision
    """What the judge said."""
    reason: str
    offsets: Offsets
    """Next offset to read, of every topic and partition."""
    cluster_id: str | None = None
    topic_ids: dict[str, str] = msgspec.field(default_factory=dict)
    config_digest: str = ""
    spec: dict[str, Any] = msgspec.field(default_factory=dict)
    """The model's and training's settings as plain JSON values."""
    metrics: Mapping[str, float | None] = {}
    watermark: float | None = None
    """Event time, epoch seconds."""
    line: PhaseLine | None = None
    """The phase's line of `phases.jsonl`; None where no phase was run (a rollback or promotion by hand)."""
    weights_of: Count | None = None
    """The version whose weights these are, if it took an earlier one's: a rollback, a promotion by hand, a refused
    phase.
    """
    rolled_back: bool = False
    """Whether this version takes back the promoted ones between `weights_of` and itself."""


class FileEntry(msgspec.Struct, frozen=True):
    """One file of a checkpoint's directory."""

    sha256: Digest
    size: Count
    """Bytes."""


class Manifest(CheckpointFacts, frozen=True, kw_only=True):
    """`manifest.json`: sealed, so that damage to it is noticed like damage to what it describes."""

    version: Annotated[int, msgspec.Meta(ge=1, le=2**62)]
    parent: Count | None
    """The version whose segments this one continues; None for the first."""
    resumable: bool
    """Whether learning goes on from here (a phase), or it is only served (a rollback or promotion by hand)."""
    files: dict[str, FileEntry]
    segments: Extent


def by_partition(offsets: Mapping[str, Mapping[int, int]]) -> dict[tuple[str, int], int]:
    """`{topic: {partition: next}}` as `{(topic, partition): next}`."""
    return {(topic, partition): next_ for topic, parts in offsets.items() for partition, next_ in parts.items()}


def by_topic(position: Position) -> Offsets:
    """`{(topic, partition): next}` as `{topic: {partition: next}}`, sorted."""
    offsets: Offsets = {}
    for (topic, partition), next_ in sorted(position.items()):
        offsets.setdefault(topic, {})[partition] = next_
    return offsets
