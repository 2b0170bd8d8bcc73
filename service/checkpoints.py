"""The checkpoints of a state directory: all of them, where learning resumes (`LATEST`), what is served (`CHAMPION`).

Both are small files naming a version. When one of them, or what it names, does not verify, the newest version that does
takes its place, and the log says so. docs/checkpoints.md tells the whole story.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import structlog

from service.checkpoint_files import Checkpoint, CheckpointFiles, require_plain
from service.crash_points import crash_point
from service.durable import TEMPORARY_SUFFIX, fsync_directory
from service.errors import CorruptCheckpoint, NoCheckpoint, StateError
from service.manifest import CheckpointFacts, Manifest
from service.phase_log import PhaseLine
from service.sealed import read_number, write_number
from service.segments import Extent
from service.state_dir import Layout

__all__ = ["Checkpoint", "CheckpointStore"]

_log = structlog.get_logger(__name__)


class CheckpointStore:
    """Save, load, promote and prune. Whoever writes holds the state directory's lock; looking needs none."""

    def __init__(self, root: Path, *, keep_versions: int) -> None:
        self.layout = Layout(root)
        self.keep_versions = max(1, keep_versions)
        self._files = CheckpointFiles(self.layout)
        self._complaints: set[str] = set()

    # Version numbers

    def numbers(self) -> list[int]:
        """Versions with a directory, oldest first."""
        return self._files.numbers()

    def allot(self, at_least: int = 1) -> int:
        """A version larger than any used before, and at least `at_least`; never given again, even after a crash."""
        used = [0, *self.numbers(), *(version or 0 for version in self.named())]
        used += [int(digits) for path in self._files.leftovers() for digits in re.findall(r"\d+", path.name)]
        version = max(at_least, max(used) + 1, self._pointed(self.layout.next_version) or 1)
        write_number(self.layout.next_version, version + 1)
        crash_point("version.allotted")
        return version

    def reserve(self, version: int) -> int:
        """`version`, allotted before a crash, if nothing as new was saved since; else a newly allotted one."""
        return version if version > max(self.numbers(), default=0) else self.allot()

    # Saving and loading

    def save(
        self,
        version: int,
        *,
        facts: CheckpointFacts,
        parent: int | None,
        state: Mapping[str, Any],
        segments: Mapping[str, bytes] | None = None,
        rewrite: Mapping[str, bytes] | None = None,
        resumable: bool = True,
    ) -> Manifest:
        """Save `version` on top of `parent`, and make it `LATEST` if it is `resumable`.

        `segments`: what is new in each segment since `parent`. `rewrite`: each segment's whole content instead, for a
        new generation without what the old one held (`segments` then come after it). A version that is only served (a
        rollback or promotion by hand) adds nothing: it shares its parent's segments. Raises ValueError for a misuse,
        StateError if the disk refuses or the version exists; the former state is then intact.
        """
        segments = segments or {}
        if not resumable and (rewrite is not None or any(segments.values())):
            raise ValueError("a version that learning does not resume from cannot add to the segments")
        require_plain(dict(state))
        if self.layout.checkpoint(version).exists():
            raise StateError(f"{self.layout.checkpoint(version)} exists already.", hint="Allot another version.")
        # 1. Segments first: a manifest must never promise bytes that are not on disk.
        extent = self._extend_segments(parent, segments, rewrite)
        # 2. The version's directory: temporary sibling, fsync, rename, fsync.
        manifest = self._files.write(
            version, facts=facts, parent=parent, state=state, extent=extent, resumable=resumable
        )
        # 3. LATEST last: it may only name what is whole on disk.
        if resumable:
            write_number(self.layout.latest, version, before_replace=lambda: crash_point("latest.temporary"))
            crash_point("checkpoint.latest")
        return manifest

    def load(self, version: int) -> Checkpoint:
        """Read a version, verified. Raises NoCheckpoint, CorruptCheckpoint or OtherFormat; its segments do so later."""
        return self._files.load(version)

    def verify(self, version: int) -> None:
        """Check every byte of a version, once in this process. Raises what `load` raises."""
        self._files.verify(version)

    def manifest(self, version: int) -> Manifest:
        """The manifest of one version. Raises NoCheckpoint, CorruptCheckpoint or OtherFormat."""
        return self._files.manifest(version)

    def versions(self) -> list[Manifest]:
        """The manifests that can be read, oldest first: lineage, decisions and reasons. Raises OtherFormat."""
        manifests = []
        for version in self.numbers():
            try:
                manifests.append(self.manifest(version))
            except (
                CorruptCheckpoint,
                NoCheckpoint,
            ) as error:  # NoCheckpoint: pruned by the daemon while another process looks
                self._complain("checkpoint.unreadable", str(error))
        return manifests

    # Which one

    def latest(self) -> int | None:
        """The version learning resumes from; None before the first. Raises CorruptCheckpoint if none verifies."""
        return self._resolve(self.layout.latest, lambda: [m.version for m in self.versions() if m.resumable])

    def champion(self) -> int | None:
        """The version that is served; None before the first promotion. Raises CorruptCheckpoint if none verifies.

        If the one named is damaged, the newest promoted one takes its place, but none that was rolled back.
        """
        return self._resolve(self.layout.champion, self.promoted)

    def named(self) -> tuple[int | None, int | None]:
        """What LATEST and CHAMPION say, at once and unverified: for a glance from another process."""
        return self._pointed(self.layout.latest), self._pointed(self.layout.champion)

    def set_champion(self, version: int) -> None:
        """Serve `version` from now on. Raises what `load` raises if it does not verify."""
        self.verify(version)
        crash_point("champion.before")
        write_number(self.layout.champion, version, before_replace=lambda: crash_point("champion.temporary"))
        crash_point("champion.set")

    def lineage(self) -> list[Manifest]:
        """The kept ancestors of `latest`, oldest first, and itself."""
        by_version = {manifest.version: manifest for manifest in self.versions()}
        chain: list[Manifest] = []
        version = self.latest()
        while version is not None and (manifest := by_version.get(version)) is not None:
            chain.append(manifest)
            version = manifest.parent
        return chain[::-1]

    def phase_lines(self) -> list[PhaseLine]:
        """The phases that happened, as far as kept checkpoints tell: what `PhaseLog.repair` takes."""
        return [manifest.line for manifest in self.lineage() if manifest.line is not None]

    # Tidying

    def prune(self, *, protect: Collection[int] = (), drop: Collection[int] = ()) -> list[int]:
        """Remove versions no longer needed, and segment generations that none refers to; returns the versions removed.

        Kept: the newest `keep_versions`, as many of the newest promoted ones (so that a row of refusals leaves
        something to roll back to), LATEST and its parent, CHAMPION, and `protect`. `drop` removes versions before their
        time, for deletions whose deadline has come; never LATEST or CHAMPION.
        """
        manifests = self.versions()
        latest, champion = self.latest(), self.champion()
        in_use = {version for version in (latest, champion) if version is not None} | set(protect)
        keep = set(self.numbers()[-self.keep_versions :]) | set(self.promoted()[-self.keep_versions :])
        keep |= {m.parent for m in manifests if m.version == latest and m.parent is not None}
        removed = [version for version in self.numbers() if version not in in_use | (keep - set(drop))]
        for version in removed:
            self._files.remove(version)
        self._drop_generations()
        return removed

    def sweep(self) -> list[str]:
        """Tidy up after a crash, once at start. Returns a sentence for each thing done, for the log."""
        done = []
        # What a killed process renamed may be visible and yet not durable; what follows relies on it.
        for directory in (self.layout.root, self.layout.checkpoints):
            if directory.is_dir():
                fsync_directory(directory)
        for path in self._files.leftovers():
            shutil.rmtree(path)
            crash_point("sweep.half")
            done.append(f"Removed {path.name}, which a crash left unfinished.")
        for path in self.layout.root.glob(f".*{TEMPORARY_SUFFIX}"):
            path.unlink()
            done.append(f"Removed {path.name}, which a crash left unfinished.")
        done += [f"Removed segment generation {number}, which no version uses." for number in self._drop_generations()]
        # A version that was complete when the crash came between its rename and LATEST was saved: nothing is learned
        # again.
        latest = self.latest()
        for manifest in self.versions():
            if (
                manifest.resumable
                and manifest.parent == latest
                and manifest.version > (latest or 0)
                and self._verifies(manifest.version)
            ):
                latest = manifest.version
                write_number(self.layout.latest, latest)
                done.append(f"Version {latest} was complete: LATEST names it now.")
        return done

    # Inside

    def _extend_segments(
        self, parent: int | None, chunks: Mapping[str, bytes], rewrite: Mapping[str, bytes] | None
    ) -> Extent:
        store = self._files.segments
        if rewrite is not None:
            return store.append(chunks, store.append(rewrite, store.fresh()))
        extent = Extent() if parent is None else self.manifest(parent).segments
        if any(chunks.values()) and any(manifest.segments.reaches_beyond(extent) for manifest in self.versions()):
            # Learning went back to an older checkpoint: appending after it would cut off bytes that a newer version
            # still reads.
            extent = store.fork(extent)
        return store.append(chunks, extent)

    def promoted(self) -> list[int]:
        """Versions that were promoted and not taken back by a rollback, oldest first."""
        manifests = self.versions()
        taken_back = {
            version
            for manifest in manifests
            if manifest.rolled_back and manifest.weights_of is not None
            for version in range(manifest.weights_of + 1, manifest.version)
        }
        return [m.version for m in manifests if m.decision == "promoted" and m.version not in taken_back]

    def served_before(self, champion: int) -> list[int]:
        """Promoted versions older than `champion` with other weights than it has, oldest first."""
        weights_of = {manifest.version: manifest.weights_of for manifest in self.versions()}

        def root(version: int) -> int:
            while (earlier := weights_of.get(version)) is not None:
                version = earlier
            return version

        return [v for v in self.promoted() if v < champion and root(v) != root(champion)]

    def _resolve(self, pointer: Path, candidates: Callable[[], Iterable[int]]) -> int | None:
        pointed = self._pointed(pointer)
        if pointed is not None and self._verifies(pointed):
            return pointed
        others = sorted(set(candidates()) - {pointed}, reverse=True)
        for version in others:
            if self._verifies(version):
                # Before the first promotion is published there is no CHAMPION yet, and nothing is wrong.
                if pointer.exists() or pointer == self.layout.latest:
                    message = f"{pointer.name} cannot be used: version {version} takes its place."
                    self._complain("checkpoint.fallback", message)
                return version
        nothing_yet = pointer == self.layout.champion or not self.numbers()
        if nothing_yet and not others and not pointer.exists():
            return None
        raise CorruptCheckpoint(
            f"No checkpoint in {self.layout.checkpoints} verifies that {pointer.name} could name.",
            hint="Restore the state directory from a backup, or start with another state_dir.",
        )

    def _verifies(self, version: int) -> bool:
        try:
            self.verify(version)
        except (CorruptCheckpoint, NoCheckpoint) as error:
            self._complain("checkpoint.damaged", str(error))
            return False
        return True

    def _pointed(self, pointer: Path) -> int | None:
        try:
            return read_number(pointer)
        except CorruptCheckpoint as error:
            self._complain("checkpoint.pointer", str(error))
            return None

    def _drop_generations(self) -> list[int]:
        manifests = self.versions()
        if len(manifests) < len(self.numbers()):
            return []  # A manifest that cannot be read may refer to any of them.
        used = {manifest.segments.generation for manifest in manifests}
        unused = [generation for generation in self._files.segments.generations() if generation not in used]
        for generation in unused:
            crash_point("generation.unused")
            self._files.segments.drop(generation)
        return unused

    def _complain(self, event: str, message: str) -> None:
        if message not in self._complaints:
            self._complaints.add(message)
            _log.warning(event, message=message)
