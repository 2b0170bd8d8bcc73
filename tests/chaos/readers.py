"""What readers find, at the very moment after a kill and at the end: a pointer to a whole version whose checkpoint can
be loaded, and that the disk calls the champion."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np

from service.errors import HeadwaterError
from streams.publisher import RedisSink
from streams.redis_keys import DTYPE, Pointer, vector_bytes
from streams.sink_types import Kind
from tests.chaos.ledger import Finding
from tests.chaos.remains import Remains

KINDS: tuple[Kind, ...] = ("items", "users")


def champion_findings(left: Remains) -> Iterator[Finding]:
    """Whether `LATEST` and `CHAMPION` name versions that load, each by itself and without anything taking its place."""
    for name, named in zip(("LATEST", "CHAMPION"), left.store.named(), strict=True):
        if named is None:
            continue
        try:
            left.snapshot(named)
        except (HeadwaterError, ValueError, KeyError) as error:
            yield Finding("champion", f"{name} names version {named}, which does not load: {error}")


def pointer_findings(left: Remains, sink: RedisSink, gone: Collection[str] = ()) -> Iterator[Finding]:
    """Whether readers, at this very moment, find less than the pointer promises, or what the disk does not know of.

    `gone` are ids that were deleted since, which need not be there any more.
    """
    pointer = sink.pointer()
    if pointer is None:
        return
    named = left.store.named()[1]
    if named is None or pointer.version > named:
        yield Finding("pointer", f"readers are at version {pointer.version}, and CHAMPION says {named}")
    yield from _incomplete(left, sink, pointer, gone)


def _incomplete(left: Remains, sink: RedisSink, pointer: Pointer, gone: Collection[str]) -> Iterator[Finding]:
    version = pointer.version
    for kind in KINDS:
        if (there := sink.count(version, kind)) < getattr(pointer, kind) - len(gone):
            yield Finding("pointer", f"version {version} has {there} of {getattr(pointer, kind)} {kind}")
    if version not in left.store.numbers():
        return  # pruned since: it was superseded on disk, and its successor is about to be published
    snapshot = left.snapshot(version)
    for kind, ids in zip(KINDS, (snapshot.item_ids, snapshot.user_ids()), strict=True):
        vectors = sink.read(version, kind, [one for one in ids if one not in gone])
        if missing := vectors.count(None):
            yield Finding("pointer", f"{missing} {kind} of version {version} are missing")
        for vector in vectors:
            if vector is not None and not _is_vector(vector, pointer.dim):
                yield Finding("pointer", f"a vector of version {version} is torn: {len(vector)} bytes")
                break


def _is_vector(stored: bytes, dim: int) -> bool:
    return len(stored) == 4 * dim and bool(np.isfinite(np.frombuffer(stored, DTYPE)).all())


def publication_findings(left: Remains, sink: RedisSink, gone: Collection[str] = ()) -> Iterator[Finding]:
    """When all is learned: whether readers find the champion, whole, and vectors that its weights give."""
    champion, latest = left.champion, left.latest
    pointer = sink.pointer()
    if champion is None or latest is None or pointer is None or pointer.version != champion:
        yield Finding("pointer", f"the pointer is at {pointer and pointer.version}, not at {champion}")
        return
    yield from pointer_findings(left, sink, gone)
    snapshot = left.snapshot(champion, memory_of=latest)
    for kind, ids in zip(KINDS, (snapshot.item_ids, snapshot.user_ids()), strict=True):
        stored = sink.read(champion, kind, ids)
        if None in stored:
            yield Finding("pointer", f"{stored.count(None)} {kind} are not there")
        elif champion == latest:
            wanted = [vector_bytes(row) for row in snapshot.vectors(kind)]
            if wanted != stored:
                yield Finding("pointer", f"the {kind}' vectors are not those of version {champion}")
    if pointer.version not in sink.versions():
        yield Finding("pointer", f"version {pointer.version} has no keys")
