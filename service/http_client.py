"""How verbs reach a running daemon: finds its address, names the namespace it means, turns answers into errors."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode

import msgspec

from service.config import Config, read_secret
from service.errors import CommandRefused, ConfigError, HeadwaterError, NotReady, NotRunning, UnknownId

ADDRESS_FILE = "http.json"
ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}


class DaemonClient:
    """One daemon's HTTP. Every method raises `NotRunning` where no daemon of this namespace answers."""

    def __init__(self, config: Config, *, timeout_s: float = 30.0) -> None:
        """`timeout_s` is for one answer; admin verbs, which may publish a version, wait ten times as long."""
        self._config, self._timeout_s = config, timeout_s
        # The daemon is on this host or named in the config: a proxy in the environment is for the web.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    @property
    def address(self) -> str:
        """`http://host:port`, from the running daemon's address file, else from the config."""
        host, port = self._config.http.host, self._config.http.port
        try:
            written = msgspec.json.decode((self._config.state_dir / ADDRESS_FILE).read_bytes())
            host, port = str(written["host"]), int(written["port"])
        except (OSError, msgspec.DecodeError, KeyError, TypeError, ValueError):
            pass  # Not running here, or its file is torn: the config's address decides.
        host = ANYWHERE.get(host, host)
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def status(self) -> dict[str, Any]:
        """`GET /status`."""
        answer: dict[str, Any] = self._ask("/status")
        return answer

    def recommend(self, user_id: str, k: int, include_seen: bool) -> list[dict[str, Any]]:
        """`GET /recommend/USER`."""
        query = urlencode({"k": k, "include_seen": int(include_seen)})
        answer: list[dict[str, Any]] = self._ask(f"/recommend/{quote(user_id, safe='')}?{query}")
        return answer

    def similar(self, item_id: str, k: int) -> list[dict[str, Any]]:
        """`GET /similar/ITEM`. Raises `UnknownId`."""
        answer: list[dict[str, Any]] = self._ask(f"/similar/{quote(item_id, safe='')}?{urlencode({'k': k})}")
        return answer

    def explain(self, user_id: str, item_id: str) -> dict[str, Any]:
        """`GET /explain/USER/ITEM`. Raises `UnknownId`."""
        pair = f"{quote(user_id, safe='')}/{quote(item_id, safe='')}"
        answer: dict[str, Any] = self._ask(f"/explain/{pair}")
        return answer

    def command(self, name: str, args: Mapping[str, Any]) -> dict[str, Any]:
        """`POST /admin/NAME` with the configured token. Raises `CommandRefused` with the daemon's reason."""
        answer: dict[str, Any] = self._ask(f"/admin/{name}", body=msgspec.json.encode(dict(args)))
        return answer

    def _ask(self, path: str, body: bytes | None = None) -> Any:
        headers = {"Headwater-Namespace": self._config.namespace}
        timeout_s = self._timeout_s
        if body is not None:
            timeout_s *= 10
            headers["Content-Type"] = "application/json"
            if token := read_secret(self._config.http.token_file):
                headers["Authorization"] = f"Bearer {token.get_secret_value()}"
        request = urllib.request.Request(self.address + path, data=body, headers=headers)
        try:
            with self._opener.open(request, timeout=timeout_s) as response:
                return msgspec.json.decode(response.read())
        except urllib.error.HTTPError as error:
            with error:
                raise self._refusal(error.code, error.read()) from error
        except TimeoutError as error:
            hint = "Look at its log and GET /healthz."
            raise NotReady(f"the daemon at {self.address} did not answer in {timeout_s:g} s.", hint=hint) from error
        except (OSError, msgspec.DecodeError) as error:
            raise self._not_running() from error

    def _refusal(self, code: int, body: bytes) -> HeadwaterError:
        try:
            reason = str(msgspec.json.decode(body)["error"])
        except (msgspec.DecodeError, KeyError, TypeError):
            return self._not_running()  # Some other program has that port.
        match code:
            case 404:
                return UnknownId(reason)
            case 421:
                return self._not_running()
            case 503:
                return NotReady(reason)
            case 401 | 403:
                return ConfigError(reason, hint='Name the daemon\'s "token_file" in [http].')
            case _:
                return CommandRefused(reason)

    def _not_running(self) -> NotRunning:
        message = f"no daemon of the namespace {self._config.namespace!r} answers at {self.address}."
        return NotRunning(message, hint="Start it with: headwater run -c FILE.")
