"""What every source of records shares: names of partitions, the identity of a cluster, and the errors it raises."""

from __future__ import annotations

from dataclasses import dataclass, field

TopicPartition = tuple[str, int]
"""A topic's name and the number of one of its partitions."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Which cluster and which topics offsets belong to: an offset means nothing without them.

    `topic_ids` has each topic's UUID as text; a topic deleted and made again has another one. A broker too old to have
    such ids gives the topic's own name, which is stable but cannot tell a topic from its successor.
    """

    cluster_id: str
    topic_ids: dict[str, str] = field(default_factory=dict)


class SourceError(Exception):
    """Anything that keeps a source from giving records."""


class SourceUnavailable(SourceError):  # noqa: N818 - the names say what is so
    """The broker cannot be reached or cannot answer now; the caller tries again."""


class SourceDenied(SourceUnavailable):
    """The broker refuses us: wrong credentials, or no right to read a topic; in vain until someone mends that."""


class TopicMissing(SourceError):  # noqa: N818
    """The broker has no topic of this name."""

    def __init__(self, topic: str) -> None:
        super().__init__(f"topic {topic!r} does not exist on the broker; create it, or correct its name in [kafka]")
        self.topic = topic


class DataLost(SourceError):  # noqa: N818
    """A wanted offset is no longer there: the log was truncated below it by retention, or it ends before it.

    `wanted` is the offset asked for; `beginning` is the first one there is now, and `end` the next one to be written.
    """

    def __init__(self, tp: TopicPartition, wanted: int, beginning: int, end: int) -> None:
        where = f"{tp[0]}[{tp[1]}]"
        if wanted < beginning:
            what = f"offset {wanted} of {where} is gone: its log now begins at {beginning}"
        else:
            what = (
                f"offset {wanted} of {where} does not exist: its log ends at {end}, so it was made anew or rolled back"
            )
        super().__init__(what)
        self.tp = tp
        self.wanted = wanted
        self.beginning = beginning
        self.end = end
