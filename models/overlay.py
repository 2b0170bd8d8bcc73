"""What came after a snapshot: its vectors as they are now, for the fast path, HTTP and evaluation alike.

Observing only records; vectors are computed when they are asked for, many at once. Only what was touched ever
changes: a new or re-announced item, the popularity of an item that an event touched (as of that event), the users of
these events; how new an item is, in steps of events; and all users where tastes turn (`models.live_calibration`),
which alone depends on how events were grouped. Not safe for several threads: its owner locks.

Shape suffixes: B users, N items, R rows, L places of a history, V length of published vectors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models import answers
from models.event_log import EventLog
from models.features import FeatureTable
from models.histories import Histories
from models.live_calibration import LiveCalibration
from models.memory import EventBatch
from models.overlay_items import OverlayItems
from models.popularity import Popularity
from models.serving import Snapshot
from models.stretches import Stretch
from models.vocabulary import Vocabulary

Ints = NDArray[np.int64]
Vectors = NDArray[np.float32]


class Overlay:
    """A snapshot and what came since. Item rows go on where the snapshot's end; users have rows of their own."""

    def __init__(self, snapshot: Snapshot, predecessor: Overlay | None = None) -> None:
        """Of the predecessor's nothing goes on but scales that were fitted on the fly, while those are served."""
        self.snapshot = snapshot
        self._pending: list[EventBatch] = []
        self._log = EventLog()
        self._users = Vocabulary()
        self._gone_users: set[str] = set()
        self._profiles = FeatureTable(snapshot.spec.user_features)
        self._items = OverlayItems(snapshot, self._log)
        calibration = snapshot.frozen.calibration
        live = None if predecessor is None else predecessor._live
        self._live: LiveCalibration | None = (
            None if calibration is None else LiveCalibration(snapshot, calibration, live)
        )
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
        self._items.announce(item_id, time, features, attributes)
        self._touched_items.append(item_id)

    def enrol(self, user_id: str, time: float, features: Mapping[str, Vectors]) -> None:  # noqa: ARG002
        """A user is new, or has new features."""
        self._profiles.put(self._user_row(user_id), features)
        self._touched_users.append(user_id)

    def forget_item(self, item_id: str) -> None:
        """An item is gone: from the candidates and from all histories."""
        self._flush_events()
        self._items.forget(item_id)

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
        return self._items.ids

    def item_index(self, item_id: str) -> int | None:
        """Row of an item in `scores`, None where it is unknown or gone."""
        self._flush()
        row = self._items.find(item_id)
        return None if row < 0 else row

    def item_vectors(self, ids: Sequence[str]) -> Vectors:
        """Published vectors (R, V). Raises `KeyError` for an id that is unknown or gone."""
        self._flush()
        rows = np.array([self._items.find(one) for one in ids], np.int64)
        if (rows < 0).any():
            raise KeyError(f"Item {ids[int(np.argmin(rows))]!r} is unknown or deleted; announce it first.")
        return self._items.patches.published(rows)

    def known_item_vectors(self, ids: Sequence[str]) -> tuple[list[str], Vectors]:
        """Those of these ids that are items still, and their published vectors (R, V): some may have expired."""
        self._flush()
        rows = {one: row for one in ids if (row := self._items.find(one)) >= 0}
        return list(rows), self._items.patches.published(np.fromiter(rows.values(), np.int64))

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
        out = np.empty((len(users_BV), len(self._items)), np.float32)
        out[:, : snapshot.n_items] = snapshot.scores(users_BV, snapshot.vectors_NV)
        if len(self._items.patches.rows):
            out[:, self._items.patches.rows] = snapshot.scores(users_BV, self._items.patches.patched_vectors)
        if self._items.gone:
            out[:, list(self._items.gone)] = -np.inf
        return out

    def take_aged(self) -> list[str]:
        """Ids of items whose vectors changed with time alone since this was last asked."""
        self._flush()
        return self._items.take_aged()

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
        return sorted(self._items.gone)

    def published_vectors(self) -> Vectors:
        """Published vectors (N, V) of all item rows, as of now; a copy."""
        self._flush()
        return self._items.patches.published(np.arange(len(self._items)))

    def personal_vectors(self) -> Vectors:
        """Personal parts (N, D) of all item rows."""
        self._flush()
        return self._items.patches.personal(np.arange(len(self._items)))

    def content_of(self, row: int) -> tuple[dict[str, Vectors], Vectors]:
        """What an item's personal part is made of: its features by modality, and its own residual (D,)."""
        snapshot = self.snapshot
        own_D = snapshot.residual[row] if row < snapshot.n_items else np.zeros(snapshot.d, np.float32)
        return self._items.content(row), own_D

    def popularity_of(self, row: int) -> Vectors:
        """Popularity features (K,) of an item row, as of now."""
        self._flush()
        return np.asarray(self._items.patches.features(np.array([row]))[0])

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
        return self._items.attributes(item_id)

    def announced(self) -> NDArray[np.float64]:
        """When each item row was announced or first mentioned, (N,)."""
        self._flush()
        return self._items.announced()

    def counts(self) -> Popularity:
        """Popularity as of now; rows beyond the items are nobody's."""
        self._flush()
        return self._items.popularity

    # -- rows

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

    # -- from events to vectors

    def _flush(self) -> None:
        self._flush_events()
        self._items.encode()

    def _flush_events(self) -> None:
        pending, self._pending = self._pending, []
        for batch in pending:
            # what was taken is looked at as it was when it was
            self._items.encode()
            self._count(self._append(batch))

    def _append(self, batch: EventBatch) -> range:
        snapshot = self.snapshot
        user = np.array([self._user_row(one) for one in batch.users], np.int64)
        item = np.array([self._items.row(one) for one in batch.items], np.int64)
        self._items.meet(item, batch.times)
        rows = (snapshot.actions.row(one) for one in batch.actions)
        action = np.array([0 if row is None else row for row in rows], np.int64)
        default = snapshot.weights.get("default", 1.0)
        weight = np.array([snapshot.weights.get(one, default) for one in batch.actions], np.float32)
        return self._log.append(
            user=user, item=item, action=action, weight=weight, value=batch.values, time=batch.times
        )  # fmt: skip

    def _count(self, positions: range) -> None:
        """Popularity of the items of these events, as of the last of them."""
        log = self._log.view(shared_tail=True)
        over = None if self._live is None else self._live.see(log, positions, self._items.patches)
        self._items.count(positions)
        if over is not None:
            self._recalibrate(over)

    def _recalibrate(self, stretch: Stretch) -> None:
        """Look at the users of these events as they were just before, and at what they then took."""
        assert self._live is not None
        log, gone = self._log.view(shared_tail=True), list(self._items.gone)
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

    def vectors_of(self, histories: Histories, local: Ints) -> Vectors:
        """Published vectors (B, V) of users with these histories and the features in these rows, -1 for none."""
        scales = None if self._live is None else self._live.scales
        if len(self._items) == 0:
            return self.snapshot.user_matrix(histories, local, scales=scales, profiles=self._profiles)
        return self.snapshot.user_matrix(histories, local, scales=scales, **self._inputs(histories))

    def _inputs(self, histories: Histories) -> dict[str, Any]:
        """What `Snapshot.user_matrix` makes users of, as it is now."""
        snapshot = self.snapshot
        rows = np.where(histories.item_BL >= 0, histories.item_BL, 0)
        past = histories.past()
        return {
            "vectors_BLD": self._items.patches.read(rows),
            "past_BD": past.mean_of(torch.from_numpy(self._items.patches.read(past.row_E))),
            "readings": snapshot.readings(histories, self._items.patches.alike, self._items.patches.personal),
            "features_BLK": self._items.patches.features(rows),
            "items_BLV": None if snapshot.scorer.regression is None else self._items.patches.published(rows),
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
        if self._items.gone:
            gone = np.isin(histories.item_BL, list(self._items.gone))
            histories.item_BL = np.where(gone, -1, histories.item_BL)
            histories.past_BP = np.where(np.isin(histories.past_BP, list(self._items.gone)), -1, histories.past_BP)
        return histories
