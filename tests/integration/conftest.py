"""What tests of whole daemons can ask for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.daemon_process import DaemonProcess, Place


@pytest.fixture
def start() -> Iterator[Callable[..., DaemonProcess]]:
    """Starts daemons, none of which outlives the test."""
    with ExitStack() as running:

        def run(place: Place, *args: str) -> DaemonProcess:
            daemon = DaemonProcess(place, *args)
            running.callback(daemon.kill)
            daemon.start()
            return daemon

        yield run
