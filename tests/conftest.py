"""What every test can ask for: see `tests/servers.py` for the servers."""

from __future__ import annotations

from tests import quiet_imports
from tests.servers import brokers, kafka, namespace, own_kafka, own_redis, prometheus, promtool, redis_url, report_line

__all__ = [
    "brokers",
    "kafka",
    "namespace",
    "own_kafka",
    "own_redis",
    "prometheus",
    "promtool",
    "quiet_imports",
    "redis_url",
]


def pytest_report_header() -> str:
    return report_line()
