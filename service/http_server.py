"""Runs the HTTP application in a thread with its own event loop, beside intake and learning."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from pathlib import Path

import msgspec
import structlog
import uvicorn
from starlette.types import ASGIApp

from service.config import HttpConfig
from service.errors import ConfigError

log = structlog.get_logger(__name__)

SHUTDOWN_S = 5


class HttpServer:
    """Serves an ASGI application from its own thread. Use as a context manager, or `start` and `stop`."""

    def __init__(self, app: ASGIApp, config: HttpConfig, *, address_file: Path | None = None) -> None:
        """`address_file` is written once listening and removed on `stop`, for verbs that look for the daemon."""
        self._app, self._config, self._address_file = app, config, address_file
        self._socket: socket.socket | None = None
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Host and port really listened on. Raises `RuntimeError` before `start`."""
        if self._socket is None:
            raise RuntimeError("the HTTP server is not started")
        host, port = self._socket.getsockname()[:2]
        return host, port

    def start(self) -> None:
        """Bind, then serve in a thread; requests are accepted on return. Raises `ConfigError` if the port is taken."""
        host, port = self._config.host, self._config.port
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        # Bound here and not by uvicorn, so that a taken port is an error of the caller and port 0 has its number.
        try:
            self._socket = socket.create_server((host, port), family=family, backlog=512)
        except OSError as error:
            message = f"the HTTP server cannot listen on {host}:{port}: {error.strerror or error}."
            hint = 'Choose another "host" or "port" in [http]; port 0 takes a free one.'
            raise ConfigError(message, hint=hint) from error
        config = uvicorn.Config(
            self._app,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=SHUTDOWN_S,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="http", daemon=True
        )
        self._thread.start()
        if self._address_file is not None:
            temporary = self._address_file.with_suffix(".tmp")
            try:
                temporary.touch(mode=0o644)
                temporary.chmod(0o644)  # whatever the umask is: verbs believe it, so nobody else may write it
                temporary.write_bytes(msgspec.json.encode({"host": host, "port": self.address[1], "pid": os.getpid()}))
                temporary.replace(self._address_file)
            except OSError as error:  # it only helps verbs to find us
                log.warning("verbs will not find this daemon", error=str(error))

    def stop(self) -> None:
        """Finish the requests in hand (at most a few seconds) and close; again is harmless."""
        if self._server is None or self._thread is None or self._socket is None:
            return
        if self._address_file is not None:
            with contextlib.suppress(OSError):
                self._address_file.unlink(missing_ok=True)
        self._server.should_exit = True
        self._thread.join(timeout=2 * SHUTDOWN_S)
        self._socket.close()
        self._server = None

    def __enter__(self) -> HttpServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
