"""The smallest complete reader: scores of some items for a user, by nothing but docs/redis.md (redis-py and NumPy).

python docs/readers/reader.py redis://localhost:6379 headwater USER ITEM ITEM …
"""

import base64
import json
import sys
import zlib

import numpy as np
import redis


def scores(r: redis.Redis, ns: str, user: str, items: list[str]) -> dict[str, float]:
    """The known items' scores; all numbers are of one version."""
    for _ in range(2):  # a miss may mean that this version has just gone: read the pointer again, once
        p = json.loads(r.get(f"{ns}:current"))
        key = lambda kind, i: f"{ns}:{kind}:{{b{zlib.crc32(i.encode()) % p['buckets']}}}:v{p['version']}"  # noqa: B023, E731
        u = r.hget(key("users", user), user)
        found = {i: v for i in items if (v := r.hget(key("items", i), i))}
        if u and len(found) == len(items):
            break
    u = np.frombuffer(u or base64.b64decode(p["default_user"]), "<f4")
    matrix = np.frombuffer(b"".join(found.values()), "<f4").reshape(len(found), p["dim"])
    s = matrix @ u if p["head"] == "dot" else mlp(r.get(f"{ns}:head:v{p['version']}"), u, matrix)
    return dict(zip(found, s.tolist(), strict=True))


def mlp(head: bytes, u: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """What the `mlp` head adds: x·y + the layers over [u ; e]."""
    (d, _, layers), at = np.frombuffer(head, "<u4", 3, 8), 20
    h = np.hstack([np.tile(u[:d], (len(matrix), 1)), matrix[:, :d]])
    for n in range(layers):
        rows, columns = np.frombuffer(head, "<u4", 2, at)
        w = np.frombuffer(head, "<f4", rows * (columns + 1), at + 8)
        h = (np.maximum(h, 0) if n else h) @ w[: rows * columns].reshape(rows, columns).T + w[rows * columns :]
        at += 8 + w.nbytes
    return h[:, 0] + matrix[:, d:] @ u[d:]


if __name__ == "__main__":
    url, namespace, user_id, *item_ids = sys.argv[1:]
    print(json.dumps(scores(redis.Redis.from_url(url), namespace, user_id, item_ids)))
