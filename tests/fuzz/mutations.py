"""What may happen to bytes and to plain values: a flipped bit, a cut, a number that no one expects."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

ODD_BYTES = (0x00, 0x7F, 0x80, 0xFF, 0x22, 0x5B, 0x7B, 0x2C)
ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, -(2**31) - 1, 2**63, -(2**63), 2**70, 0.5, -0.0, 1e308, -1e308, 5e-324, "", "0",
    "-1", "1e400", "NaN", "../../../etc/passwd", "/dev/zero", "a\0b", "\U0001f600", "x" * 5000, [], {}, [None], [[]],
    {"": None}, {"format": 99}, {"0": -1}, "0" * 64,
)  # fmt: skip


def nested(chance: random.Random) -> Any:
    """Lists within lists, deeper than any reader's stack."""
    value: Any = []
    for _ in range(chance.choice((5, 60, 600))):
        value = [value]
    return value


def mutated_bytes(data: bytes, chance: random.Random) -> bytes:
    """`data` with one to four things done to it; it may come out as it was."""
    out = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        _BYTES[chance.randrange(len(_BYTES))](out, chance)
    return bytes(out)


def _flip(out: bytearray, chance: random.Random) -> None:
    if out:
        out[chance.randrange(len(out))] ^= 1 << chance.randrange(8)


def _put(out: bytearray, chance: random.Random) -> None:
    if out:
        out[chance.randrange(len(out))] = chance.choice(ODD_BYTES)


def _cut(out: bytearray, chance: random.Random) -> None:
    del out[chance.randrange(len(out) + 1) :]


def _insert(out: bytearray, chance: random.Random) -> None:
    at = chance.randrange(len(out) + 1)
    out[at:at] = chance.randbytes(chance.choice((1, 2, 8, 40)))


def _remove(out: bytearray, chance: random.Random) -> None:
    at = chance.randrange(len(out) + 1)
    del out[at : at + chance.choice((1, 2, 8, 40))]


def _repeat(out: bytearray, chance: random.Random) -> None:
    at, length = chance.randrange(len(out) + 1), chance.choice((1, 4, 32, 200))
    out[at:at] = out[at : at + length] * chance.choice((1, 2, 20))


def _blank(out: bytearray, chance: random.Random) -> None:
    at, length = chance.randrange(len(out) + 1), chance.choice((1, 4, 8, 64))
    out[at : at + length] = bytes([chance.choice((0, 255))]) * len(out[at : at + length])


def _number(out: bytearray, chance: random.Random) -> None:
    """A whole number's bytes in place of some, as lengths and rows are written."""
    size = chance.choice((1, 2, 4, 8))
    value = chance.choice((0, 1, -1, 2 ** (8 * size - 1) - 1, -(2 ** (8 * size - 1)), chance.randrange(100)))
    at = chance.randrange(len(out) + 1)
    out[at : at + size] = value.to_bytes(size, chance.choice(("little", "big")), signed=True)


_BYTES: tuple[Callable[[bytearray, random.Random], None], ...] = (
    _flip, _flip, _put, _cut, _insert, _remove, _repeat, _blank, _number,
)  # fmt: skip


def mutated_value(value: Any, chance: random.Random, odd: Callable[[Any, random.Random], Any]) -> Any:
    """A copy of nested dicts and lists with one thing in it changed: a leaf or branch replaced by `odd`, a key or entry
    gone, doubled or renamed."""
    root = [copy.deepcopy(value)]
    holder: Any = root
    place: Any = 0
    while isinstance(holder[place], dict | list) and holder[place] and chance.random() < 0.85:
        holder = holder[place]
        place = chance.choice(list(holder)) if isinstance(holder, dict) else chance.randrange(len(holder))
    action = chance.randrange(8)
    if action == 0 and holder is not root:
        del holder[place]
    elif action == 1 and isinstance(holder, dict):
        holder[chance.choice(("", "x", "../x", -1, 10**6, str(place)))] = holder.pop(place)
    elif action == 2 and isinstance(holder, list):
        holder.insert(chance.randrange(len(holder) + 1), copy.deepcopy(holder[place]))
    else:
        holder[place] = odd(holder[place], chance)
    return root[0] if root else None


def odd_value(value: Any, chance: random.Random) -> Any:
    """Something that is not what stood here."""
    if isinstance(value, int | float) and not isinstance(value, bool) and chance.random() < 0.5:
        return value + chance.choice((1, -1, 1000, -1000, 0.5, 2**40, -(2**40)))
    if isinstance(value, str) and value and chance.random() < 0.3:
        at = chance.randrange(len(value))
        return value[:at] + chance.choice("0aZ/.\0é") + value[at + 1 :]
    return nested(chance) if chance.random() < 0.05 else copy.deepcopy(chance.choice(ODD_VALUES))
