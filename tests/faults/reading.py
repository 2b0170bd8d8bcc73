"""One reading process under fire, and how it tells what is wrong. Imports little, for it starts anew each time.

Every vector carries its version in its first coordinate, its id in the second and a sum over both at the end, so that a
reader can tell by itself whether what it got is of one version, of that id, and whole.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event, Semaphore

import numpy as np

from streams.reader import Reader, VersionExpired
from streams.redis_keys import Floats
from streams.sink_types import Kind

DIM = 12
IDS: dict[Kind, list[str]] = {
    "items": [f"item-{number}" for number in range(2_000)],
    "users": [f"user-{number}" for number in range(500)],
}
DEFAULT_ID = -1
REQUEST = 500
"""Items that one request looks up."""


@dataclass
class Counts:
    """What reading processes saw, added up."""

    requests: int = 0
    lookups: int = 0
    """Vectors found."""
    versions: int = 0
    """Versions that a process has seen, the most of any."""
    repeated: int = 0
    """Requests whose pinned version expired under them: begun again, as a ranking service does."""
    mixed: int = 0
    """Requests in which some vector was not of the request's version."""
    missing: int = 0
    """Known ids without a vector."""
    torn: int = 0
    """Vectors whose coordinates do not belong together."""

    @property
    def wrong(self) -> int:
        return self.mixed + self.missing + self.torn

    def __add__(self, other: Counts) -> Counts:
        added = {field.name: getattr(self, field.name) + getattr(other, field.name) for field in fields(self)}
        return Counts(**added | {"versions": max(self.versions, other.versions)})


def stamped(version: int, numbers: Floats | list[int]) -> Floats:
    """Vectors `(n, DIM)` of one version: version, number of the id, filling made of both, and the sum of it all."""
    numbers = np.asarray(numbers, np.float32)
    matrix = np.empty((len(numbers), DIM), np.float32)
    matrix[:, 0], matrix[:, 1] = version, numbers
    matrix[:, 2:-1] = (version + numbers[:, None]) % 97
    matrix[:, -1] = matrix[:, 0] + matrix[:, 1] + matrix[:, 2]
    return matrix


def read_without_pause(url: str, namespace: str, seed: int, stop: Event, made: Semaphore, result: Connection) -> None:
    """One process: requests until `stop`, each a pinned view's users and items; releases `made` after each."""
    rng, seen, versions = np.random.default_rng(seed), Counts(), set[int]()
    with Reader(url, namespace=namespace, refresh_s=0.02, timeout_s=30) as reader:
        while not stop.is_set():
            items = rng.integers(0, len(IDS["items"]), REQUEST)
            user = int(rng.integers(0, len(IDS["users"])))
            try:
                with reader.pinned() as view:
                    vector = view.user(IDS["users"][user])
                    found, matrix = view.items([IDS["items"][number] for number in items])
                    default = view.user("nobody")
            except VersionExpired:
                seen.repeated += 1
                continue
            versions.add(view.version)
            _count(seen, view.version, np.vstack([vector, default]), np.array([user, DEFAULT_ID]))
            seen.missing += REQUEST - len(found)
            numbers = np.array([int(one.rpartition("-")[2]) for one in found], np.float32)
            _count(seen, view.version, matrix, numbers)
            seen.requests += 1
            made.release()
    seen.versions = len(versions)
    result.send(asdict(seen))


def _count(seen: Counts, version: int, matrix: Floats, numbers: Floats) -> None:
    seen.lookups += len(matrix)
    seen.mixed += int((matrix[:, 0] != version).any())
    # Each by its own version, so that what is only of another version is not called torn.
    filling = (matrix[:, :1] + matrix[:, 1:2]) % 97
    whole = (matrix[:, 2:-1] == filling).all(1) & (matrix[:, -1] == matrix[:, 0] + matrix[:, 1] + matrix[:, 2])
    seen.torn += int((~whole | (matrix[:, 1] != numbers)).sum())
