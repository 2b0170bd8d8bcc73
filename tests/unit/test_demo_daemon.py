"""What the demo says when its daemon ends: the last thing it said, and how it ended."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from service.demo_daemon import DemoDaemon
from service.errors import NotRunning
from streams.embedded import EmbeddedUnavailable

SAYS = '{"timestamp": "2026-11-30T00:00:00Z", "level": "error", "event": "Kafka is away", "error": "refused"}'


class Speaking(DemoDaemon):
    """Says something on its standard output, then serves, ends or is killed."""

    says = SAYS
    then = "raise SystemExit(3)"

    def command(self, port: int) -> list[str]:
        return [sys.executable, "-c", f"print({self.says!r}, flush=True)\nport = {port}\n{self.then}"]


def speaking(directory: Path) -> Speaking:
    return Speaking(directory=directory, config=directory / "headwater.toml", write_config=lambda _: None)


def test_one_that_does_not_start_is_quoted_without_its_log_format(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedUnavailable, match=r"says: Kafka is away: refused$"):
        speaking(tmp_path).start()


def test_what_is_no_line_of_ours_is_quoted_as_it_is(tmp_path: Path) -> None:
    daemon = speaking(tmp_path)
    daemon.says = f"{SAYS}\nTraceback: out of memory"
    with pytest.raises(EmbeddedUnavailable, match=r"(?s)refused.*Traceback: out of memory$"):
        daemon.start()


def test_one_that_is_killed_is_said_to_have_been(tmp_path: Path) -> None:
    daemon = speaking(tmp_path)
    daemon.then = "import socket, time\ns = socket.create_server(('127.0.0.1', port))\ntime.sleep(60)"
    daemon.start()
    try:
        assert daemon.ended == ""
        daemon.check()
        assert daemon.pid is not None
        os.kill(daemon.pid, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while daemon.running and time.monotonic() < deadline:
            time.sleep(0.01)
        with pytest.raises(NotRunning, match="ended by SIGKILL before") as raised:
            daemon.check()
        assert str(raised.value.hint).endswith("says: Kafka is away: refused")
    finally:
        daemon.stop()
