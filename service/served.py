"""The version that is in front of readers, and how another one gets there.

Disk is truth and Redis is derived: where it is away, the new champion is on disk all the same, and follows on its
return.
"""

from __future__ import annotations

import structlog

from models.serving import Snapshot
from service.arrivals import Offsets
from service.checkpoints import CheckpointStore
from service.live import SINK_TROUBLE
from service.metrics import Metrics
from service.phase_log import PhaseLog
from service.publication import PublicationError, Publisher

log = structlog.get_logger(__name__)


class Served:
    """Keeps the champion on disk, Redis and the phase log of one mind."""

    def __init__(self, store: CheckpointStore, phase_log: PhaseLog, metrics: Metrics) -> None:
        self._store = store
        self._phase_log = phase_log
        self._metrics = metrics
        self.publisher: Publisher | None = None
        """None where nothing is published: replay."""
        self.unpublished = False
        """The champion is not in Redis yet: it was away."""

    @property
    def least_version(self) -> int:
        """Below it are versions that readers may have seen already."""
        return 0 if self.publisher is None else self.publisher.least_version()

    def publish(self, snapshot: Snapshot, learned: Offsets, event_time: float | None, *, goes_on: bool = False) -> None:
        """Puts `snapshot` in front of readers, or, with Redis away, remembers that it has to be. `goes_on`: see
        `Publisher.publish`."""
        if self.publisher is None:
            self._store.set_champion(snapshot.version)
            return
        try:
            at = self.publisher.publish(snapshot, learned=learned, event_time=event_time, goes_on=goes_on)
        except (*SINK_TROUBLE, PublicationError) as error:
            self._store.set_champion(snapshot.version)
            self.unpublished = True
            log.warning("the new version is not published yet", version=snapshot.version, error=str(error))
            return
        self.unpublished = False
        self._phase_log.published(snapshot.version, at)
        self._metrics.champion_version.set(snapshot.version)

    def publish_champion(self, champion: Snapshot, learned: Offsets, event_time: float | None) -> None:
        """Publishes the champion on disk, which readers do not have yet. Raises SinkUnavailable."""
        assert self.publisher is not None
        at = self.publisher.publish(champion, learned=learned, event_time=event_time, champion=False)
        self.unpublished = False
        self._phase_log.published(champion.version, at)

    def has(self, version: int) -> bool:
        """Whether the fast path goes on from this version."""
        assert self.publisher is not None
        current = self.publisher.live.current
        return current is not None and current.version == version

    def take_up(self, champion: Snapshot, learned: Offsets) -> None:
        """The champion is in Redis already, from before a restart: go on from it, with what has come since."""
        assert self.publisher is not None
        at, version = self.publisher.adopt(champion, learned), champion.version
        if any(line.version == version and line.published_at is None for line in self._phase_log.lines()):
            self._phase_log.published(version, at)  # a crash had come between the flip and this
