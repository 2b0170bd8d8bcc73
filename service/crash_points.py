"""Where the kill tests may stop the process, by name.

`crash_point("checkpoint.renamed")` does nothing unless the environment says `HEADWATER_CRASH_AT=checkpoint.renamed` (or
`checkpoint.renamed:3` for the third time it is reached): then the process gets SIGKILL there, as from the kernel, with
no clean-up.
"""

from __future__ import annotations

import os
import signal
from collections import Counter

VARIABLE = "HEADWATER_CRASH_AT"

POINTS: tuple[str, ...] = (
    "start.restored",
    "phase.intended",
    "phase.collected",
    "phase.evaluated",
    "phase.learned",
    "phase.judged",
    "phase.checkpointed",
    "phase.loaded_back",
    "phase.published",
    "phase.finished",
    "version.allotted",
    "intent.temporary",
    "intent.written",
    "segments.half",
    "segments.written",
    "checkpoint.temporary",
    "checkpoint.weights",
    "checkpoint.manifest",
    "checkpoint.synced",
    "checkpoint.renamed",
    "latest.temporary",
    "checkpoint.latest",
    "publish.claimed",
    "publish.adopted",
    "publish.dropped",
    "publish.half",
    "publish.verified",
    "publish.caught_up",
    "publish.expired",
    "fast.half",
    "fast.two_versions",
    "champion.before",
    "champion.temporary",
    "champion.set",
    "flip.before",
    "flip.half",
    "flip.after",
    "prune.half",
    "sweep.half",
    "generation.unused",
    "phases.half",
    "phases.written",
    "tombstones.half",
    "tombstones.written",
)
"""Every name a `crash_point` call may use, about as a daemon meets them; a test holds the two together."""

_reached: Counter[str] = Counter()


def crash_point(name: str) -> None:
    """Kill this process here if the environment names this point; raises ValueError for a point that does not exist."""
    wanted = os.environ.get(VARIABLE)
    if not wanted:
        return
    wanted_name, _, wanted_time = wanted.partition(":")
    if wanted_name not in POINTS:
        raise ValueError(f"{VARIABLE}={wanted} names no crash point; the names are in service/crash_points.py")
    if name != wanted_name:
        return
    _reached[name] += 1
    if _reached[name] == int(wanted_time or 1):
        os.kill(os.getpid(), signal.SIGKILL)
