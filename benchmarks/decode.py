"""How many events one core decodes in a second of its time: `python -m benchmarks.decode`."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable

import msgspec
import numpy as np

from streams.events import EventDecoder, Record

EVENTS = 200_000
NOW_MS = 1_700_000_000_000


def per_second(decode: Callable[[Record], object], values: list[bytes]) -> float:
    """Decoded records a second of processor time, best of three passes."""
    records = [Record("t", 0, i, NOW_MS, None, value) for i, value in enumerate(values)]
    best = float("inf")
    for _ in range(3):
        start = time.process_time()
        for record in records:
            decode(record)
        best = min(best, time.process_time() - start)
    return len(values) / best


def main() -> None:
    decoder = EventDecoder(
        modalities={"image": 128}, min_time=0, max_ahead_s=60, max_record_bytes=1_000_000, max_id_bytes=512
    )
    events = [
        {"user_id": f"u{i % 5000}", "item_id": i % 900, "action": "click", "value": 1.5, "time": NOW_MS / 1000 - i}
        | {"event_id": f"event-{i}"}
        for i in range(EVENTS)
    ]
    dated = [event | {"time": "2023-11-14T22:13:20Z"} for event in events]
    vector = base64.b64encode(np.ones(128, "<f4").tobytes()).decode()
    items = [{"item_id": i, "time": NOW_MS, "features": {"image": vector}} for i in range(EVENTS // 10)]
    for name, decode, values in (
        ("interactions, JSON, epoch", decoder.interaction, [msgspec.json.encode(event) for event in events]),
        ("interactions, JSON, RFC 3339", decoder.interaction, [msgspec.json.encode(event) for event in dated]),
        ("interactions, MessagePack", decoder.interaction, [msgspec.msgpack.encode(event) for event in events]),
        ("items, base64 of 128 floats", decoder.item, [msgspec.json.encode(item) for item in items]),
    ):
        print(f"{name:32} {per_second(decode, values):>12,.0f} events/s")


if __name__ == "__main__":
    main()
