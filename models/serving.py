"""What is served: an immutable snapshot of weights over the catalogue and the histories of one moment.

Shape suffixes: B users, N items, R rows, L places of a history, D vector size, V length of published vectors, K
popularity features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from models import catalogue
from models.beside import Beside, at_once, halved
from models.event_log import LogView
from models.features import FeatureTable
from models.fold_in import FoldIn
from models.frozen import Frozen
from models.histories import Histories
from models.memory import Memory
from models.readings import Readings
from models.scorer import Scorer, extras, neutral_scales
from models.spec import ModelSpec
from models.vintage import knots_of, vintages

Ints = NDArray[np.int64]
Vectors = NDArray[np.float32]

CHUNK = 2048
"""Vectors computed or handed out at once."""
ENCODED = 512
"""Items encoded at once; so few because a chunk with a new item in it is encoded anew."""
DAY_S = 86_400.0


class Snapshot:
    """Weights, item vectors, histories and ids as of one moment. Nothing in it changes, but that forgotten ids
    disappear."""

    @classmethod
    def build(
        cls,
        spec: ModelSpec,
        state: dict[str, Any],
        memory: Memory,
        *,
        version: int,
        upto: int | None = None,
        like: Snapshot | None = None,
    ) -> Snapshot:
        """The snapshot of a learner's state over today's memory, which may be much younger (a rollback)."""
        return cls(Frozen(spec, state, like.frozen if like else None), memory, version=version, upto=upto, like=like)

    def __init__(
        self,
        frozen: Frozen,
        memory: Memory,
        *,
        version: int,
        upto: int | None = None,
        like: Snapshot | None = None,
        beside: Beside = at_once,
    ) -> None:
        """The snapshot of these weights over today's memory.

        Items that the weights have not met have no residual; popularity and histories include every event in memory, or
        popularity only those before the log position `upto` (not before the weights' own), to judge by what follows.
        What `like`, another snapshot of this memory, has the same is shared with it. Half of the contents are encoded
        `beside` the others.
        """
        self.frozen, self.version = frozen, version
        self.spec, self.scorer, self.values = frozen.spec, frozen.scorer, frozen.values
        self.scales, self.corrections = frozen.scales, frozen.corrections
        self.d = self.spec.dim
        """Size of the personal part, which comes first in a published vector."""
        self.dim = self.spec.dim + extras(self.spec)
        """Length of a published vector."""
        self.log: LogView = memory.view()
        self.items, self.users, self.actions = memory.items, memory.users, memory.actions
        self.weights = memory.weights
        self.n_items, self.n_users = len(memory.items), len(memory.users)
        """Rows, blank ones included."""
        self.announced = memory.announced.copy()
        self.item_features: FeatureTable = memory.item_features.view()
        self.user_features: FeatureTable = memory.user_features.view()
        self.item_attributes = memory.item_attributes
        self.event_time = float(self.log.time.max(initial=-np.inf)) if len(self.log) else None
        """Time of the newest event, None before any."""
        self._knots = knots_of(self.announced, self.spec.vintage_dim)
        self.contents_ND, self.likeness_NK = self._contents(like, beside)
        """Fused contents of all item rows, and what was announced with them (K may be 0)."""
        self.alike_NK = self._alike(like)
        """What was announced with items and when, which ones the same users chose, and the factors."""
        self._build_items(len(self.log) if upto is None else upto)
        self._taste: FoldIn | None = None
        """The reading of learned vectors, as `Frozen.folded` is that of co-occurrence."""
        if frozen.folded is not None and self.spec.head == "dot":
            learned_MD = torch.from_numpy(self.personal_ND[: len(frozen.recent_M)])
            self._taste = FoldIn.of(learned_MD, frozen.recent_M, like._taste if like else None)

    def _contents(self, like: Snapshot | None, beside: Beside) -> tuple[Vectors, Vectors]:
        known: tuple[Vectors | None, Vectors | None] = (None, None)
        if like is not None:
            known = (
                like.contents_ND if catalogue.same_encoders(self.scorer, like.scorer) else None,
                like.likeness_NK if catalogue.same_outlines(self.scorer, like.scorer) else None,
            )
        return (
            self._in_chunks(catalogue.encode, self.d, like, known[0], beside),
            self._in_chunks(catalogue.likeness, self.spec.likeness_dim, like, known[1], beside),
        )

    def _alike(self, like: Snapshot | None) -> Vectors:
        chosen_MK, told = self.frozen.chosen_MK, self.spec.told_dim
        if (
            like is None
            or self.likeness_NK is not like.likeness_NK
            or not np.array_equal(self.announced, like.announced)
        ):  # fmt: skip
            told_NK = self.told(self.likeness_NK, self.announced)
        elif self.frozen is like.frozen:
            return like.alike_NK
        else:
            told_NK = like.alike_NK[:, :told]
        alike_NK = np.zeros((self.n_items, self.spec.alike_dim), np.float32)
        alike_NK[:, :told] = told_NK
        alike_NK[: len(chosen_MK), told:] = chosen_MK
        return alike_NK

    def told(self, likeness_RK: Vectors, announced_R: NDArray[np.float64]) -> Vectors:
        """What was told of items, (R, K): their likeness and, by when they were announced, their vintage."""
        vintage_RK = vintages(announced_R, self._knots, self.spec.vintage_dim)
        return np.concatenate((likeness_RK, vintage_RK), axis=1)

    def prepare(self) -> None:
        """Make all that would else be made when it is first asked for: this one is going to be served."""
        for reading in (self.frozen.folded, self._taste):
            if reading is not None:
                reading.prepare()
        _ = self.default_user

    def _in_chunks(
        self,
        make: Callable[[Scorer, FeatureTable, Ints, str], torch.Tensor],
        size: int,
        like: Snapshot | None,
        known: Vectors | None,
        beside: Beside,
    ) -> Vectors:
        """What `make` makes of all items, (N, size); chunks of the same items with the same features are taken from
        those `known` of `like`."""
        spans = [slice(at, min(at + ENCODED, self.n_items)) for at in range(0, self.n_items, ENCODED)]
        parts: list[Vectors | None] = [None] * len(spans)
        if like is not None and known is not None:
            # whole chunks: the last bits of a row depend on which rows it is encoded with, and after a restart, when
            # there is no `like`, the same snapshot must be the same
            for number, span in enumerate(spans):
                whole = len(known[span]) == span.stop - span.start
                if whole and self.item_features.unchanged(like.item_features, np.arange(self.n_items)[span]).all():
                    parts[number] = known[span]
            if len(known) == self.n_items and not any(part is None for part in parts):
                return known
        table = np.empty((self.n_items, size), np.float32)

        def fill(span: slice) -> None:
            table[span] = make(self.scorer, self.item_features, np.arange(self.n_items)[span], "cpu").numpy()

        for span, part in zip(spans, parts, strict=True):
            if part is not None:
                table[span] = part
        halved(beside, fill, [span for span, part in zip(spans, parts, strict=True) if part is None])
        return table

    def _build_items(self, upto: int) -> None:
        frozen = self.frozen
        self.popularity = frozen.popularity.copy()
        self.popularity.grow(self.n_items)
        self.popularity.place(self.log.position_at(self.announced))
        start = self.popularity.position
        self.popularity.advance(self.log.item[start:upto], self.log.weight[start:upto] > 0)
        # rows that the weights never met stay zero
        self.residual, self.context, self.bias = (
            _longer(part, self.n_items) for part in (frozen.residual_MD, frozen.context_MD, frozen.bias_M)
        )
        """What items have of their own, what is added to their personal part where they stand in a history, and their
        biases."""
        self.personal_ND = self.contents_ND + self.residual
        """Personal parts, before calibration scales those of untouched items."""
        self.vectors_NV = np.empty((self.n_items, self.dim), np.float32)
        """Published vectors of all item rows; blank rows have some too, but no id."""
        now = self.event_time if self.event_time is not None else 0.0
        self.features_NK = self.popularity.features(np.arange(self.n_items), now - self.announced)
        for at in range(0, self.n_items, CHUNK):
            rows = slice(at, at + CHUNK)
            self.vectors_NV[rows] = self.item_matrix(
                self.personal_ND[rows], self.bias[rows], self.features_NK[rows], self.alike_NK[rows]
            )  # fmt: skip
        self._read_ND = torch.from_numpy(self.personal_ND + self.context)
        """What items are in a history."""

    @property
    def finite(self) -> bool:
        """Whether the vectors of all items and of the default user are finite."""
        return bool(np.isfinite(self.vectors_NV).all() and np.isfinite(self.default_user).all())

    # -- vectors

    @cached_property
    def default_user(self) -> Vectors:
        """The vector of anyone unknown, (V,)."""
        return np.asarray(self.user_matrix(Histories.empty(1, self.spec.events_read), np.array([-1]))[0])

    @cached_property
    def learned_vectors(self) -> Vectors:
        """What the weights alone make of all items, (N, as long as `user_matrix` with `learned_alone`)."""
        vectors, bias, features = (torch.from_numpy(part) for part in (self.personal_ND, self.bias, self.features_NK))
        with torch.no_grad():
            return np.asarray(self.scorer.items(vectors, bias, features).numpy())

    @torch.no_grad()
    def item_matrix(self, vectors_RD: Vectors, bias_R: Vectors, features_RK: Vectors, alike_RK: Vectors) -> Vectors:
        """Published vectors (R, V) from personal parts, biases, popularity features and columns of `alike_NK`."""
        parts = (vectors_RD, bias_R, features_RK, alike_RK)
        vectors, bias, features, alike = (torch.from_numpy(part) for part in parts)
        published = self.scorer.items(vectors, bias, features, self.corrections, alike)
        return np.asarray(published.numpy())

    @torch.no_grad()
    def user_matrix(
        self,
        histories: Histories,
        users: Ints,
        *,
        vectors_BLD: Vectors | None = None,
        features_BLK: Vectors | None = None,
        items_BLV: Vectors | None = None,
        profiles: FeatureTable | None = None,
        past_BD: torch.Tensor | None = None,
        readings: Readings | None = None,
        scales: torch.Tensor | None = None,
        learned_alone: bool = False,
    ) -> Vectors:
        """Published vectors (B, V) of users with these histories; the rest is as in this snapshot unless it is
        given. With `learned_alone` what the weights make of them, neither scaled nor read beside: so much shorter."""
        inputs = histories.tensors(self.values)
        rows = inputs.item_BL.numpy()
        if vectors_BLD is None:
            vectors_BLD = (
                self._read_ND.numpy()[rows] if self.n_items else np.zeros((*rows.shape, self.d), np.float32)
            )  # fmt: skip
        if features_BLK is None:
            features_BLK = (
                self.features_NK[rows]
                if self.n_items
                else np.zeros((*rows.shape, self.features_NK.shape[1]), np.float32)
            )
        if items_BLV is None and self.scorer.regression is not None:
            items_BLV = self.vectors_NV[rows] if self.n_items else np.zeros((*rows.shape, self.dim), np.float32)
        if past_BD is None:
            past_BD = histories.past().mean(self._read_ND)
        if readings is None and not learned_alone:
            readings = self.readings(
                histories, lambda rows, columns: self.alike_NK[:, columns][rows], self.personal_ND.__getitem__
            )
        table = self.user_features if profiles is None else profiles
        published = self.scorer.users(
            torch.from_numpy(vectors_BLD), torch.from_numpy(features_BLK), past_BD, inputs,
            neutral_scales() if learned_alone else self.scales if scales is None else scales,
            profiles=catalogue.gather(table, users, "cpu") if self.spec.user_features else None,
            items_BLV=None if items_BLV is None else torch.from_numpy(items_BLV),
            readings=None if learned_alone else readings,
        )  # fmt: skip
        return np.asarray(published.numpy())

    def readings(
        self, histories: Histories, alike: Callable[[Ints, slice], Vectors], personal: Callable[[Ints], Vectors]
    ) -> Readings | None:
        """What these histories say by what was told of items and by co-occurrence, columns of `alike` of item rows, by
        their `personal` parts, and by the factors; for ratings it follows from the values that users gave."""
        if self.frozen.folded is None:
            return None
        told = slice(0, self.spec.told_dim)
        together = slice(told.stop, told.stop + self.spec.cooccurrence_dim)
        return Readings.of(
            histories,
            lambda past: past.mean_of(torch.from_numpy(alike(past.row_E, told))),
            lambda past: past.mean_of(torch.from_numpy(alike(past.row_E, together))),
            lambda past: past.mean_of(torch.from_numpy(personal(past.row_E))),
            likeness_dim=self.spec.likeness_dim, factors=self.frozen.factors, folded=self.frozen.folded,
            taste=self._taste,
        )  # fmt: skip

    def histories(self, users: Ints, until_B: NDArray[np.float64] | None = None) -> Histories:
        """The histories of these user rows, -1 for nobody, up to now or to some times."""
        return Histories.from_log(self.log, self.log.tails(users), self.spec.events_read, until_B=until_B)

    def user_vectors(self, ids: Sequence[str]) -> Vectors:
        """Published vectors (B, V) of users; of anyone unknown, `default_user`."""
        users = np.array([self._row(self.users.row(one), self.n_users) for one in ids], np.int64)
        out = np.empty((len(ids), self.dim), np.float32)
        for at in range(0, len(ids), CHUNK):
            part = users[at : at + CHUNK]
            out[at : at + CHUNK] = self.user_matrix(self.histories(part), part)
        return out

    def item_row(self, item_id: str) -> int:
        """Row of an item in this snapshot, -1 where it has none."""
        return self._row(self.items.row(item_id), self.n_items)

    def user_row(self, user_id: str) -> int:
        """Row of a user in this snapshot, -1 where it has none."""
        return self._row(self.users.row(user_id), self.n_users)

    @staticmethod
    def _row(row: int | None, known: int) -> int:
        return row if row is not None and row < known else -1

    # -- what is published

    @property
    def item_ids(self) -> list[str]:
        """Ids of all items, in the order of `vectors("items")`."""
        return [one for one in self.items.ids[: self.n_items] if one is not None]

    def user_ids(self, *, active_days: float = 0) -> list[str]:
        """Ids of all users, or of those with an event in the last days before the newest event, and of who never had
        one, but is known by features."""
        ids = self.users.ids[: self.n_users]
        if active_days <= 0 or self.event_time is None:
            return [one for one in ids if one is not None]
        tails = self.log.tails(np.arange(self.n_users))
        lately = self.log.time[tails] >= self.event_time - active_days * DAY_S
        active = np.where(tails >= 0, lately, self.user_features.there(np.arange(self.n_users)))
        return [one for one, keep in zip(ids, active.tolist(), strict=True) if keep and one is not None]

    def vectors(self, kind: Literal["items", "users"]) -> Vectors:
        """Published vectors (n, V) of all `item_ids` or `user_ids()`."""
        if kind == "users":
            return self.user_vectors(self.user_ids())
        return self.vectors_NV[[row for row, one in enumerate(self.items.ids[: self.n_items]) if one is not None]]

    def items_in_chunks(self, size: int = CHUNK) -> Iterator[tuple[list[str], Vectors]]:
        """All items: ids and published vectors, some at a time."""
        for at in range(0, self.n_items, size):
            rows = [r for r in range(at, min(at + size, self.n_items)) if self.items.ids[r] is not None]
            if rows:
                yield [str(self.items.ids[row]) for row in rows], self.vectors_NV[rows]

    def users_in_chunks(self, *, active_days: float = 0, size: int = CHUNK) -> Iterator[tuple[list[str], Vectors]]:
        """All users, or those active in the last days: ids and published vectors, some at a time."""
        ids = self.user_ids(active_days=active_days)
        for at in range(0, len(ids), size):
            yield ids[at : at + size], self.user_vectors(ids[at : at + size])

    def head_layers(self) -> list[tuple[Vectors, Vectors]]:
        """Layers (W (out, in), b (out,)) of the `mlp` head, ReLU between them; empty for `dot`.

        The score is network([user[:d], item[:d]]) + dot(user[d:], item[d:]).
        """
        return [(layer.weight.numpy().copy(), layer.bias.numpy().copy()) for layer in self.scorer.head]  # type: ignore[operator]

    def attributes(self, item_id: str) -> dict[str, Any]:
        """What was announced with an item; empty where nothing was."""
        row = self.item_row(item_id)
        return self.item_attributes[row] if row >= 0 else {}

    @torch.no_grad()
    def scores(self, users_BV: Vectors, items_NV: Vectors) -> Vectors:
        """Scores (B, N) of published vectors."""
        # by torch for both heads: its threads are ours to limit, those of numpy's BLAS would take intake's core
        return np.asarray(self.scorer.matrix(torch.from_numpy(users_BV), torch.from_numpy(items_NV)).numpy())

    def check_scores(self, count: int = 8) -> Vectors:
        """A few scores, of users and items spread over all; equal for equal snapshots."""
        if self.n_items == 0:
            return np.zeros((0, 0), np.float32)
        users = np.r_[-1, np.linspace(0, max(0, self.n_users - 1), count).astype(np.int64)]
        items = np.linspace(0, self.n_items - 1, count).astype(np.int64)
        return self.scores(self.user_matrix(self.histories(users), users), self.vectors_NV[items])


def _longer(table: Vectors, rows: int) -> Vectors:
    """The table with zeros behind its end."""
    if len(table) == rows:
        return table
    return np.concatenate((table, np.zeros((rows - len(table), *table.shape[1:]), np.float32)))
