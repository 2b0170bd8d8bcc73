"""A daemon that is forked from a process which has imported torch already: it starts in a blink, and a test may change
something in it before it begins."""

from __future__ import annotations

import ctypes
import faulthandler
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any

from streams.embedded import EmbeddedUnavailable, free_port
from tests.daemon_process import PATIENCE_S, DaemonProcess, Place

Before = Callable[[], object]
"""Runs in the new process before the daemon; a function of a module, or a `partial` of one."""

_PR_SET_PDEATHSIG = 1

_fork = multiprocessing.get_context("forkserver")
# The last is what torch imports at the first step of an optimizer, for seconds.
_fork.set_forkserver_preload(["service.daemon", "service.cli", "torch._dynamo"])


def _nothing() -> None:
    """Nothing is changed."""


def _live(arguments: list[str], log: str, before: Before) -> None:
    ctypes.CDLL(None).prctl(
        _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0
    )  # with the fork server, which ends with the test
    with open(log, "ab", buffering=0) as file:  # noqa: PTH123 - for its descriptor
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    before()
    sys.argv = ["headwater", *arguments]
    from service.cli import main

    main()


class _Process:
    """As much of `subprocess.Popen` as `ServerProcess` uses, over a forked process."""

    def __init__(self, process: BaseProcess) -> None:
        self._process = process
        assert process.pid is not None
        self.pid = process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            raise subprocess.TimeoutExpired("headwater", timeout or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        if self._process.exitcode is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class ForkedDaemon(DaemonProcess):
    """`headwater run` on a place's configuration, forked; ends with the test's process at the latest."""

    def __init__(self, place: Place, *args: str, before: Before = _nothing) -> None:
        super().__init__(place, *args)
        self._before = before

    def start(self) -> str:
        """Returns once it accepts connections. Raises EmbeddedUnavailable if it ends before, with its last words."""
        self.launch()
        assert self._process is not None
        if not self._comes_up(self.port, self._process):
            raise EmbeddedUnavailable(f"the daemon did not start: {self._last_words()}")
        return self.address

    def launch(self) -> None:
        """Starts it and does not wait."""
        self._port = self._port or free_port()
        arguments = self.command(self._port)[3:]
        process = _fork.Process(target=_live, args=(arguments, str(self.log), self._before), daemon=True)
        process.start()
        self._process: Any = _Process(process)

    def end(self) -> int:
        """The exit code of one that ends by itself, however long its start took."""
        assert self._process is not None
        code = int(self._process.wait(PATIENCE_S))
        self._process = None
        return code
