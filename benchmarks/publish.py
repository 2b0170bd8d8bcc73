"""How fast vectors are published, and what readers feel of it.

    python -m benchmarks.publish [--server valkey|redis] [--vectors 200000] [--dim 65] [--json OUT]

Prints vectors a second through `RedisSink.write`, beside the same vectors by one plain HSET each (alone, and in
pipelines), and the latency of a reader in another process: 50 items and a user a request, at rest and while versions
are written one after another. Server, publisher and reader share this machine's cores; the CPU time that a vector
costs the publisher and the server says what the rate is worth on a busy machine.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import redis
import typer

from streams.embedded import EmbeddedRedis, find_redis_server
from streams.publisher import RedisSink
from streams.reader import Reader
from streams.redis_keys import Floats, Pointer, bucket_key, bucket_of, vector_bytes

spawn = multiprocessing.get_context("spawn")
BUCKETS = 64


def main(
    *,
    server: Annotated[str, typer.Option(help="valkey (embedded) or redis (redis-server on PATH).")] = "valkey",
    vectors: Annotated[int, typer.Option(min=1000, help="Vectors in a version.")] = 200_000,
    dim: Annotated[int, typer.Option(min=1)] = 65,
    rounds: Annotated[int, typer.Option(min=1, help="Versions written; the median counts.")] = 5,
    reader_s: Annotated[float, typer.Option(help="Seconds for which the reader is measured, each time.")] = 5.0,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the figures here too.")] = None,
) -> None:
    """Measure and print."""
    binary = find_redis_server() if server == "redis" else None
    if server == "redis" and binary is None:
        raise typer.BadParameter("no redis-server on PATH")
    ids = [f"item-{n}" for n in range(vectors)]
    matrix = np.random.default_rng(0).normal(size=(vectors, dim)).astype(np.float32)
    with (
        tempfile.TemporaryDirectory() as directory,
        EmbeddedRedis(directory=Path(directory), binary=binary) as running,
        RedisSink(running.address, buckets=BUCKETS) as sink,
        redis.Redis.from_url(running.address) as client,
    ):
        figures: dict[str, Any] = {"server": server, "vectors": vectors, "dim": dim, "cores": os.cpu_count()}
        figures["hset_each_per_s"] = hset_each(client, ids[:5000], matrix)
        figures["hset_pipelined_per_s"] = hset_pipelined(client, ids[:50_000], matrix)
        client.flushall()
        serve(sink, ids, matrix)
        figures |= {f"reader_at_rest_{name}": value for name, value in read_for(running.address, reader_s).items()}
        before = (time.process_time(), server_cpu_s(client))
        rates = write_versions(sink, ids, matrix, rounds=rounds)
        written = vectors * rounds
        figures["publisher_cpu_us_per_vector"] = round((time.process_time() - before[0]) / written * 1e6, 2)
        figures["server_cpu_us_per_vector"] = round((server_cpu_s(client) - before[1]) / written * 1e6, 2)
        figures["published_per_s"] = round(statistics.median(rates))
        figures["published_per_s_rounds"] = [round(rate) for rate in rates]
        figures["times_hset_each"] = round(figures["published_per_s"] / figures["hset_each_per_s"], 1)
        figures["times_hset_pipelined"] = round(figures["published_per_s"] / figures["hset_pipelined_per_s"], 1)
        during = read_for(running.address, reader_s, meanwhile=(sink, ids, matrix))
        figures |= {f"reader_while_publishing_{name}": value for name, value in during.items()}
    for name, value in figures.items():
        print(f"{name:36} {value}")
    if json_out is not None:
        json_out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def server_cpu_s(client: redis.Redis) -> float:
    """CPU time that the server has used, all its threads."""
    used: Any = client.info("cpu")
    return float(used["used_cpu_user"] + used["used_cpu_sys"])


def hset_each(client: redis.Redis, ids: list[str], matrix: Floats) -> int:
    """Vectors a second with one HSET and one round trip for each."""
    started = time.perf_counter()
    for id_, row in zip(ids, matrix, strict=False):
        client.hset(bucket_key("raw", "items", bucket_of(id_, BUCKETS), 1), id_, row.tobytes())
    return round(len(ids) / (time.perf_counter() - started))


def hset_pipelined(client: redis.Redis, ids: list[str], matrix: Floats) -> int:
    """Vectors a second with one HSET for each, a thousand to a pipeline."""
    started = time.perf_counter()
    with client.pipeline(transaction=False) as pipeline:
        for number, (id_, row) in enumerate(zip(ids, matrix, strict=False), start=1):
            pipeline.hset(bucket_key("raw", "items", bucket_of(id_, BUCKETS), 2), id_, row.tobytes())
            if number % 1000 == 0:
                pipeline.execute()
        pipeline.execute()
    return round(len(ids) / (time.perf_counter() - started))


def serve(sink: RedisSink, ids: list[str], matrix: Floats) -> None:
    """Publish version 1, which the reader reads throughout."""
    sink.write(1, "items", ids, matrix)
    sink.write(1, "users", ["user-1"], matrix[:1])
    pointer = Pointer(
        version=1,
        epoch=sink.claim(),
        dim=matrix.shape[1],
        buckets=BUCKETS,
        items=len(ids),
        users=1,
        default_user=vector_bytes(matrix[0]),
        published_at="2026-01-02T03:04:05Z",
    )
    sink.flip(pointer)


def write_versions(sink: RedisSink, ids: list[str], matrix: Floats, *, rounds: int) -> list[float]:
    """Vectors a second of each of some versions, each dropped again."""
    rates = []
    for _ in range(rounds):
        started = time.perf_counter()
        sink.write(2, "items", ids, matrix)
        rates.append(len(ids) / (time.perf_counter() - started))
        sink.drop(2)
    return rates


def read_for(
    url: str, seconds: float, *, meanwhile: tuple[RedisSink, list[str], Floats] | None = None
) -> dict[str, float]:
    """A reading process's latencies in milliseconds over `seconds`, while versions are written or not."""
    ready, stop = spawn.Event(), spawn.Event()
    receive, send = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_read, args=(url, ready, stop, send))
    process.start()
    ready.wait()
    until = time.monotonic() + seconds
    if meanwhile is None:
        time.sleep(seconds)
    while time.monotonic() < until and meanwhile is not None:
        write_versions(*meanwhile, rounds=1)
    stop.set()
    latencies = np.array(receive.recv()) * 1000
    process.join()
    p50, p99 = np.percentile(latencies, [50, 99])
    return {"p50_ms": round(p50, 2), "p99_ms": round(p99, 2), "requests_per_s": round(len(latencies) / seconds)}


def _read(url: str, ready: Event, stop: Event, result: Connection) -> None:
    latencies: list[float] = []
    wanted = [f"item-{n}" for n in range(50)]
    with Reader(url) as reader:
        with reader.pinned() as view:
            view.score("user-1", wanted)
        ready.set()
        while not stop.is_set():
            started = time.perf_counter()
            with reader.pinned() as view:
                view.score("user-1", wanted)
            latencies.append(time.perf_counter() - started)
    result.send(latencies)


if __name__ == "__main__":
    typer.run(main)
