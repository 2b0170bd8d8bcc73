"""Redis is killed, frozen, full, emptied, or loses a part of what it was given."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import redis

from streams.redis_keys import bucket_key, current_key
from tests.faults.stage import PER_PHASE, Outcome, Run, Stage, fault


@contextmanager
def admin(run: Run) -> Iterator[Any]:
    """A client for doing damage."""
    with redis.Redis.from_url(run.place.redis_url) as client:
        yield client


def served(run: Run) -> int:
    """The version that the pointer names."""
    with run.place.sink() as sink:
        pointer = sink.pointer()
    assert pointer is not None
    return pointer.version


@fault("Redis", "killed, and back empty")
def killed(stage: Stage) -> Outcome:
    run = stage.serving()
    with run.fault():
        run.redis.kill()
    run.send(PER_PHASE)
    run.wait_learned()  # learning needs no Redis
    run.redis.start()
    run.lift()
    return run.recovered(
        "learned on without it; published the newest version when it was back", said="redis was behind"
    )


@fault("Redis", "killed, and back with its data")
def killed_with_data(stage: Stage) -> Outcome:
    server = stage.own_redis(appendonly="yes", appendfsync="always")
    place = stage.place(redis_url=server.address)
    place.redis = server
    run = stage.serving(place)
    with run.fault():
        server.kill()
    run.send(PER_PHASE)
    run.wait_learned()
    server.start()
    run.lift()
    return run.recovered(
        "learned on without it; published the newest version when it was back", said="redis was behind"
    )


@fault("Redis", "answers nothing (SIGSTOP)")
def frozen(stage: Stage) -> Outcome:
    run = stage.serving()
    with run.fault():
        run.redis.freeze()
    try:
        run.send(PER_PHASE)
        run.wait_learned()
        time.sleep(stage.outage_s / 4)
    finally:
        run.redis.thaw()
    run.lift()
    return run.recovered(
        "gave each call up after [redis] timeout_s; caught up", said="not published yet|redis was behind"
    )


@fault("Redis", "out of memory")
def out_of_memory(stage: Stage) -> Outcome:
    run = stage.serving()
    with admin(run) as client:
        before = served(run)
        with run.fault():
            client.config_set("maxmemory", "1mb")
        run.send(PER_PHASE)
        run.wait_learned()
        assert served(run) == before, "a version was served that Redis has no room for"
        run.daemon.wait_until("/readyz to say so", lambda: "out of memory" in str(run.daemon.get("/readyz")))
        client.config_set("maxmemory", "0")
    run.lift()
    return run.recovered("kept serving the version before; published when there was room", said="out of memory")


@fault("Redis", "evicts keys (allkeys-random)")
def evicting(stage: Stage) -> Outcome:
    run = stage.serving()
    with admin(run) as client, run.fault():
        versions = len(list((run.place.state_dir / "checkpoints").iterdir()))
        client.config_set("maxmemory-policy", "allkeys-random")
        limit = int(client.info("memory")["used_memory"])
        while client.info("stats")["evicted_keys"] < 3:
            limit -= 1_000
            client.config_set("maxmemory", str(limit))
            with suppress(redis.OutOfMemoryError):
                client.set("filler", "x")
        # For as long as it evicts, what is written pushes out something else: this must not fill the disk.
        time.sleep(stage.outage_s)
        written = len(list((run.place.state_dir / "checkpoints").iterdir())) - versions
        client.config_set("maxmemory", "0")
        client.config_set("maxmemory-policy", "noeviction")
    assert written == 0, f"{written} checkpoints were written to mend Redis"
    return run.recovered("wrote what had been evicted again, and again while it evicts", said="lost|behind")


@fault("Redis", "a bucket's key deleted by hand", quick=True)
def bucket_deleted(stage: Stage) -> Outcome:
    place = stage.place()
    # Many buckets, so that one of them is less than a hundredth of all.
    place.configure(publish={"buckets": 256})
    run = stage.serving(place)
    version = served(run)
    with admin(run) as client, run.fault():
        keys = (bucket_key(run.place.namespace, "items", bucket, version) for bucket in range(256))
        assert client.delete(next(key for key in keys if client.exists(key))) == 1
    run.wait_whole()
    assert served(run) == version, "what is lost is written again where it was"
    return run.recovered("noticed and wrote the lost vectors again, under the same version", said="redis")


@fault("Redis", "the pointer deleted by hand")
def pointer_deleted(stage: Stage) -> Outcome:
    run = stage.serving()
    version = served(run)
    with admin(run) as client, run.fault():
        assert client.delete(current_key(run.place.namespace)) == 1
    run.wait_whole()
    assert served(run) == version
    return run.recovered("noticed and set the pointer again", said="redis")


@fault("Redis", "emptied (FLUSHALL)")
def emptied(stage: Stage) -> Outcome:
    run = stage.serving()
    with admin(run) as client, run.fault():
        client.flushall()
    return run.recovered("noticed and published the version again", said="redis was behind")


@fault("Redis", "became a read-only replica for a while")
def read_only(stage: Stage) -> Outcome:
    run = stage.serving()
    with admin(run) as client:
        with run.fault():
            client.replicaof("127.0.0.1", "1")
        run.send(PER_PHASE)
        run.wait_learned()
        client.replicaof("NO", "ONE")
    run.lift()
    return run.recovered("said so, learned on, published when it took writes again", said="replica")
