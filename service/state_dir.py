"""The state directory: where each file lies, who may use it, and which namespace, cluster and topics it is for."""

from __future__ import annotations

import fcntl
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Annotated

import msgspec
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_fixed

from service.durable import DIRECTORY_MODE, disk_errors_explained, fsync_directory, make_directory, replace_file
from service.errors import ForeignState, StateError, StateLocked
from service.sealed import Sealed, seal, unseal
from service.state_rights import require_private

_PATIENCE = Retrying(
    retry=retry_if_exception_type(BlockingIOError), stop=stop_after_attempt(5), wait=wait_fixed(0.02), reraise=True
)
"""`lock_holder` in another process takes the lock for an instant, which must not keep a daemon from starting."""


@dataclass(frozen=True)
class Layout:
    """Paths inside a state directory."""

    root: Path

    @property
    def identity(self) -> Path:
        """Whose state this is."""
        return self.root / "identity.json"

    @property
    def lock(self) -> Path:
        """What a running daemon holds with `flock`."""
        return self.root / "lock"

    @property
    def latest(self) -> Path:
        """Number of the checkpoint that learning resumes from."""
        return self.root / "LATEST"

    @property
    def champion(self) -> Path:
        """Number of the checkpoint that is served."""
        return self.root / "CHAMPION"

    @property
    def next_version(self) -> Path:
        """The next version never allotted so far."""
        return self.root / "NEXT"

    @property
    def intent(self) -> Path:
        """The phase under way."""
        return self.root / "intent.json"

    @property
    def checkpoints(self) -> Path:
        """One directory a version."""
        return self.root / "checkpoints"

    @property
    def segments(self) -> Path:
        """Generations of append-only files."""
        return self.root / "segments"

    @property
    def phases(self) -> Path:
        """One line a phase."""
        return self.root / "phases.jsonl"

    @property
    def tombstones(self) -> Path:
        """What was deleted and may still be in kept checkpoints."""
        return self.root / "tombstones.jsonl"

    def checkpoint(self, version: int) -> Path:
        """The directory of one version."""
        return self.checkpoints / f"v{version:06d}"


class StateIdentity(Sealed, frozen=True, kw_only=True):
    """Whose state a directory holds: `identity.json`."""

    namespace: Annotated[str, msgspec.Meta(max_length=100)]
    state_id: str
    """Random, made with the directory: tells two state directories of one namespace apart."""
    cluster_id: str | None = None
    """Kafka's cluster id; None until a run has seen a broker."""
    topic_ids: dict[str, str] = msgspec.field(default_factory=dict)
    user_key: str = ""
    """Fingerprint of the key that user ids are hashed with; empty: they are not."""


class StateDirectory:
    """An open state directory; with the lock held, nobody else on this host writes to it."""

    def __init__(self, path: Path, identity: StateIdentity, lock_fd: int | None) -> None:
        self.path = path
        self.layout = Layout(path)
        self.identity = identity
        self._lock_fd = lock_fd

    @classmethod
    def open(cls, path: Path | str, namespace: str, *, lock: bool = True) -> StateDirectory:
        """Open `path`, creating it (mode 0700) if need be; `lock=False` only looks and creates nothing.

        Raises StateLocked if another process holds it, ForeignState for another namespace, OtherFormat for another
        Headwater's state, StateError if it cannot be read or written, or others can write to it.
        """
        layout = Layout(Path(path).absolute())
        if not lock:
            if not layout.identity.exists():
                raise StateError(
                    f"{layout.root} holds no state.",
                    hint="Start `headwater run` or `headwater replay` first, or name the right state_dir.",
                )
            return cls(layout.root, _read_identity(layout, namespace), None)
        with disk_errors_explained(layout.root):
            _create(layout.root)
            require_private(layout.root.resolve())
            lock_fd = _take_lock(layout)
        try:
            if not layout.identity.exists():
                _refuse_strangers(layout)
                _write_identity(layout, StateIdentity(namespace=namespace, state_id=str(uuid.uuid4())))
            identity = _read_identity(layout, namespace)
            with disk_errors_explained(layout.root):
                make_directory(layout.checkpoints)
                make_directory(layout.segments)
        except BaseException:
            os.close(lock_fd)
            raise
        return cls(layout.root, identity, lock_fd)

    def bind(self, cluster_id: str, topic_ids: Mapping[str, str]) -> None:
        """Remember the Kafka cluster and topics at the first run; later raise ForeignState if they are others.

        Ids that the broker does not tell (empty) are not compared; topics seen for the first time are added.
        """
        known = self.identity
        if known.cluster_id and cluster_id and known.cluster_id != cluster_id:
            raise ForeignState(
                f"The offsets in {self.path} belong to Kafka cluster {known.cluster_id}, not to {cluster_id}.",
                hint="Point kafka.bootstrap_servers at the former cluster, or start with another state_dir.",
            )
        for topic, topic_id in topic_ids.items():
            before = known.topic_ids.get(topic)
            if before and topic_id and before != topic_id:
                raise ForeignState(
                    f"Topic {topic} was made anew since {self.path} was written: its id {before} is now {topic_id}.",
                    hint="The offsets no longer mean the same records: start with another state_dir.",
                )
        told = {topic: topic_id for topic, topic_id in topic_ids.items() if topic_id}
        bound = msgspec.structs.replace(
            known, cluster_id=known.cluster_id or cluster_id or None, topic_ids=known.topic_ids | told
        )
        if bound != known:
            _write_identity(self.layout, bound)
            self.identity = bound

    def bind_user_key(self, fingerprint: str) -> None:
        """Remember the key of user ids while nothing is learned yet; later raise ForeignState if it is another.

        The fingerprint is empty where ids are not hashed.
        """
        if fingerprint == self.identity.user_key:
            return
        if any(self.layout.checkpoints.glob("v*")):
            had = "another key" if self.identity.user_key else "no key"
            raise ForeignState(
                f"The user ids in {self.path} were hashed with {had}: everybody would be somebody new.",
                hint="Set [events] user_id_key_file back, or start with another state_dir.",
            )
        bound = msgspec.structs.replace(self.identity, user_key=fingerprint)
        _write_identity(self.layout, bound)
        self.identity = bound

    def close(self) -> None:
        """Release the lock; may be called twice."""
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def __enter__(self) -> StateDirectory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def lock_holder(path: Path | str) -> int | None:
    """Process id of the daemon that holds the state directory, None if nobody does."""
    layout = Layout(Path(path).absolute())
    try:
        fd = os.open(layout.lock, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _holder(layout)
    finally:
        os.close(fd)
    return None


def _create(root: Path) -> None:
    if root.is_dir():
        return
    missing = [parent for parent in (root, *root.parents) if not parent.exists()]
    for directory in reversed(missing):
        directory.mkdir(mode=DIRECTORY_MODE)
        fsync_directory(directory.parent)


def _take_lock(layout: Layout) -> int:
    fd = os.open(layout.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        # The kernel drops it when the holder dies, however it dies: nothing to clean up after a SIGKILL.
        _PATIENCE(fcntl.flock, fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        pid = _holder(layout)
        raise StateLocked(
            f"{layout.root} is in use by another Headwater" + (f", process {pid}." if pid else "."),
            hint="Stop that one first, or start with another state_dir and namespace.",
        ) from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, b"%d\n" % os.getpid(), 0)
    return fd


def _holder(layout: Layout) -> int | None:
    text = layout.lock.read_text().strip()
    return int(text) if text.isdigit() else None


def _refuse_strangers(layout: Layout) -> None:
    """A directory without identity must be empty of state: guessing a lost identity could mix namespaces."""
    for path in (layout.latest, layout.champion, layout.checkpoints):
        if path.is_file() or (path.is_dir() and any(path.iterdir())):
            raise StateError(
                f"{layout.root} has {path.name} but no identity.json.",
                hint="Restore identity.json from a backup, or start with another state_dir.",
            )


def _read_identity(layout: Layout, namespace: str) -> StateIdentity:
    identity = unseal(layout.identity.read_bytes(), StateIdentity, layout.identity)
    if identity.namespace != namespace:
        raise ForeignState(
            f"{layout.root} holds the state of namespace {identity.namespace!r}, not of {namespace!r}.",
            hint="Set namespace back, or give this namespace a state_dir of its own.",
        )
    return identity


def _write_identity(layout: Layout, identity: StateIdentity) -> None:
    replace_file(layout.identity, seal(identity))
