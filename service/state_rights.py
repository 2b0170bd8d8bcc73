"""Who may write to a state directory: its owner alone, for what lies there decides what is served."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from service.errors import StateError


def require_private(root: Path) -> None:
    """Raises StateError if `root`, or anything in it, can be written by another user than this one and root."""
    for path in (root, *sorted(root.rglob("*"))):
        try:
            found = path.lstat()
        except FileNotFoundError:  # removed meanwhile by the daemon that holds the lock
            continue
        if stat.S_ISLNK(found.st_mode):
            raise StateError(
                f"{path} is a link, and what it names may be another's.",
                hint="Move the files themselves there; state_dir itself may be reached through a link.",
            )
        if found.st_mode & _others_write(found.st_gid):
            raise StateError(
                f"{path} can be written by other users (mode {stat.S_IMODE(found.st_mode):04o}).",
                hint=f"Look at who did, then: chmod -R go-w {root}.",
            )
        if os.geteuid() not in (0, found.st_uid) and found.st_uid != 0:
            raise StateError(
                f"{path} belongs to another user (number {found.st_uid}), who can write it.",
                hint=f"Run Headwater as that user, or: chown -R {os.geteuid()} {root}.",
            )


def _others_write(group: int) -> int:
    """Mode bits by which somebody else could write. A group of the same number as the user is the user's alone (user
    private groups), and Kubernetes gives every file of a volume to it, to write (`fsGroup`)."""
    private = group == os.getegid() == os.geteuid() != 0
    return stat.S_IWOTH if private else stat.S_IWGRP | stat.S_IWOTH
