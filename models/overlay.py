"""What came after a snapshot: its vectors as they are now, for the fast path, HTTP and evaluation alike.

Observing only records; vectors are computed when they are asked for, many at once. Only what was touched ever
changes: a new or re-announced item, the popularity of an item that an event touched (as of that event), the users of
these events; and all users where tastes turn (`models.live_calibration`), which alone depends on how events were
grouped. Not safe for several threads: its owner locks.

Shape suffixes: B users, N items, R rows, L places of a history, V length of published vectors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models import answers, catalogue
from models.event_log import EventLog
from models.features import FeatureTable
from models.histories import Histories
from models.live_calibration import LiveCalibration
from models.memory import EventBatch
from models.patches import ItemPatches
from models.popularity import Popularity
from models.serving import Snapshot
from models.stretches import Stretch
from models.vocabulary import Vocabulary

Ints = NDArray[np.int64]
Vectors = NDArray[np.float32]


class Overlay:
    """A snapshot and what came since. Item rows go on where the snapshot's end; users have rows of their own."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self._pending: list[EventBatch] = []
        self._log = EventLog()
        self._users = Vocabulary()
        self._gone_users: set[str] = set()
        self._profiles = FeatureTable(snapshot.spec.user_features)
        self._new_items: dict[str, int] = {}
        self._item_ids: list[str] = []
        self._gone_items = {row for row, one in enumerate(snapshot.items.ids[: snapshot.n_items]) if one is None}
        self._contents = FeatureTable(snapshot.spec.modalities, snapshot.spec.frames)
        self._attributes: dict[int, dict[str, Any]] = {}
        self._announced: dict[int, float] = {}
        self._popularity: Popularity | None = None
        self._patches = ItemPatches(snapshot)
        calibration = snapshot.frozen.calibration
        self._live = None if calibration is None else LiveCalibration(snapshot, calibration)
        self._stale_contents: dict[int, None] = {}
        self._touched_items: list[str] = []
        self._touched_users: list[str] = []

    # -- what comes in

    def observe(self, batch: EventBatch) -> None:
        """Interactions that just happened; O(1) an event, nothing is computed."""
        if len(batch):
            self._pending.append(batch)
            self._touched_items += batch.items
            self._touched_users += batch.users

    def announce(
        self, item_id: str, time: float, features: Mapping[str, Vectors], attributes: Mapping[str, Any] | None = None
    ) -> None:
        """An item is new, or has new content; nothing is computed."""
        row = self._item_row(item_id)
        self._contents.put(row, features)
        self._attributes[row] = dict(attributes or {})
        self._announced[row] = min(self._when_announced(row), time)
        self._stale_contents[row] = None
        self._touched_items.append(item_id)

    def enrol(self, user_id: str, time: float, features: Mapping[str, Vectors]) -> None:  # noqa: ARG002
        """A user is new, or has new features."""
        self._profiles.put(self._user_row(user_id), features)
        self._touched_users.append(user_id)

    def forget_item(self, item_id: str) -> None:
        """An item is gone: from the candidates and from all histories."""
        self._flush_events()
        row = self._find_item(item_id)
        if row >= 0:
            self._gone_items.add(row)
            self._new_items.pop(item_id, None)

    def forget_user(self, user_id: str) -> None:
        """A user is gone; should they come back, they are somebody new."""
        self._flush_events()
        self._gone_users.add(user_id)
        row = self._users.row(user_id)
        if row is not None:
            self._users.blank(row)

    # -- what it all comes to

    @property
    def all_item_ids(self) -> list[str | None]:
        """Id of each item row, the order of `scores`; None where it is gone."""
        self._flush()
        snapshot = self.snapshot
        ids = [*snapshot.items.ids[: snapshot.n_items], *self._item_ids]
        for row in self._gone_items:
            ids[row] = None
        return ids

    def item_index(self, item_id: str) -> int | None:
        """Row of an item in `scores`, None where it is unknown or gone."""
        self._flush()
        row = self._find_item(item_id)
        return None if row < 0 else row

    def item_vectors(self, ids: Sequence[str]) -> Vectors:
        """Published vectors (R, V). Raises `KeyError` for an id that is unknown or gone."""
        self._flush()
        rows = np.array([self._find_item(one) for one in ids], np.int64)
        if (rows < 0).any():
            raise KeyError(f"Item {ids[int(np.argmin(rows))]!r} is unknown or deleted; announce it first.")
        return self._patches.published(rows)

    def user_vectors(self, ids: Sequence[str]) -> Vectors:
        """Published vectors (B, V); of anyone unknown, the default user's."""
        self._flush()
        local, base = self._find_users(ids)
        tails = self._log.view(shared_tail=True).tails(local)
        return self.vectors_of(self._histories(tails, base), local)

    def vectors_before(self, batch: EventBatch) -> Vectors:
        """Observe these interactions; returns each one's user vector (B, V) as it was just before, its basket left
        out."""
        self._flush()
        positions = self._append(batch)
        local, base = self._find_users(batch.users)
        log = self._log.view(shared_tail=True)
        before = log.before[positions.start : positions.stop]
        now_B = np.arange(positions.start, positions.stop)
        published = self.vectors_of(self._histories(before, base, batch.times, now_B), local)
        self._count(positions)
        self._touched_items += batch.items
        self._touched_users += batch.users
        return published

    def scores(self, user_id: str) -> Vectors:
        """Scores (N,) of all item rows for a user; -inf where an item is gone."""
        return np.asarray(self.scores_of(self.user_vectors([user_id]))[0])

    def scores_of(self, users_BV: Vectors) -> Vectors:
        """Scores (B, N) of all item rows for published user vectors."""
        self._flush()
        snapshot = self.snapshot
        out = np.empty((len(users_BV), self._size), np.float32)
        out[:, : snapshot.n_items] = snapshot.scores(users_BV, snapshot.vectors_NV)
        if len(self._patches.rows):
            out[:, self._patches.rows] = snapshot.scores(users_BV, self._patches.patched_vectors)
        if self._gone_items:
            out[:, list(self._gone_items)] = -np.inf
        return out

    def touched_items(self, mark: int = 0) -> list[str]:
        """Ids of items whose vectors changed since `mark` (an earlier `marks()[0]`), each once."""
        return list(dict.fromkeys(self._touched_items[mark:]))

    def touched_users(self, mark: int = 0) -> list[str]:
        """Ids of users whose vectors changed since `mark` (an earlier `marks()[1]`), each once."""
        return list(dict.fromkeys(self._touched_users[mark:]))

    def marks(self) -> tuple[int, int]:
        """Where `touched_items` and `touched_users` stand now."""
        return len(self._touched_items), len(self._touched_users)

    def seen(self, user_id: str) -> Ints:
        """Rows of all items that a user ever had anything to do with, ascending."""
        self._flush()
        local, base = (rows[0] for rows in self._find_users([user_id]))
        log, old = self._log.view(shared_tail=True), self.snapshot.log
        newer = log.item[log.of_user(int(local))] if local >= 0 else np.empty(0, np.int32)
        older = old.item[old.of_user(int(base))] if base >= 0 else np.empty(0, np.int32)
        rows = np.unique(np.concatenate((newer, older))).astype(np.int64)
        return np.asarray(rows[rows >= 0])

    @property
    def recalibrated(self) -> bool:
        """Whether users are made with scales that were fitted since the snapshot: its own had come to mislead."""
        return self._live is not None and self._live.scales is not None

    @property
    def gone_rows(self) -> list[int]:
        """Item rows whose id was forgotten."""
        return sorted(self._gone_items)

    def published_vectors(self) -> Vectors:
        """Published vectors (N, V) of all item rows, as of now; a copy."""
        self._flush()
        return self._patches.published(np.arange(self._size))

    def personal_vectors(self) -> Vectors:
        """Personal parts (N, D) of all item rows."""
        self._flush()
        return self._patches.personal(np.arange(self._size))

    def content_of(self, row: int) -> tuple[dict[str, Vectors], Vectors]:
        """What an item's personal part is made of: its features by modality, and its own residual (D,)."""
        snapshot = self.snapshot
        own_D = snapshot.residual[row] if row < snapshot.n_items else np.zeros(snapshot.d, np.float32)
        table = self._contents if row in self._attributes else snapshot.item_features
        return table.get(row), own_D

    def popularity_of(self, row: int) -> Vectors:
        """Popularity features (K,) of an item row, as of now."""
        self._flush()
        return np.asarray(self._patches.features(np.array([row]))[0])

    def knows_user(self, user_id: str) -> bool:
        """Whether a user has done anything or has features; everyone else is as the default user."""
        self._flush()
        row = self._users.row(user_id)
        known = self._base(user_id) >= 0
        if known or row is None:
            return known
        return bool(self._log.view(shared_tail=True).tails(np.array([row]))[0] >= 0 or self._profiles.get(row))

    def history(self, user_id: str) -> tuple[Histories, Ints]:
        """A user's history, one row, and where their features are: what `vectors_of` takes."""
        self._flush()
        local, base = self._find_users([user_id])
        return self._histories(self._log.view(shared_tail=True).tails(local), base), local

    def recommend(self, user_id: str, *, k: int, include_seen: bool = False) -> list[dict[str, Any]]:
        """See `models.answers.recommend`."""
        return answers.recommend(self, user_id, k=k, include_seen=include_seen)

    def similar(self, item_id: str, *, k: int) -> list[dict[str, Any]] | None:
        """See `models.answers.similar`."""
        return answers.similar(self, item_id, k=k)

    def attributes(self, item_id: str) -> dict[str, Any]:
        """What was announced with an item; empty where nothing was."""
        row = self._find_item(item_id)
        return self._attributes.get(row, self.snapshot.attributes(item_id)) if row >= 0 else {}

    def announced(self) -> NDArray[np.float64]:
        """When each item row was announced or first mentioned, (N,)."""
        self._flush()
        times = np.concatenate((self.snapshot.announced, np.full(len(self._item_ids), np.inf)))
        for row, time in self._announced.items():
            times[row] = time
        return times

    def counts(self) -> Popularity:
        """Popularity as of now; rows beyond the items are nobody's."""
        self._flush()
        return self._own_popularity()

    # -- rows

    @property
    def _size(self) -> int:
        return self.snapshot.n_items + len(self._item_ids)

    def _find_item(self, item_id: str) -> int:
        row = self._new_items.get(item_id, -1)
        if row < 0:
            row = self.snapshot.item_row(item_id)
        return -1 if row in self._gone_items else row

    def _item_row(self, item_id: str) -> int:
        row = self._find_item(item_id)
        if row < 0:
            row = self._new_items[item_id] = self._size
            self._item_ids.append(item_id)
            self._patches.add_row()
        return row

    def _find_users(self, ids: Sequence[str]) -> tuple[Ints, Ints]:
        """Own rows and the snapshot's rows of users, -1 where there is none."""
        if self.snapshot.spec.user_features:
            for one in ids:
                self._user_row(one)  # so that all profiles are in one table
        local = np.array([-1 if (row := self._users.row(one)) is None else row for one in ids], np.int64)
        base = np.array([self._base(one) for one in ids], np.int64)
        return local, base

    def _base(self, user_id: str) -> int:
        return -1 if user_id in self._gone_users else self.snapshot.user_row(user_id)

    def _user_row(self, user_id: str) -> int:
        known = len(self._users)
        row = self._users.add(user_id)
        if row == known:
            self._log.add_user()
        if row == known and self.snapshot.spec.user_features:
            base = self._base(user_id)
            self._profiles.put(row, self.snapshot.user_features.get(base) if base >= 0 else {})
        return row

    def _when_announced(self, row: int) -> float:
        known = row < self.snapshot.n_items
        return self._announced.get(row, float(self.snapshot.announced[row]) if known else np.inf)

    # -- from events to vectors

    def _flush(self) -> None:
        self._flush_events()
        self._flush_contents()

    def _flush_contents(self) -> None:
        if self._stale_contents:
            rows = np.fromiter(self._stale_contents, np.int64)
            self._stale_contents.clear()
            self._encode(rows)

    def _flush_events(self) -> None:
        pending, self._pending = self._pending, []
        for batch in pending:
            self._flush_contents()  # what was taken is looked at as it was when it was
            self._count(self._append(batch))

    def _append(self, batch: EventBatch) -> range:
        snapshot = self.snapshot
        user = np.array([self._user_row(one) for one in batch.users], np.int64)
        item = np.array([self._item_row(one) for one in batch.items], np.int64)
        earlier = {}
        for row, time in zip(item.tolist(), batch.times.tolist(), strict=True):
            if row >= snapshot.n_items and time < self._when_announced(row):
                self._announced[row] = earlier[row] = time
        if earlier:
            self._meet(earlier, float(batch.times.max()))
        rows = (snapshot.actions.row(one) for one in batch.actions)
        action = np.array([0 if row is None else row for row in rows], np.int64)
        default = snapshot.weights.get("default", 1.0)
        weight = np.array([snapshot.weights.get(one, default) for one in batch.actions], np.float32)
        return self._log.append(
            user=user, item=item, action=action, weight=weight, value=batch.values, time=batch.times
        )  # fmt: skip

    def _meet(self, earlier: Mapping[int, float], now: float) -> None:
        """New items were met before anybody told of them, or before the time that was told: since then they are
        there."""
        snapshot = self.snapshot
        self._stale_contents.update(dict.fromkeys(row for row in earlier if row in self._attributes))
        times = {row: time for row, time in earlier.items() if row not in self._attributes}
        rows, announced = np.fromiter(times, np.int64), np.fromiter(times.values(), np.float64)
        if len(rows):
            contents, likeness = (
                np.zeros((len(rows), size), np.float32) for size in (snapshot.d, snapshot.spec.likeness_dim)
            )
            self._patches.set_content(rows, contents, snapshot.told(likeness, announced))
            self._refresh(rows, np.full(len(rows), now))

    def _count(self, positions: range) -> None:
        """Popularity of the items of these events, as of the last of them."""
        log = self._log.view(shared_tail=True)
        over = None if self._live is None else self._live.see(log, positions, self._patches)
        span = slice(positions.start, positions.stop)
        touched = self._own_popularity().advance(log.item[span], log.weight[span] > 0)
        self._refresh(touched, self._touched_at(touched))
        if over is not None:
            self._recalibrate(over)

    def _recalibrate(self, stretch: Stretch) -> None:
        """Look at the users of these events as they were just before, and at what they then took."""
        assert self._live is not None
        log, gone = self._log.view(shared_tail=True), list(self._gone_items)
        there = [self._users.ids[row] is not None for row in log.user[stretch.positions].tolist()]
        stretch = stretch.where(np.array(there) & ~np.isin(log.item[stretch.positions], gone))
        at = stretch.positions
        local, base = self._find_users([str(self._users.ids[row]) for row in log.user[at].tolist()])
        histories = self._histories(log.before[at], base, log.time[at], at)
        item_B = log.item[at].astype(np.int64)
        new = ~(histories.past_BP == item_B[:, None]).any(1)
        if not new.any():
            return
        histories = histories.rows(new)
        inputs = self._inputs(histories)
        learned_BV = self.snapshot.user_matrix(histories, local[new], learned_alone=True, **inputs)
        self._live.learn(stretch.where(new), item_B[new], histories, learned_BV, inputs["readings"], gone=gone)

    def _touched_at(self, rows: Ints) -> NDArray[np.float64]:
        """When these rows were last touched since the snapshot, (R,); -inf where they were not. All is counted."""
        popularity, log = self._own_popularity(), self._log.view(shared_tail=True)
        position = popularity.last[rows] - (popularity.position - len(log))
        time_R = np.full(len(rows), -np.inf)
        time_R[position >= 0] = log.time[position[position >= 0]]
        return time_R

    def _own_popularity(self) -> Popularity:
        if self._popularity is None:
            self._popularity = self.snapshot.popularity.copy()
        if len(self._popularity) < self._size:
            self._popularity.grow(self._size + self._size // 8)
        return self._popularity

    def _encode(self, rows: Ints) -> None:
        """New contents of these rows."""
        snapshot = self.snapshot
        contents, likeness = (
            make(snapshot.scorer, self._contents, rows, "cpu").numpy()
            for make in (catalogue.encode, catalogue.likeness)
        )
        announced = np.array([self._announced[row] for row in rows.tolist()])
        self._patches.set_content(rows, contents, snapshot.told(likeness, announced))
        untouched = np.maximum(announced, -np.inf if snapshot.event_time is None else snapshot.event_time)
        touched = self._touched_at(rows)
        self._refresh(rows, np.where(np.isfinite(touched), touched, untouched))

    def _refresh(self, rows: Ints, now: NDArray[np.float64]) -> None:
        """Popularity features and published vectors of these rows, as of right after their last events at `now`
        (R,)."""
        if len(rows) == 0:
            return
        age_s = now - np.array([self._when_announced(row) for row in rows.tolist()])
        self._patches.set_features(rows, self._own_popularity().features(rows, age_s, as_of_touch=True))

    def vectors_of(self, histories: Histories, local: Ints) -> Vectors:
        """Published vectors (B, V) of users with these histories and the features in these rows, -1 for none."""
        scales = None if self._live is None else self._live.scales
        if self._size == 0:
            return self.snapshot.user_matrix(histories, local, scales=scales)
        return self.snapshot.user_matrix(histories, local, scales=scales, **self._inputs(histories))

    def _inputs(self, histories: Histories) -> dict[str, Any]:
        """What `Snapshot.user_matrix` makes users of, as it is now."""
        snapshot = self.snapshot
        rows = np.where(histories.item_BL >= 0, histories.item_BL, 0)
        past = histories.past()
        return {
            "vectors_BLD": self._patches.read(rows),
            "past_BD": past.mean_of(torch.from_numpy(self._patches.read(past.row_E))),
            "readings": snapshot.readings(histories, self._patches.alike, self._patches.personal),
            "features_BLK": self._patches.features(rows),
            "items_BLV": None if snapshot.scorer.regression is None else self._patches.published(rows),
            "profiles": self._profiles,
        }

    def _histories(
        self, tails: Ints, base: Ints, until_B: NDArray[np.float64] | None = None, now_B: Ints | None = None
    ) -> Histories:
        """Histories of what came since, up to the positions `tails`, -1 for nothing; then of what the snapshot knows.

        Of earlier times than `until_B`, seen from the positions `now_B` or else from now.
        """
        length = self.snapshot.spec.events_read
        now_B = np.full(len(tails), len(self._log)) if now_B is None else now_B
        newer = Histories.from_log(self._log.view(shared_tail=True), tails, length, until_B=until_B, now_B=now_B)
        histories = newer.followed_by(self.snapshot.histories(base, until_B), now_B)
        if self._gone_items:
            gone = np.isin(histories.item_BL, list(self._gone_items))
            histories.item_BL = np.where(gone, -1, histories.item_BL)
            histories.past_BP = np.where(np.isin(histories.past_BP, list(self._gone_items)), -1, histories.past_BP)
        return histories
