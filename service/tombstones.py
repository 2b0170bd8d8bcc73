"""Tombstones: deletions that kept checkpoints may not know of, applied again at every load.

A tombstone remembers where in the stream its deletion stands. A checkpoint whose offsets are past that place was made
after the deletion and needs nothing; an earlier one may still hold the id. So whoever loads a checkpoint forgets what
`pending` lists, and a later re-announcement of the same id needs no special care. When no kept checkpoint is that old
any more the deletion is complete, and the tombstone goes too: the id in it is itself personal data.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from service.errors import StateError
from service.json_lines import JsonLines
from service.manifest import Manifest

Kind = Literal["items", "users"]


class Tombstone(msgspec.Struct, frozen=True, kw_only=True):
    """One deletion, and the record that asked for it."""

    kind: Kind
    id: str
    time: float
    """When it was asked for, epoch seconds."""
    topic: str
    partition: int
    offset: int
    cluster_id: str | None = None
    """Kafka cluster of the record; offsets of another cluster (a backfill) say nothing about it."""

    def may_be_known_by(self, manifest: Manifest) -> bool:
        """Whether that checkpoint was made before this deletion was learned."""
        if manifest.cluster_id != self.cluster_id:
            return True
        return manifest.offsets.get(self.topic, {}).get(self.partition, 0) <= self.offset


class Tombstones:
    """`tombstones.jsonl`, for its one writer.

    Opening it raises StateError if a line is damaged: going on would bring back something that was to be forgotten.
    """

    def __init__(self, path: Path) -> None:
        self._file = JsonLines(path, Tombstone, points="tombstones", whole=True)
        self._all, bad = self._file.read()
        self._places = {_place(stone) for stone in self._all}
        if bad:
            raise StateError(
                f"{path} is damaged in line {bad[0]}, so some deletion in it cannot be read.",
                hint="Restore the file from a backup, or remove the line and send that deletion again.",
            )

    def __len__(self) -> int:
        return len(self._all)

    def add(self, stones: Iterable[Tombstone]) -> None:
        """Remember deletions, on disk when this returns; those already there (re-read) are passed over."""
        new = {_place(stone): stone for stone in stones if _place(stone) not in self._places}
        self._file.append(*new.values())
        self._all.extend(new.values())
        self._places |= new.keys()

    def pending(self, kind: Kind, manifest: Manifest) -> list[str]:
        """Ids that whoever loads this checkpoint must forget, in the order of their deletion."""
        return list(
            dict.fromkeys(stone.id for stone in self._all if stone.kind == kind and stone.may_be_known_by(manifest))
        )

    def known_by(self, stone: Tombstone, kept: Iterable[Manifest]) -> list[int]:
        """The kept versions that may still hold what was deleted."""
        return [manifest.version for manifest in kept if stone.may_be_known_by(manifest)]

    def overdue(self, *, now: float, deadline_s: float) -> list[Tombstone]:
        """Deletions asked for longer ago than `deadline_s` and not complete: prune the versions that know them."""
        return [stone for stone in self._all if now - stone.time > deadline_s]

    def complete(self, kept: Sequence[Manifest]) -> list[Tombstone]:
        """Forget the tombstones of deletions that no kept checkpoint predates; returns them.

        Call it after pruning, with every manifest still on disk.
        """
        done = [stone for stone in self._all if not self.known_by(stone, kept)] if kept else []
        if done:
            self._places -= {_place(stone) for stone in done}
            self._all = [stone for stone in self._all if _place(stone) in self._places]
            self._file.rewrite(self._all)
        return done


def _place(stone: Tombstone) -> tuple[str, str | None, str, int, int]:
    return stone.kind, stone.cluster_id, stone.topic, stone.partition, stone.offset
