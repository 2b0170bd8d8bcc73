"""One directory a version: written whole or not at all, and verified before anything in it is used."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import torch

from service.crash_points import crash_point
from service.durable import DIRECTORY_MODE, NewFile, disk_errors_explained, fsync_directory, make_directory
from service.errors import NoCheckpoint, StateError
from service.manifest import CheckpointFacts, FileEntry, Manifest
from service.sealed import content_explained, damaged, seal, unseal
from service.segments import Chunks, Extent, SegmentStore
from service.state_dir import Layout

WEIGHTS = "weights.pt"
MANIFEST = "manifest.json"
TEMPORARY = ".tmp-"
"""Prefix of a checkpoint directory being written."""
REMOVED = ".old-"
"""Prefix of a checkpoint directory being removed."""
_ARCHIVE = b"PK\x03\x04"
"""How what `torch.save` writes begins."""
_VERSION = re.compile(r"v(\d{6,})")


@dataclass(frozen=True)
class Checkpoint:
    """One version, loaded."""

    manifest: Manifest
    state: dict[str, Any]
    """What `Learner.state_dict` gave; tensors on the CPU."""
    segments: dict[str, Chunks]
    """What `Memory.drain` gave at each save, in order; read from disk, and verified, when iterated."""


class CheckpointFiles:
    """The version directories of one state directory, and the segment files they share."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.segments = SegmentStore(layout.segments)
        self._verified: set[int] = set()

    def numbers(self) -> list[int]:
        """Versions with a directory, oldest first; whether they verify is another question."""
        names = (_VERSION.fullmatch(path.name) for path in self.layout.checkpoints.glob("v*"))
        return sorted(int(match[1]) for match in names if match)

    def leftovers(self) -> list[Path]:
        """Directories that a crash left half written or half removed."""
        return sorted(path for prefix in (TEMPORARY, REMOVED) for path in self.layout.checkpoints.glob(f"{prefix}*"))

    def write(
        self,
        version: int,
        *,
        facts: CheckpointFacts,
        parent: int | None,
        state: Mapping[str, Any],
        extent: Extent,
        resumable: bool,
    ) -> Manifest:
        """Write a version's directory; it is complete on disk when this returns. Its segments must be already."""
        final = self.layout.checkpoint(version)
        temporary = final.with_name(f"{TEMPORARY}{final.name}")
        with disk_errors_explained(final):
            make_directory(self.layout.checkpoints)
            # 1. Everything goes into a temporary sibling: under its final name a version is always complete.
            shutil.rmtree(temporary, ignore_errors=True)
            os.mkdir(temporary, DIRECTORY_MODE)  # noqa: PTH102 - the recorder watches os
            crash_point("checkpoint.temporary")
            with NewFile(temporary / WEIGHTS) as weights:
                torch.save(dict(state), cast(IO[bytes], weights))
            crash_point("checkpoint.weights")
            manifest = Manifest(
                **{name: getattr(facts, name) for name in facts.__struct_fields__},
                version=version,
                parent=parent,
                resumable=resumable,
                files={WEIGHTS: FileEntry(weights.sha256, weights.size)},
                segments=extent,
            )
            with NewFile(temporary / MANIFEST) as file:
                file.write(seal(manifest))
            crash_point("checkpoint.manifest")
            # 2. The files are synced; so must be the directory that names them, before the rename can become durable.
            fsync_directory(temporary)
            crash_point("checkpoint.synced")
            # 3. The rename makes it a checkpoint; the fsync of the parent keeps it one.
            os.rename(temporary, final)  # noqa: PTH104 - the recorder watches os
            fsync_directory(final.parent)
            crash_point("checkpoint.renamed")
        self._verified.add(version)
        return manifest

    def manifest(self, version: int) -> Manifest:
        """The manifest of one version. Raises NoCheckpoint, CorruptCheckpoint or OtherFormat."""
        path = self.layout.checkpoint(version) / MANIFEST
        try:
            manifest = unseal(path.read_bytes(), Manifest, path)
        except FileNotFoundError:
            if path.parent.exists():
                raise damaged(path, "it is missing") from None
            kept = ", ".join(map(str, self.numbers())) or "none"
            raise NoCheckpoint(f"There is no version {version}.", hint=f"Kept versions: {kept}.") from None
        if manifest.version != version:
            raise damaged(path, f"it is the manifest of version {manifest.version}")
        if any(earlier is not None and earlier >= version for earlier in (manifest.parent, manifest.weights_of)):
            raise damaged(path, "it names a version as earlier that is not")  # lineage would go round in circles
        if WEIGHTS not in manifest.files:
            raise damaged(path, f"it says nothing of {WEIGHTS}")
        return manifest

    def load(self, version: int) -> Checkpoint:
        """Read a version, the SHA-256 of its file checked before it is parsed.

        Raises NoCheckpoint, CorruptCheckpoint or OtherFormat; iterating the segments may raise CorruptCheckpoint too.
        """
        manifest = self.manifest(version)
        path = self.layout.checkpoint(version) / WEIGHTS
        # Tensors and plain containers, whatever the file asks for: nothing in it is ever run.
        with _checked(path, manifest.files[WEIGHTS]) as file, content_explained(path):
            if file.read(len(_ARCHIVE)) != _ARCHIVE:  # torch would go on with readers of its older formats
                raise ValueError("it is no archive")
            file.seek(0)
            state = torch.load(file, map_location="cpu", weights_only=True)
            require_plain(state)
        return Checkpoint(manifest, state, self.segments.chunks(manifest.segments))

    def verify(self, version: int) -> None:
        """Check every byte of a version, once in this process. Raises what `load` raises."""
        if version in self._verified:
            return
        manifest = self.manifest(version)
        with _checked(self.layout.checkpoint(version) / WEIGHTS, manifest.files[WEIGHTS]):
            pass
        self.segments.verify(manifest.segments)
        self._verified.add(version)

    def remove(self, version: int) -> None:
        """Remove a version: renamed first, durably, so that no crash leaves half a checkpoint under its name."""
        final = self.layout.checkpoint(version)
        leftover = final.with_name(f"{REMOVED}{final.name}")
        shutil.rmtree(leftover, ignore_errors=True)
        os.rename(final, leftover)  # noqa: PTH104 - the recorder watches os
        fsync_directory(final.parent)
        crash_point("prune.half")
        shutil.rmtree(leftover)
        self._verified.discard(version)


def require_plain(value: object, where: str = "state") -> None:
    """Raise ValueError unless `value` is tensors and plain containers: what `torch.load(weights_only=True)` takes."""
    if isinstance(value, dict):
        for key, inner in value.items():
            require_plain(key, f"a key of {where}")
            require_plain(inner, f"{where}[{key!r}]")
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            require_plain(inner, f"{where}[{number}]")
    elif type(value) not in (int, float, str, bytes, bool, type(None)) and not isinstance(value, torch.Tensor):
        raise ValueError(f"{where} is a {type(value).__name__}; a checkpoint holds tensors and plain containers only")


@contextlib.contextmanager
def _checked(path: Path, entry: FileEntry) -> Iterator[IO[bytes]]:
    """The open file at its start, once its content has proved to be the one that was saved."""
    try:
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != entry.sha256:
                raise damaged(path, "its SHA-256 is not the one in the manifest")
            file.seek(0)
            yield file
    except FileNotFoundError:
        raise damaged(path, "it is missing") from None
    except OSError as error:
        raise StateError(
            f"{path} cannot be read: {error.strerror}.", hint="Check the disk and its permissions."
        ) from error
