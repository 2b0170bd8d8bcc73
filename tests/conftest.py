"""What every test can ask for: see `tests/servers.py` for the servers."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

# One thread each: tests, servers and daemons share few cores, where torch's threads would spin for one another. Before
# torch is imported, so before everything else.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

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


@pytest.fixture(autouse=True)
def logs_as_before() -> Iterator[None]:
    """A verb called inside a test sets logging up on that test's captured stream, which threads of clients that tests
    share would go on writing to after it is closed."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


def pytest_report_header() -> str:
    return report_line()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not terminalreporter.showheader:  # As with -q, which pyproject.toml sets.
        terminalreporter.write_line(report_line())
