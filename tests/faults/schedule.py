"""The whole schedule: importing it fills the table, in the order of the page."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

from streams.embedded import find_redis_server
from tests.faults import (
    disk_faults,
    kafka_faults,
    process_faults,
    quality_faults,
    redis_faults,
    redis_topology_faults,
)
from tests.faults.stage import SCHEDULE, Fault, Outcome, Stage
from tests.servers import Broker, kafka_kinds

__all__ = ["SCHEDULE", "missing", "play"]

MODULES = (redis_faults, redis_topology_faults, kafka_faults, disk_faults, quality_faults, process_faults)
"""Each has put its faults into the schedule when it was imported; this is their order on the page."""

SCHEDULE.sort(key=lambda fault: [module.__name__ for module in MODULES].index(fault.play.__module__))


def missing(fault: Fault) -> str:
    """Why this fault cannot be played here; empty if it can."""
    if "apache" in fault.needs and "apache" not in kafka_kinds():
        return "needs Apache Kafka: set HEADWATER_TEST_KAFKA"
    if "debian" in fault.needs and find_redis_server() is None:
        return "needs a redis-server on PATH"
    if "root" in fault.needs and os.geteuid() != 0:
        return "needs root"
    return ""


def play(fault: Fault, directory: Path, broker: Broker, *, outage_s: float, restarts: int) -> Outcome:
    """One fault, on servers of its own and topics of its own on `broker`. Raises AssertionError for a bad outcome."""
    directory.mkdir(parents=True)
    with ExitStack() as stack:
        stage = Stage(
            directory,
            f"fault{SCHEDULE.index(fault)}-{os.getpid()}",
            broker.server,
            broker.producer,
            broker.kind,
            "debian" if find_redis_server() else "embedded",
            outage_s=outage_s,
            restarts=restarts,
            stack=stack,
        )
        return fault.play(stage)
