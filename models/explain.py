"""Why a user is offered an item: the score of one pair taken apart, once by what the item has, once by what the user
did. Each of the two adds up to the score.

By the item, the terms of `models.scorer` are sums as they stand:

    score = Σ_m (⟨u, y_m⟩ + ⟨r_u, r_m⟩) + ⟨u, residual⟩ + vintage + cooccurrence + factors + bias + popularity + taste
            (+ base, for ratings) + rest

with the scales of calibration in each. r_m is what was announced of modality m (`models.likeness`), y_m what the
fusion's own weights give it. Where modalities do more than add, and under the `mlp` head, credits for the y_m are
Shapley values instead (`credits`), which add up as well; `rest` is then what the network says of nothing at all,
otherwise a constant of the fusion, or rounding.

By the user, a part is what the score loses without it (leave one out), the rest as it is:

    score = anyone (+ mean, for ratings) + features + Σ_h history_h + earlier + rest

`anyone` is the default user's score; `rest` is what the parts say only together, or each of them by itself already.

Shape suffixes: O orders, C coalitions, M modalities or other players, D vector size, V length of published vectors, L
places of a history, N rows of a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models import catalogue
from models.histories import Histories
from models.overlay import Overlay
from models.popularity import NEVER_SEEN
from models.scorer import AS_OTHERS, POPULARITY_DIM

Floats = NDArray[np.float64]
Vectors = NDArray[np.float32]
Coalitions = NDArray[np.bool_]


def explain(overlay: Overlay, user_id: str, item_id: str) -> dict[str, Any] | None:
    """The score of a pair and what it is made of, plain values; None where the item is unknown.

    `item`: `modalities` by name (those that the item has), `id`, `vintage` (whether it came when what this user chose
    last did), `cooccurrence` (how often the same users chose it and what this one chose last), `factors` (what this one
    wants, in few dimensions), `bias`, `popularity` (the same for everybody), `taste` (how this user weighs it), `base`
    (only for ratings, the user's mean), `rest`; and `credit`, how modalities got theirs: `weights` or `shapley`.
    `user`: `anyone`, `mean` (only for ratings, what the user's own mean adds), `features` (where there are any),
    `history` (newest first: `item_id`, `action`, `value`, `time` in seconds since the epoch, `attributes` and its part
    `score`), `earlier` (all that came before these), `rest`. A user nobody knows is the default user.
    """
    row = overlay.item_index(item_id)
    if row is None:
        return None
    histories, local = overlay.history(user_id)
    user_V, item_V = overlay.vectors_of(histories, local)[0], overlay.item_vectors([item_id])[0]
    score = _score(overlay, user_V[None], item_V)[0]
    return {
        "user_id": user_id,
        "item_id": item_id,
        "version": overlay.snapshot.version,
        "score": float(score),
        "attributes": overlay.attributes(item_id),
        "item": _by_item(overlay, row, user_V, item_V, score),
        "user": _by_user(overlay, histories, local, user_V, item_V, score),
    }


def credits(value: Callable[[Coalitions], Floats], players: int) -> Floats:
    """What each player adds to `value`, (M,); they sum to value(all) − value(none).

    The mean of its gain over orders in which the players come one after another: every rotation of the order and of its
    reverse, so that each stands at each place equally often. For up to three players these are all orders, and the
    result is the Shapley value; beyond, a balanced sample of them (Castro, Gómez & Tejada, "Polynomial calculation of
    the Shapley value based on sampling", 2009). `value` maps coalitions (C, M) to (C,). Unlike leaving one out, two
    modalities that say the same share the credit, where each by itself would seem to be of no use.
    """
    one = np.arange(players)
    orders_OM = np.array([np.roll(order, -k) for order in (one, one[::-1]) for k in range(players)], np.int64)
    if players == 0:
        return np.zeros(0)
    place_OM = np.argsort(orders_OM, axis=1)
    # after how many players each coalition was seen: 0 to M
    coalitions = place_OM[:, None, :] < np.arange(players + 1)[None, :, None]
    values = value(coalitions.reshape(-1, players)).reshape(len(orders_OM), players + 1)
    gains_OM = np.diff(values, axis=1)
    return np.asarray(np.take_along_axis(gains_OM, place_OM, axis=1).mean(axis=0))


def _score(overlay: Overlay, users_NV: Vectors, item_V: Vectors) -> Floats:
    return np.asarray(overlay.snapshot.scores(users_NV, item_V[None])[:, 0], np.float64)


def _by_item(overlay: Overlay, row: int, user_V: Vectors, item_V: Vectors, score: float) -> dict[str, Any]:
    snapshot = overlay.snapshot
    d = snapshot.d
    products_V = user_V.astype(np.float64) * item_V
    taste = d + 2 + POPULARITY_DIM
    vintage, together = taste + snapshot.spec.likeness_dim, taste + snapshot.spec.told_dim
    factors, end = together + snapshot.spec.cooccurrence_dim, taste + snapshot.spec.alike_dim
    parts: dict[str, Any] = {
        "vintage": float(products_V[vintage:together].sum()),
        "cooccurrence": float(products_V[together:factors].sum()),
        "factors": float(products_V[factors:end].sum()),
        "bias": float(products_V[d]),
        "popularity": float(products_V[d + 1]),
        "taste": float(products_V[d + 2 : taste].sum()),
    }
    if snapshot.spec.objective == "rating":
        parts["base"] = float(products_V[-1])
    share = snapshot.corrections.untouched if overlay.popularity_of(row)[NEVER_SEEN] > 0 else AS_OTHERS
    modalities, own, credit = _personal(overlay, row, user_V, item_V)
    modalities = {name: share.personal * part for name, part in modalities.items()}
    for name, part in _likeness(overlay, row, user_V[taste:vintage]).items():
        modalities[name] += share.likeness * part
    rest = score - sum(parts.values()) - sum(modalities.values()) - own
    return {"modalities": modalities, "id": own, **parts, "rest": float(rest), "credit": credit}


@torch.no_grad()
def _likeness(overlay: Overlay, row: int, liked_K: Vectors) -> dict[str, float]:
    """What each modality that the item has adds by what was announced of it."""
    spec, scorer = overlay.snapshot.spec, overlay.snapshot.scorer
    if not spec.likeness_dim:
        return {}
    features, _ = overlay.content_of(row)
    part_MK = scorer.likenesses(catalogue.gather_one(spec, features))[0].numpy().astype(np.float64)
    parts = zip(scorer.outlines, (part_MK @ liked_K).tolist(), strict=True)
    return {name: part for name, part in parts if name in features}


@torch.no_grad()
def _personal(overlay: Overlay, row: int, user_V: Vectors, item_V: Vectors) -> tuple[dict[str, float], float, str]:
    """What each modality adds to the personal term, what the item's own residual does, and how that was found."""
    snapshot = overlay.snapshot
    scorer, d = snapshot.scorer, snapshot.d
    features, own_D = overlay.content_of(row)
    names = [name for name in snapshot.spec.modalities if name in features]
    user_D = user_V[:d].astype(np.float64)
    dot = snapshot.spec.head == "dot"
    own = float(user_D @ own_D)
    if dot and not names:
        return {}, own, "weights"
    places = [place for place, name in enumerate(snapshot.spec.modalities) if name in features]
    if scorer.fusion is not None:
        x_1MD, mask_1M = scorer.encoded(catalogue.gather_one(snapshot.spec, features))
        added_1MD = scorer.fusion.parts(x_1MD, mask_1M)
        if dot and added_1MD is not None:
            part_M = added_1MD[0].numpy()[places].astype(np.float64) @ user_D
            return dict(zip(names, part_M.tolist(), strict=True)), own, "weights"

    def vectors(coalitions: Coalitions) -> Vectors:
        """Contents (C, D) of the item with only these of its modalities."""
        if scorer.fusion is None:
            return np.zeros((len(coalitions), d), np.float32)
        mask_CM = torch.zeros(len(coalitions), len(snapshot.spec.modalities), dtype=torch.bool)
        mask_CM[:, places] = torch.from_numpy(coalitions)
        return np.asarray(scorer.fused(x_1MD.expand(len(coalitions), -1, -1), mask_CM).numpy())

    if dot:
        part_M = credits(lambda c: vectors(c).astype(np.float64) @ user_D, len(names))
        return dict(zip(names, part_M.tolist(), strict=True)), own, "shapley"

    def network(coalitions: Coalitions) -> Floats:
        """Scores with only these of the modalities, and the residual, which comes last."""
        items_CV = np.repeat(item_V[None], len(coalitions), axis=0)
        items_CV[:, :d] = vectors(coalitions[:, :-1]) + coalitions[:, -1:] * own_D
        return np.asarray(snapshot.scores(user_V[None], items_CV)[0], np.float64)

    *part_M, own = credits(network, len(names) + 1).tolist()
    return dict(zip(names, part_M, strict=True)), own, "shapley"


def _by_user(
    overlay: Overlay, histories: Histories, local: NDArray[np.int64], user_V: Vectors, item_V: Vectors, score: float
) -> dict[str, Any]:
    snapshot = overlay.snapshot
    anyone_V = overlay.vectors_of(Histories.empty(1, snapshot.spec.events_read), np.array([-1]))[0]
    parts: dict[str, Any] = {"anyone": float(_score(overlay, anyone_V[None], item_V)[0])}
    if snapshot.spec.objective == "rating":
        parts["mean"] = float(user_V[-1]) - float(anyone_V[-1])
    places = np.flatnonzero(histories.item_BL[0] >= 0)
    # the place stays taken: how long the history is, and what its values are on average, is what it was
    without = histories.rows(np.zeros(len(places) + 2, np.int64))
    each = np.arange(len(places))
    without.item_BL[each, places] = -1
    averaged = places < without.past_BP.shape[1]
    without.past_BP[each[averaged], places[averaged]] = -1
    without.past_BP[-2, histories.item_BL.shape[1] :] = -1
    rows = np.repeat(local, len(places) + 2)
    rows[-1] = -1  # the last is without the user's features
    without_NV = overlay.vectors_of(without, rows)
    if snapshot.spec.objective == "rating":
        without_NV[:, -1] = user_V[-1]  # what an event does to the user's mean is in `mean`
    lost_N = score - _score(overlay, without_NV, item_V)
    if snapshot.spec.user_features:
        parts["features"] = float(lost_N[-1])
    events = [
        _event(overlay, histories, place) | {"score": lost}
        for place, lost in zip(places.tolist(), lost_N[:-2].tolist(), strict=True)
    ]
    rest = score - sum(parts.values()) - float(lost_N[:-1].sum())
    return {**parts, "history": events, "earlier": float(lost_N[-2]), "rest": float(rest)}


def _event(overlay: Overlay, histories: Histories, place: int) -> dict[str, Any]:
    """One event of a history, as plain values; None where it has no value, or its action is none of those told
    apart."""
    item_id = overlay.all_item_ids[int(histories.item_BL[0, place])]
    value = float(histories.value_BL[0, place])
    return {
        "item_id": item_id,
        "action": overlay.snapshot.actions.ids[int(histories.action_BL[0, place])] or None,
        "value": None if np.isnan(value) else value,
        "time": float(histories.time_BL[0, place]),
        "attributes": overlay.attributes(str(item_id)),
    }
