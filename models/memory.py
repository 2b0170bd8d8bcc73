"""Everything remembered of the streams: who and what there is, their contents, and every interaction in order.

Memory only ever grows (forgetting blanks rows in place), so a checkpoint need only append what `drain` hands out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models import segments
from models import stored as stored_checks
from models.event_log import ROW, EventLog, LogView
from models.features import FeatureTable, Vectors
from models.growing import GrowingArray
from models.segments import Content, Word, frame
from models.spec import ModelSpec
from models.vocabulary import Vocabulary

SEGMENTS = ("vocabulary", "contents", "profiles", "events")
"""Names of what `drain` and `rewrite` hand out, in the order in which `restore` reads them."""
ACTIONS = 64
"""Most actions told apart; row 0 stands for all others."""


@dataclass(frozen=True)
class EventBatch:
    """Interactions as columns, in learning order."""

    users: list[str]
    items: list[str]
    actions: list[str]
    values: NDArray[np.float32]
    """NaN where an event has none."""
    times: NDArray[np.float64]
    """Seconds since the epoch."""

    def __len__(self) -> int:
        return len(self.users)

    def __getitem__(self, span: slice) -> EventBatch:
        return EventBatch(
            self.users[span], self.items[span], self.actions[span], self.values[span], self.times[span]
        )  # fmt: skip


class Memory:
    """Vocabularies, contents and the event log; rows of items and users are stable for ever."""

    def __init__(self, spec: ModelSpec, actions: Mapping[str, float]) -> None:
        """`actions` weighs each action by name; `default` (1 where it is not given) is for all others."""
        self.spec = spec
        self.weights = dict(actions)
        self.items = Vocabulary()
        self.users = Vocabulary()
        self.actions = Vocabulary()
        self.actions.add("")
        self.log = EventLog()
        self.item_features = FeatureTable(spec.modalities, spec.frames)
        self.user_features = FeatureTable(spec.user_features)
        self._announced = GrowingArray(np.float64)
        self._attributes: list[dict[str, Any]] = []
        self._pending: dict[str, bytearray] = {name: bytearray() for name in SEGMENTS}
        self._drained = 0

    # -- what there is

    @property
    def n_events(self) -> int:
        """Events in the log, forgotten ones included."""
        return len(self.log)

    @property
    def n_items(self) -> int:
        """Items that are known and not forgotten."""
        return self.items.live

    @property
    def n_users(self) -> int:
        """Users that are known and not forgotten."""
        return self.users.live

    @property
    def announced(self) -> NDArray[np.float64]:
        """When each item row was announced or first mentioned, seconds since the epoch; infinite for blank rows."""
        return self._announced.rows

    def item_index(self, item_id: str) -> int | None:
        """Row of an item, None where it is unknown or forgotten."""
        return self.items.row(item_id)

    def user_index(self, user_id: str) -> int | None:
        """Row of a user, None where it is unknown or forgotten."""
        return self.users.row(user_id)

    def attributes(self, item_id: str) -> dict[str, Any]:
        """What was announced with the item; empty where nothing was."""
        row = self.items.row(item_id)
        return self.item_attributes[row] if row is not None else {}

    @property
    def item_attributes(self) -> list[dict[str, Any]]:
        """Attributes by item row. Grows at its end; a row's dict is replaced, never changed."""
        return self._attributes

    def user_items(self, user_id: str) -> set[str]:
        """Ids of the items that a user ever had anything to do with."""
        row = self.users.row(user_id)
        if row is None:
            return set()
        log = self.log.view(shared_tail=True)
        ids = (self.items.ids[i] for i in set(log.item[log.of_user(row)].tolist()) if i >= 0)
        return {one for one in ids if one is not None}

    def view(self) -> LogView:
        """The event log as it is now; see `LogView`."""
        return self.log.view()

    # -- what comes in

    def announce(
        self, item_id: str, time: float, features: Mapping[str, Vectors], attributes: Mapping[str, Any] | None = None
    ) -> None:
        """An item exists, with this content; replaces what was announced of it before, but not when."""
        row = self._item(item_id)
        self.item_features.put(row, features)
        self._attributes[row] = dict(attributes or {})
        self._announced.rows[row] = min(self._announced.rows[row], time)
        self._pending["contents"] += self._content(row)

    def _content(self, row: int) -> bytes:
        """All that is known of an item but its id."""
        features = segments.pack_vectors(self.item_features.get(row))
        return frame(Content(row, float(self.announced[row]), features, self._attributes[row]))

    def enrol(self, user_id: str, time: float, features: Mapping[str, Vectors]) -> None:
        """A user exists, with these features; replaces what was known of them before."""
        row = self._user(user_id)
        self.user_features.put(row, features)
        content = Content(row, time, segments.pack_vectors(self.user_features.get(row)), {})
        self._pending["profiles"] += frame(content)

    def append(self, batch: EventBatch) -> range:
        """Add interactions in learning order; returns their log positions. Unknown ids join the vocabulary."""
        user = np.fromiter((self._user(one) for one in batch.users), np.int64, len(batch))
        item = np.fromiter((self._item(one) for one in batch.items), np.int64, len(batch))
        action = np.fromiter((self._action(one) for one in batch.actions), np.int64, len(batch))
        default = self.weights.get("default", 1.0)
        weight = np.fromiter((self.weights.get(one, default) for one in batch.actions), np.float32, len(batch))
        rows = np.unique(item)
        known_R = self._announced.rows[rows].copy()
        np.minimum.at(self._announced.rows, item, batch.times)
        # an event may be forgotten, and the item that it tells of not
        for row in rows[self._announced.rows[rows] < known_R].tolist():
            self._pending["contents"] += self._content(row)
        return self.log.append(
            user=user, item=item, action=action, weight=weight, value=batch.values, time=batch.times
        )  # fmt: skip

    def quarantine(self, positions: range) -> None:
        """These events are never learned or replayed; histories keep them."""
        self.log.silence(positions.start, positions.stop)
        self._word(Word("silence", row=positions.start, stop=positions.stop))

    def forget_item(self, item_id: str) -> None:
        """Blank an item wherever it stands; nothing where it is unknown."""
        row = self.items.row(item_id)
        if row is not None:
            self._blank_item(row)
            self._word(Word("-item", row=row))

    def forget_user(self, user_id: str) -> None:
        """Blank a user and all they did; nothing where they are unknown."""
        row = self.users.row(user_id)
        if row is not None:
            self._blank_user(row)
            self._word(Word("-user", row=row))

    def _item(self, item_id: str) -> int:
        known = len(self.items)
        row = self.items.add(item_id)
        if row == known:
            self._new_item()
            self._word(Word("item", item_id))
        return row

    def _user(self, user_id: str) -> int:
        known = len(self.users)
        row = self.users.add(user_id)
        if row == known:
            self.log.add_user()
            self._word(Word("user", user_id))
        return row

    def _action(self, name: str) -> int:
        row = self.actions.row(name)
        if row is None:
            # those of the configuration keep their room, whatever else comes first
            awaited = sum(one not in ("default", name) and self.actions.row(one) is None for one in self.weights)
            if len(self.actions) + (0 if name in self.weights else awaited) >= ACTIONS:
                return 0
            row = self.actions.add(name)
            self._word(Word("action", name))
        return row

    def _new_item(self) -> None:
        self._announced.extend([np.inf])
        self._attributes.append({})

    def _blank_item(self, row: int) -> None:
        self.items.blank(row)
        self.item_features.blank(row)
        self.log.forget_item(row)
        self._attributes[row] = {}
        self._announced.rows[row] = np.inf

    def _blank_user(self, row: int) -> None:
        self.users.blank(row)
        self.user_features.blank(row)
        self.log.forget_user(row)

    def _word(self, word: Word) -> None:
        self._pending["vocabulary"] += frame(word)

    # -- to bytes and back

    def drain(self) -> dict[str, bytes]:
        """What to append to each segment since the last `drain` or `rewrite`."""
        self._pending["events"] += self.log.packed(self._drained, self.n_events)
        self._drained = self.n_events
        drained = {name: bytes(pending) for name, pending in self._pending.items()}
        for pending in self._pending.values():
            pending.clear()
        return drained

    def rewrite(self) -> dict[str, bytes]:
        """All of it anew, without what was forgotten, for a new generation of segments; drains what was pending."""
        self.drain()
        vocabulary, contents, profiles = bytearray(), bytearray(), bytearray()
        for op, known in (("item", self.items), ("user", self.users), ("action", self.actions)):
            for name in known.ids[1 if op == "action" else 0 :]:
                vocabulary += frame(Word(op, name))
        for kind, table in self._tables.items():
            for name in table.dims:
                vocabulary += frame(Word("dropped", f"{kind}.{name}", row=table.superseded(name)))
        for start, stop in self._silent():
            vocabulary += frame(Word("silence", row=start, stop=stop))
        for row, one in enumerate(self.items.ids):
            if one is not None:
                contents += self._content(row)
        for row, one in enumerate(self.users.ids):
            features = self.user_features.get(row)
            if one is not None and features:
                profiles += frame(Content(row, 0.0, segments.pack_vectors(features), {}))
        events = self.log.packed(0, self.n_events)
        return {
            "vocabulary": bytes(vocabulary),
            "contents": bytes(contents),
            "profiles": bytes(profiles),
            "events": events,
        }

    def _silent(self) -> list[tuple[int, int]]:
        """Spans of events whose weight is 0 though their action's is not, and which belong to somebody."""
        log = self.log.view(shared_tail=True)
        usual = self._usual_weights()[log.action]
        silent = np.flatnonzero((log.weight == 0) & (usual != 0) & (log.user >= 0) & (log.item >= 0))
        if len(silent) == 0:
            return []
        breaks = np.flatnonzero(np.diff(silent) > 1)
        starts, stops = silent[np.r_[0, breaks + 1]], silent[np.r_[breaks, len(silent) - 1]] + 1
        return list(zip(starts.tolist(), stops.tolist(), strict=True))

    def _usual_weights(self) -> NDArray[np.float32]:
        """Weight by action row."""
        default = self.weights.get("default", 1.0)
        return np.array([self.weights.get(str(name), default) for name in self.actions.ids], np.float32)

    @classmethod
    def restore(
        cls, spec: ModelSpec, actions: Mapping[str, float], stored: Mapping[str, Iterable[bytes]]
    ) -> Memory:  # fmt: skip
        """The memory that was drained into `stored`: segment name → its chunks in order, cut anywhere.

        Equal to the drained one bit for bit. Raises `ValueError` where a segment is torn, or holds what `drain` never
        wrote; `msgspec.MsgspecError` where a message in it cannot be read.
        """
        memory = cls(spec, actions)
        # Forgetting comes last: rows are never used again, so nothing that follows it is of the same row.
        forgotten: list[Word] = []
        for raw in segments.frames(stored.get("vocabulary", ())):
            word = segments.words.decode(raw)
            stored_checks.check_word(word, memory._known, most_actions=ACTIONS)
            memory._add_word(word, forgotten)
        for raw in segments.frames(stored.get("contents", ())):
            content = segments.contents.decode(raw)
            vectors = segments.unpack_vectors(content.features, spec.modalities)
            stored_checks.check_content(content, len(memory.items), vectors)
            memory.item_features.put(content.row, vectors)
            memory._attributes[content.row] = content.attributes
            memory._announced.rows[content.row] = min(memory._announced.rows[content.row], content.time)
        for raw in segments.frames(stored.get("profiles", ())):
            content = segments.contents.decode(raw)
            vectors = segments.unpack_vectors(content.features, spec.user_features)
            stored_checks.check_content(content, len(memory.users), vectors)
            memory.user_features.put(content.row, vectors)
        weights = memory._usual_weights()
        known = {"users": len(memory.users), "items": len(memory.items), "actions": len(memory.actions)}
        for rows in segments.rows(stored.get("events", ()), ROW):
            stored_checks.check_events(rows, **known)
            memory._add_events(rows, weights)
        for word in forgotten:
            if word.op == "-item":
                memory._blank_item(word.row)
            elif word.op == "-user":
                memory._blank_user(word.row)
            else:
                stored_checks.check_silence(word, memory.n_events)
                memory.log.silence(word.row, word.stop)
        memory._drained = memory.n_events
        return memory

    @property
    def _known(self) -> dict[str, Vocabulary]:
        return {"item": self.items, "user": self.users, "action": self.actions}

    @property
    def _tables(self) -> dict[str, FeatureTable]:
        return {"item": self.item_features, "user": self.user_features}

    def _add_word(self, word: Word, forgotten: list[Word]) -> None:
        if word.op in ("item", "user", "action"):
            known = self._known[word.op]
            if word.name is None:
                known.add_blank()
            else:
                known.add(word.name)
            if word.op == "item":
                self._new_item()
            elif word.op == "user":
                self.log.add_user()
        elif word.op == "dropped":
            kind, _, name = str(word.name).partition(".")
            if name in self._tables[kind].dims:  # or else the model has it no more
                self._tables[kind].dropped[name] = word.row
        else:
            forgotten.append(word)
            self._release(word)

    def _release(self, word: Word) -> None:
        """Give up the id at once, so that the same id, should it come back, gets a new row as it did then."""
        if word.op in ("-item", "-user"):
            (self.items if word.op == "-item" else self.users).blank(word.row)

    def _add_events(self, rows: NDArray[Any], weights: NDArray[np.float32]) -> None:
        item = rows["item"].astype(np.int64)
        known = item >= 0
        np.minimum.at(self._announced.rows, item[known], rows["time"][known])
        weight = np.where(known & (rows["user"] >= 0), weights[rows["action"]], 0.0).astype(np.float32)
        self.log.append(
            user=rows["user"].astype(np.int64), item=item, action=rows["action"].astype(np.int64), weight=weight,
            value=rows["value"], time=rows["time"],
        )  # fmt: skip
