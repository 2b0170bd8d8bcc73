"""Whether what comes back from disk can be what was stored: rows that exist, names told once, finite numbers.

Digests tell chance from content; these tell content that no memory ever wrote, should somebody have made the digests
right. Each raises `ValueError` with one sentence.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.segments import Content, Word
from models.vocabulary import Vocabulary

ADDED = ("item", "user", "action")
FORGOTTEN = {"-item": "item", "-user": "user"}


def check_word(word: Word, known: Mapping[str, Vocabulary], *, most_actions: int) -> None:
    """A change of the vocabulary, given what is known so far of `item`, `user` and `action`."""
    if word.op in ADDED:
        if word.name is not None and known[word.op].row(word.name) is not None:
            raise ValueError(f"The vocabulary names the {word.op} of row {len(known[word.op])} a second time.")
        if word.op == "action" and len(known["action"]) >= most_actions:
            raise ValueError(f"The vocabulary has more than {most_actions} actions.")
    elif word.op in FORGOTTEN:
        if not 0 <= word.row < len(known[FORGOTTEN[word.op]]):
            raise ValueError(f"The vocabulary forgets row {word.row}, which there is not.")
    elif word.op == "dropped":
        if (word.name or "").partition(".")[0] not in ("item", "user") or word.row < 0:
            raise ValueError(f"The vocabulary says that {word.row} vectors of {word.name!r} are nobody's.")
    elif word.op != "silence":
        raise ValueError("The vocabulary has a word that means nothing.")


def check_silence(word: Word, events: int) -> None:
    """A span of events to pass over, of so many in the log."""
    if not 0 <= word.row <= word.stop <= events:
        raise ValueError(f"Events {word.row} to {word.stop} are to be passed over, of {events}.")


def check_content(content: Content, rows: int, vectors: Mapping[str, NDArray[np.float32]]) -> None:
    """What is known of one of `rows` items or users, with its vectors already unpacked."""
    if not 0 <= content.row < rows:
        raise ValueError(f"Row {content.row} has content, of {rows} rows.")
    if not content.time > -np.inf:
        raise ValueError(f"Row {content.row} was announced at {content.time}.")
    if not all(np.isfinite(vector).all() for vector in vectors.values()):
        raise ValueError(f"A vector of row {content.row} is not finite.")
    try:
        msgspec.json.encode(content.attributes)
    except (TypeError, ValueError, OverflowError, RecursionError, NotImplementedError) as error:
        raise ValueError(f"The attributes of row {content.row} are not what JSON holds.") from error


def check_events(rows: NDArray[Any], *, users: int, items: int, actions: int) -> None:
    """Events as `event_log.ROW`s, given how many rows of each kind there are; -1 is somebody forgotten."""
    for name, least, count in (("user", -1, users), ("item", -1, items), ("action", 0, actions)):
        if not ((rows[name] >= least) & (rows[name] < count)).all():
            raise ValueError(f"An event's {name} is none of the {count} there are.")
    if not np.isfinite(rows["time"]).all():
        raise ValueError("An event's time is not finite.")
    if np.isinf(rows["value"]).any():
        raise ValueError("An event's value is infinite.")
