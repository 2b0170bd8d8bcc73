"""`headwater lookup`: vectors as a ranking service reads them from Redis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from service.config import Config
from service.connections import redis_options, user_ids
from service.errors import NotReady
from streams.reader import NothingPublished, Reader


def lookup(config: Config, kind: Literal["items", "users"], ids: Sequence[str]) -> list[dict[str, Any]]:
    """`id`, `version`, `found`, `vector` (list of floats) of each id, in the given order, of one version.

    An item that is not there has `vector` None; a user without a vector of their own has the default user's, as readers
    see it, and `found` False. Raises `NotReady` before the first version, `SinkUnavailable` with Redis away.
    """
    with Reader(namespace=config.namespace, user_ids=user_ids(config), **redis_options(config)) as reader:
        try:
            with reader.pinned() as view:
                default = view.pointer.default_vector()
                vectors = [view.item(id_) if kind == "items" else view.user(id_) for id_ in ids]
                version = view.version
        except NothingPublished as error:
            hint = "Wait for the daemon's first version, or check the namespace."
            raise NotReady(f"nothing is published under {config.namespace} yet.", hint=hint) from error
    return [
        {
            "id": id_,
            "version": version,
            "found": vector is not None and not (kind == "users" and np.array_equal(vector, default)),
            "vector": None if vector is None else vector.tolist(),
        }
        for id_, vector in zip(ids, vectors, strict=True)
    ]
