"""Under which id a user is stored and published: as producers send it, or a keyed hash of it.

    hashed = lower-case hex of the first 16 bytes of HMAC-SHA-256(key, id in UTF-8)

HMAC as in RFC 2104, which every language has, so that readers can do the same. Without the key nobody can tell whose a
hash is, not even by trying all ids there are.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable

LEAST_KEY_BYTES = 16
HASH_BYTES = 16
_FINGERPRINT = "headwater: which key"

UserIds = Callable[[str], str]


def plain(user_id: str) -> str:
    """No key: the id itself."""
    return user_id


def keyed(key: bytes) -> UserIds:
    """Hashes ids with `key`. Raises ValueError for one of less than 16 bytes, which could be guessed."""
    if len(key) < LEAST_KEY_BYTES:
        raise ValueError(f"A key for user ids has {len(key)} bytes; at least {LEAST_KEY_BYTES} are needed.")

    def hashed(user_id: str) -> str:
        return hmac.digest(key, user_id.encode("utf-8", "surrogatepass"), "sha256")[:HASH_BYTES].hex()

    return hashed


def fingerprint(user_ids: UserIds) -> str:
    """Tells one key from another without telling either; empty for `plain`."""
    return "" if user_ids is plain else user_ids(_FINGERPRINT)
