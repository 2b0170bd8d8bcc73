"""Answers from a snapshot and what came after it: the best items for a user, items alike, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from models.overlay import Overlay


def recommend(overlay: Overlay, user_id: str, *, k: int, include_seen: bool = False) -> list[dict[str, Any]]:
    """The best `k` items, best first: `item_id`, `score`, `attributes`; without the user's own unless asked for."""
    scores = overlay.scores(user_id)
    if not include_seen:
        scores[overlay.seen(user_id)] = -np.inf
    return _best(overlay, scores, k)


def similar(overlay: Overlay, item_id: str, *, k: int) -> list[dict[str, Any]] | None:
    """The `k` items most alike by cosine of the personal part, without itself; None where it is unknown."""
    row = overlay.item_index(item_id)
    if row is None:
        return None
    personal = overlay.personal_vectors()
    length = np.linalg.norm(personal, axis=1)
    scores = personal @ personal[row] / np.maximum(length * length[row], 1e-12)
    scores[[row, *overlay.gone_rows]] = -np.inf
    return _best(overlay, scores, k)


def explain(overlay: Overlay, user_id: str, item_id: str) -> dict[str, Any] | None:
    """What a score is made of; None where the item is unknown.

    `score`; its `terms` (`personal`, `bias`, `popularity`, which sum to it for the `dot` head); and `parts`: how much
    less it would be without each modality, and without the item's own residual (`id`).
    """
    row = overlay.item_index(item_id)
    if row is None:
        return None
    snapshot = overlay.snapshot
    d = snapshot.d
    user_V, item_V = overlay.user_vectors([user_id])[0], overlay.item_vectors([item_id])[0]
    score = float(snapshot.scores(user_V[None], item_V[None])[0, 0])
    products = user_V * item_V
    terms = {"bias": float(products[d]), "popularity": float(products[d + 1 :].sum())}
    terms["personal"] = score - terms["bias"] - terms["popularity"]
    parts = {}
    for name, without_D in overlay.ablations(row).items():
        changed_V = np.concatenate((without_D, item_V[d:]))
        parts[name] = score - float(snapshot.scores(user_V[None], changed_V[None])[0, 0])
    return {"user_id": user_id, "item_id": item_id, "score": score, "terms": terms, "parts": parts}


def _best(overlay: Overlay, scores: np.ndarray[Any, np.dtype[np.float32]], k: int) -> list[dict[str, Any]]:
    ids = overlay.all_item_ids
    k = min(k, len(scores))
    if k <= 0:
        return []
    first = np.argpartition(-scores, k - 1)[:k]
    order = first[np.lexsort((first, -scores[first]))]
    return [
        {"item_id": one, "score": float(scores[row]), "attributes": overlay.attributes(one)}
        for row in order
        if (one := ids[row]) is not None and np.isfinite(scores[row])
    ]
