"""Redis through Sentinel with a failover, and in a Cluster that loses a node."""

from __future__ import annotations

from typing import Any

import redis

from tests.daemon_process import Place
from tests.faults.stage import PER_PHASE, Outcome, Stage, fault
from tests.redis_topologies import RedisSentinel, three_primaries, until


@fault("Redis", "primary killed, Sentinel fails over", needs="debian")
def failover(stage: Stage) -> Outcome:
    primary = stage.own_redis("primary")
    replica = stage.own_redis("replica", replicaof=f"127.0.0.1 {primary.port}", repl_diskless_sync_delay="0")
    copy: Any = stage.stack.enter_context(redis.Redis.from_url(replica.address))
    until(lambda: copy.info("replication")["master_link_status"] == "up")
    sentinel = stage.stack.enter_context(RedisSentinel(directory=stage.directory / "sentinel", primary=primary))
    watch: Any = stage.stack.enter_context(redis.Redis.from_url(f"redis://{sentinel.address}"))
    until(lambda: len(watch.execute_command("SENTINEL", "REPLICAS", "mymaster")) == 1)
    run = stage.serving(stage.place(redis_url=f"redis+sentinel://{sentinel.address}/mymaster/0"))
    with run.fault():
        primary.kill()
    run.send(PER_PHASE)
    return run.recovered("followed to the new primary, with what its copy lacked", said="redis|published")


@fault("Redis", "one of three Cluster nodes killed, and back empty", needs="debian")
def cluster_node(stage: Stage) -> Outcome:
    nodes = stage.stack.enter_context(three_primaries(stage.redis_kind, stage.directory))
    place: Place = stage.place(redis_url=f"redis+cluster://127.0.0.1:{nodes[0].port}")
    run = stage.serving(place)
    with run.fault():
        nodes[1].kill()
    run.send(PER_PHASE)
    run.wait_learned()
    nodes[1].start()
    run.lift()
    return run.recovered("learned on; wrote again what the node had held", said="redis was behind")
