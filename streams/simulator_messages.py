"""A simulated stream as the bytes that Headwater reads from Kafka: interactions, items and users in JSON.

An item is announced right before the first event that could choose it, a user's features right before the user's first
event; so the messages of the three topics, sent in this order, are what applications would have sent.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from streams.simulator import Simulator, Stream, item_id, user_id
from streams.simulator_world import FEATURE_DIMS, PROFILE_DIM

MODALITIES: dict[str, int] = dict(FEATURE_DIMS)
"""Item modalities of the simulated world, for `[model.modalities]`."""
USER_FEATURES: dict[str, int] = {"profile": PROFILE_DIM}
"""User features of the simulated world, for `[model.user_features]`."""


class Message(NamedTuple):
    """One record to send."""

    kind: Literal["interactions", "items", "users"]
    key: bytes
    """Id of the user for interactions and users, of the item for items."""
    value: bytes
    time: float
    """Event time, in seconds since 1970."""
    number: int
    """Number of the interaction that it is, or that it precedes."""


def messages(simulator: Simulator) -> Iterator[Message]:
    """All messages of the world in the order in which they happen; the same for the same world, byte for byte."""
    world, items, users = simulator.world, 0, np.zeros(len(simulator.tastes), dtype=np.bool_)
    for block in simulator.blocks():
        for row, number in enumerate(block.number.tolist()):
            announced = world.items_at(number)
            for item in range(items, announced):
                yield Message(
                    "items", item_id(item).encode(), item_value(simulator, item), world.time_of(number), number
                )
            items = announced
            user = int(block.user[row])
            key = user_id(user).encode()
            if not users[user]:
                users[user] = True
                if simulator.tastes.has_profile[user]:
                    yield Message(
                        "users", key, user_value(simulator, user, world.time_of(number)), world.time_of(number), number
                    )
            yield Message("interactions", key, interaction_value(block, row), float(block.time[row]), number)


def interaction_value(stream: Stream, row: int) -> bytes:
    """The event of one row."""
    event: dict[str, Any] = {
        "user_id": user_id(int(stream.user[row])),
        "item_id": item_id(int(stream.item[row])),
        "action": stream.names[int(stream.action[row])],
        "time": round(float(stream.time[row]), 6),
        "event_id": f"e{int(stream.number[row])}",
    }
    if not np.isnan(stream.value[row]):
        event["value"] = round(float(stream.value[row]), 2)
    return msgspec.json.encode(event)


def item_value(simulator: Simulator, item: int) -> bytes:
    """The announcement of an item: its features (but one, where it lacks one) and what a person reads of it."""
    catalogue, world = simulator.catalogue, simulator.world
    event = {
        "item_id": item_id(item),
        "time": round(world.time_of(int(catalogue.births[item])), 6),
        "features": {
            name: _base64(value[item]) for name, value in catalogue.features.items() if not catalogue.absent[name][item]
        },
        "text": catalogue.titles[item],
        "attributes": {"title": catalogue.titles[item], "category": catalogue.categories[item]},
    }
    return msgspec.json.encode(event)


def user_value(simulator: Simulator, user: int, time: float) -> bytes:
    """A user's features."""
    event = {
        "user_id": user_id(user),
        "time": round(time, 6),
        "features": {"profile": _base64(simulator.tastes.profiles[user])},
    }
    return msgspec.json.encode(event)


def digest(previous: int, message: Message) -> int:
    """A checksum of all messages so far, given that of those before this one (0 for none)."""
    return zlib.crc32(message.value, zlib.crc32(message.key, previous))


def _base64(vector: NDArray[np.float32]) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
