"""What learning resumes from: the last checkpoint, made into a trainer that goes on where it left off."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import structlog

from models.soundness import finite
from service.checkpoints import Checkpoint, CheckpointStore
from service.config import Config
from service.dedupe import SEGMENT, Deduplicator
from service.manifest import Manifest
from service.model_changes import carried_over, shadow_in_place
from service.sealed import content_explained
from service.tombstones import Tombstones
from service.trainer import State, Trainer
from streams.source_types import TopicPartition

log = structlog.get_logger(__name__)


@dataclass(kw_only=True)
class Resumed:
    """Where learning goes on."""

    manifest: Manifest | None
    """The checkpoint's; None before the first."""
    trainer: Trainer
    dedupe: Deduplicator
    maxima: dict[TopicPartition, float]
    """The greatest event time of each partition up to there."""
    adopted: bool = False
    """The weights are those of the checkpoint's shadow; what is served has another `[model]`."""


class Checkpoints:
    """The stored checkpoints as states for today's configuration."""

    def __init__(self, config: Config, store: CheckpointStore, tombstones: Tombstones) -> None:
        self._config = config
        self._store = store
        self._tombstones = tombstones

    def resume(self, version: int | None, *, adopt_shadow: bool = False) -> Resumed:
        """From version `version`, or from nothing. With `adopt_shadow`, a checkpoint of another `[model]` is taken up
        with what its shadow learned, where that fits. Raises StateError for what cannot be used."""
        if version is None:
            return Resumed(
                manifest=None,
                trainer=Trainer.fresh(self._config),
                dedupe=Deduplicator(capacity=self._config.events.dedupe_events),
                maxima={},
            )
        self._finish_promotion(version)
        checkpoint = self._store.load(version)
        champion = self._store.champion()
        with content_explained(self.directory(version)):
            return self._take_over(checkpoint, champion, adopt_shadow=adopt_shadow)

    def state(self, version: int) -> State:
        """What a version's checkpoint holds for the trainer, for today's modalities. Raises StateError."""
        checkpoint = self._store.load(version)
        with content_explained(self.directory(version)):
            return carried_over(self._config, checkpoint.state["trainer"], checkpoint.manifest.spec)

    def directory(self, version: int) -> Path:
        """Where it is."""
        return self._store.layout.checkpoint(version)

    def _finish_promotion(self, parent: int) -> None:
        """A crash came after a promoted version was saved and before it was named champion: it is named now, so that
        readers get it and the next candidate is compared with it, as if there had been no crash."""
        if self._store.manifest(parent).decision != "promoted":
            return
        named = self._store.named()[1]
        if (self._store.champion() == parent) if named is None else (named < parent):
            self._store.set_champion(parent)
            log.warning("finished a promotion that a crash had cut short", version=parent)

    def _take_over(self, checkpoint: Checkpoint, champion: int | None, *, adopt_shadow: bool) -> Resumed:
        config, manifest = self._config, checkpoint.manifest
        state, adopted = checkpoint.state["trainer"], False
        if adopt_shadow and (shadows := shadow_in_place(config, state, manifest.spec)):
            state, adopted = shadows, True
        else:
            state = carried_over(config, state, manifest.spec)
        maxima = _maxima(checkpoint.state["maxima"])
        segments: dict[str, Any] = dict(checkpoint.segments)
        event_ids = segments.pop(SEGMENT, ())
        if champion is None or adopted:
            champion_state = None
        else:
            champion_state = state if champion == manifest.version else self.state(champion)
        trainer = Trainer.restore(config, state, segments, champion_state)
        for kind, forget in (("items", trainer.memory.forget_item), ("users", trainer.memory.forget_user)):
            for one in self._tombstones.pending(kind, manifest):  # type: ignore[arg-type]
                forget(one)
        dedupe = Deduplicator.restore(event_ids, capacity=config.events.dedupe_events)
        return Resumed(manifest=manifest, trainer=trainer, dedupe=dedupe, maxima=maxima, adopted=adopted)


def _maxima(stored: Any) -> dict[TopicPartition, float]:
    """The greatest event time by partition. Raises ValueError or TypeError for anything else."""
    finite(stored, "maxima")
    return msgspec.convert({(topic, partition): at for topic, partition, at in stored}, dict[tuple[str, int], float])
