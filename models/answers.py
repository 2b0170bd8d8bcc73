"""Answers from a snapshot and what came after it: the best items for a user, and items alike."""

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
