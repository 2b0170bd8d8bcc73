"""Duplicates by `event_id`, over the last so many ids: exact to the event, blocks merged as in an LSM tree."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
SEGMENT = "event_ids"


def hash_ids(event_ids: Sequence[str]) -> Hashes:
    """64-bit BLAKE2b of each id: two of five million collide with a chance of one in a million."""
    digests = b"".join(blake2b(event_id.encode(), digest_size=8).digest() for event_id in event_ids)
    return np.frombuffer(digests, "<u8").astype(np.uint64)


@dataclass(frozen=True)
class _Block:
    """Hashes sorted, each with its sequence number."""

    hashes: Hashes
    numbers: NDArray[np.int64]


class Deduplicator:
    """Remembers the last `capacity` ids, in the phase's own order: what it answers is a function of the stream
    alone."""

    def __init__(self, *, capacity: int) -> None:
        self._capacity = capacity
        self._blocks: list[_Block] = []
        self._next = 0

    def duplicates(self, event_ids: Sequence[str | None]) -> NDArray[np.bool_]:
        """Which events repeat a remembered id or an earlier one of the batch, shape (len(event_ids),). Changes
        nothing."""
        repeated = np.zeros(len(event_ids), dtype=np.bool_)
        where = np.array([i for i, event_id in enumerate(event_ids) if event_id is not None], dtype=np.int64)
        if self._capacity == 0 or not len(where):
            return repeated
        hashes = hash_ids([event_id for event_id in event_ids if event_id is not None])
        seen = np.ones(len(hashes), dtype=np.bool_)
        seen[np.unique(hashes, return_index=True)[1]] = False
        oldest = self._next - self._capacity
        for block in self._blocks:
            at = np.minimum(np.searchsorted(block.hashes, hashes), len(block.hashes) - 1)
            seen |= (block.hashes[at] == hashes) & (block.numbers[at] >= oldest)
        repeated[where] = seen
        return repeated

    def remember(self, event_ids: Iterable[str | None]) -> bytes:
        """Adds the ids of a phase's new events; returns the bytes to append to the segment `event_ids`."""
        hashes = hash_ids([event_id for event_id in event_ids if event_id is not None])
        self._add(hashes)
        return hashes.astype("<u8").tobytes()

    def dump(self) -> bytes:
        """All that is still remembered, oldest first: the segment's whole content, for a new generation of it."""
        whole = _merge(self._blocks, oldest=self._next - self._capacity) if self._blocks else None
        return b"" if whole is None else whole.hashes[np.argsort(whole.numbers)].astype("<u8").tobytes()

    @classmethod
    def restore(cls, chunks: Iterable[bytes], *, capacity: int) -> Deduplicator:
        """From the segment's chunks, in order."""
        deduplicator = cls(capacity=capacity)
        for chunk in chunks:
            deduplicator._add(np.frombuffer(chunk, "<u8").astype(np.uint64))
        return deduplicator

    def _add(self, hashes: Hashes) -> None:
        if not len(hashes) or self._capacity == 0:
            return
        numbers = np.arange(self._next, self._next + len(hashes), dtype=np.int64)
        self._next += len(hashes)
        self._blocks.append(_merge([_Block(hashes, numbers)]))
        # Merging blocks of like size keeps their number logarithmic, so a look-up's cost does not grow with the stream.
        while len(self._blocks) > 1 and len(self._blocks[-2].hashes) <= 2 * len(self._blocks[-1].hashes):
            self._blocks[-2:] = [_merge(self._blocks[-2:], oldest=self._next - self._capacity)]


def _merge(blocks: Sequence[_Block], *, oldest: int = 0) -> _Block:
    hashes = np.concatenate([block.hashes for block in blocks])
    numbers = np.concatenate([block.numbers for block in blocks])
    # The newest number of equal hashes comes last, and is the one to keep.
    order = np.lexsort((numbers, hashes))
    hashes, numbers = hashes[order], numbers[order]
    keep = np.append(hashes[1:] != hashes[:-1], True) & (numbers >= oldest)
    return _Block(hashes[keep], numbers[keep])
