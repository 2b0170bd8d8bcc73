"""Restoring again what was restored before, for nothing: damage to one file leaves most of a state as it was."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

from models.serving import Snapshot
from service.resuming import Checkpoints, Resumed
from service.trainer import Trainer

MOST = 40
"""Trainers that are kept."""

_restore = Trainer.restore.__func__  # type: ignore[attr-defined]
_snapshot = Trainer.snapshot


class Restored:
    """What `Trainer.restore` made of undamaged weights, by all that it depends on: a pure function is asked once."""

    def __init__(self) -> None:
        self._trainers: dict[tuple[Any, ...], Trainer] = {}
        self._snapshots: dict[tuple[int, int], Snapshot] = {}
        self._context: tuple[Any, ...] = ()
        self._judged: dict[tuple[int, str], tuple[Snapshot, Any]] = {}

    def _forget(self) -> None:
        for kept in (self._trainers, self._snapshots, self._judged):
            kept.clear()

    def once(self, served: Snapshot, judge: Callable[[Snapshot], Any]) -> Any:
        """`judge(served)`, asked once of a snapshot that is kept here."""
        if not any(served is kept for kept in self._snapshots.values()):
            return judge(served)
        key = (id(served), judge.__name__)
        if key not in self._judged:
            self._judged[key] = served, judge(served)
        return self._judged[key][1]

    @contextlib.contextmanager
    def in_use(self, undamaged: Mapping[int, str], tombstones: bytes) -> Iterator[None]:
        """`undamaged`: digests of loaded states by the identity of their `learner`. `tombstones`: the file, since what
        it says is forgotten is taken out of a restored memory."""
        take_over = Checkpoints._take_over

        def noting(stored: Checkpoints, checkpoint: Any, champion: int | None, **options: Any) -> Resumed:
            facts = checkpoint.manifest
            self._context = (hashlib.sha256(tombstones).digest(), repr((facts.offsets, facts.cluster_id)))
            return take_over(stored, checkpoint, champion, **options)

        def restore(cls: type[Trainer], config: Any, state: Any, segments: Any, champion: Any) -> Trainer:
            parts = [undamaged.get(id(one["learner"])) for one in (state, champion) if one is not None]
            if None in parts:
                return _restore(cls, config, state, segments, champion)  # type: ignore[no-any-return]
            content = hashlib.sha256()
            for name in sorted(segments):
                payloads = list(segments[name])
                content.update(repr((name, payloads)).encode())
            key = (*parts, content.digest(), *self._context)
            if key not in self._trainers:
                if len(self._trainers) >= MOST:
                    self._forget()
                self._trainers[key] = _restore(cls, config, state, segments, champion)
            return self._trainers[key]

        def snapshot(trainer: Trainer, *, version: int, state: Any = None) -> Snapshot:
            if state is not None or trainer not in self._trainers.values():
                return _snapshot(trainer, version=version, state=state)
            key = (id(trainer), version)
            if key not in self._snapshots:
                self._snapshots[key] = _snapshot(trainer, version=version)
            return self._snapshots[key]

        with (
            mock.patch.object(Checkpoints, "_take_over", noting),
            mock.patch.object(Trainer, "restore", classmethod(restore)),
            mock.patch.object(Trainer, "snapshot", snapshot),
        ):
            yield
