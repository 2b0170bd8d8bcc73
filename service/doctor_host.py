"""Doctor's checks of this machine: disk, state directory, checkpoint, codecs, port."""

from __future__ import annotations

import os
import shutil
import socket
import stat
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from service.checkpoints import CheckpointStore
from service.checks import Check, failed, passed, warned
from service.config import Config
from service.errors import StateError
from service.state_dir import StateDirectory, lock_holder

LEAST_FREE_BYTES = 500_000_000
CODECS = {"lz4": "lz4", "snappy": "snappy", "zstandard": "zstd"}


def check_host(config: Config) -> Iterator[Check]:
    """Disk space, state directory, checkpoint, codecs, HTTP port."""
    yield _disk(config)
    yield from _state(config)
    yield _codecs()
    yield _port(config)


def _disk(config: Config) -> Check:
    free = shutil.disk_usage(_existing(config.state_dir)).free
    # A version beside those that are kept, and as much again while it is written.
    needed = LEAST_FREE_BYTES + 2 * _last_checkpoint_bytes(config)
    said = f"{free / 1e9:.1f} GB free where {config.state_dir} lies"
    if free < needed:
        hint = f"Free {(needed - free) / 1e9:.1f} GB, lower [publish] keep_versions, or move state_dir."
        return failed("disk space", f"{said}; the next checkpoints need {needed / 1e9:.1f} GB.", hint)
    return passed("disk space", f"{said}.")


def _state(config: Config) -> Iterator[Check]:
    directory = config.state_dir
    if not directory.exists():
        parent = _existing(directory)
        if os.access(parent, os.W_OK | os.X_OK):
            yield passed("state directory", f"{directory} does not exist yet and can be created.")
        else:
            hint = f"Create {directory} for this user, or name another state_dir."
            yield failed("state directory", f"{directory} cannot be created: {parent} is not writable.", hint)
        return
    if not directory.is_dir() or not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
        hint = "Give it to the user that runs the daemon, or name another state_dir."
        yield failed("state directory", f"{directory} is not a directory that can be read and written.", hint)
        return
    if not any(directory.iterdir()):
        yield passed("state directory", f"{directory} is empty.")
        return
    holder = lock_holder(directory)
    try:
        StateDirectory.open(directory, config.namespace, lock=False).close()
    except StateError as error:
        yield failed("state directory", error.message, error.hint)
        return
    if stat.S_IMODE(directory.stat().st_mode) & 0o007:
        yield warned("state directory", f"everybody on this host can look into {directory}.", f"chmod 700 {directory}")
    else:
        yield passed("state directory", f"in use by process {holder}." if holder else "ready, nobody uses it.")
    yield _checkpoint(config)


def _checkpoint(config: Config) -> Check:
    store = CheckpointStore(config.state_dir, keep_versions=config.publish.keep_versions)
    try:
        latest, champion = store.latest(), store.champion()
        for version in {latest, champion}:
            if version is not None:
                store.verify(version)
    except StateError as error:
        return failed(
            "checkpoint", error.message, error.hint or "Roll back to a version that `headwater versions` lists."
        )
    if latest is None:
        return passed("checkpoint", "none yet.")
    return passed("checkpoint", f"version {latest} is whole; served: {champion or 'none yet'}.")


def _codecs() -> Check:
    missing = [codec for module, codec in CODECS.items() if find_spec(module) is None]
    if missing:
        hint = "Reinstall headwater with all of its dependencies."
        return failed("codecs", f"records compressed with {', '.join(missing)} cannot be read.", hint)
    if find_spec("crc32c") is None:
        return warned("codecs", "without crc32c, checking records is slow.", "pip install crc32c")
    return passed("codecs", "gzip, lz4, snappy and zstd can be read; crc32c is fast.")


def _port(config: Config) -> Check:
    http = config.http
    if http.port == 0:
        return passed("http port", "a free one will be taken.")
    if config.state_dir.is_dir() and lock_holder(config.state_dir):
        return passed("http port", f"{http.host}:{http.port} belongs to the running daemon.")
    family = socket.AF_INET6 if ":" in http.host else socket.AF_INET
    try:
        socket.create_server((http.host, http.port), family=family).close()
    except OSError as error:
        hint = 'Choose another "host" or "port" in [http].'
        return failed("http port", f"cannot listen on {http.host}:{http.port}: {error.strerror or error}.", hint)
    return passed("http port", f"{http.host}:{http.port} is free.")


def _last_checkpoint_bytes(config: Config) -> int:
    if not config.state_dir.is_dir():
        return 0
    try:
        manifests = CheckpointStore(config.state_dir, keep_versions=config.publish.keep_versions).versions()
    except StateError:
        return 0  # Said by the checkpoint's own check.
    return sum(entry.size for entry in manifests[-1].files.values()) if manifests else 0


def _existing(path: Path) -> Path:
    """The path, or its nearest parent that exists."""
    path = path.absolute()
    return next(parent for parent in (path, *path.parents) if parent.exists())
