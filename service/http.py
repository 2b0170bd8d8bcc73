"""The daemon's HTTP routes: metrics, health, recommendations and the admin verbs.

It knows nothing of learning or Redis: it talks to `App`, which takes one snapshot for each request.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote

import msgspec
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.config import read_secret
from service.errors import HeadwaterError, NotReady, SecretError, UnknownId
from service.metrics import Metrics

MAX_K = 1000
NAMESPACE_HEADER = "headwater-namespace"
TRUTH = {"0": False, "false": False, "no": False, "1": True, "true": True, "yes": True, "": True}


class App(Protocol):
    """What the routes need of the daemon; a Protocol because the daemon and a checkpoint on disk both answer.

    Every method is called from a worker thread, may block, and raises `HeadwaterError`s: `UnknownId` becomes 404,
    `NotReady` 503, any other 409.
    """

    def status(self) -> dict[str, Any]:
        """Everything `headwater status` shows; JSON values."""

    def ready(self) -> tuple[bool, str]:
        """Whether readers are served, and if not, why."""

    def recommend(self, user_id: str, k: int, include_seen: bool) -> list[dict[str, Any]]:
        """Best first: `item_id`, `score`, `attributes`. A user nobody knows gets the default user's list."""

    def similar(self, item_id: str, k: int) -> list[dict[str, Any]]:
        """Nearest first: `item_id`, `score`, `attributes`, without the item itself. Raises `UnknownId`."""

    def explain(self, user_id: str, item_id: str) -> dict[str, Any]:
        """What the score of a pair is made of. Raises `UnknownId`."""

    def command(self, name: str, args: Mapping[str, Any]) -> dict[str, Any]:
        """Carry out `rollback`, `promote`, `promote-shadow`, `pause` or `resume`, and say what happened."""


class Rollback(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Body of `POST /admin/rollback`; `to` None: the champion before this one."""

    to: int | None = None
    relearn: bool = False
    dry_run: bool = False


class Promote(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Body of `POST /admin/promote`."""

    version: int
    dry_run: bool = False


class Pause(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Body of `POST /admin/pause`, `/admin/resume` and `/admin/promote-shadow`."""

    dry_run: bool = False


COMMANDS: dict[str, type[msgspec.Struct]] = {
    "rollback": Rollback,
    "promote": Promote,
    "promote-shadow": Pause,
    "pause": Pause,
    "resume": Pause,
}


class IdConvertor(Convertor[str]):
    """The rest of the path, whatever it is: ids may hold slashes, and line breaks, which `path` stops at."""

    regex = "(?s:.*)"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("id", IdConvertor())


class Json(Response):
    """JSON of plain values and NumPy scalars; NaN, which JSON cannot say, becomes null."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return msgspec.json.encode(content, enc_hook=lambda value: value.item())


def build_app(app: App, metrics: Metrics, *, namespace: str, token_file: Path | None) -> ASGIApp:
    """The ASGI application; see `docs/http.md` for its routes."""

    # These two are not left to the worker threads, which slow recommendations may all occupy.
    async def scrape(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(metrics.registry), media_type=content_type)

    async def healthz(_request: Request) -> Response:
        return PlainTextResponse("ok\n")

    def readyz(_request: Request) -> Response:
        ready, reason = app.ready()
        return Json({"ready": ready, "reason": reason}, status_code=200 if ready else 503)

    def status(_request: Request) -> Response:
        return Json(app.status())

    def recommend(request: Request) -> Response:
        include_seen = _flag(request, "include_seen")
        return Json(app.recommend(_id(request), _k(request), include_seen))

    def similar(request: Request) -> Response:
        return Json(app.similar(_id(request), _k(request)))

    def explain(request: Request) -> Response:
        return Json(app.explain(*_pair(request)))

    async def admin(request: Request) -> Response:
        await run_in_threadpool(_authorise, request, token_file)
        name = request.path_params["name"]
        if name not in COMMANDS:
            raise HTTPException(404, f"there is no admin verb {name!r}; there are {', '.join(COMMANDS)}.")
        try:
            args = msgspec.json.decode(await request.body() or b"{}", type=COMMANDS[name])
        except msgspec.DecodeError as error:
            raise HTTPException(400, f"the body of {name} is not usable: {error}.") from error
        return Json(await run_in_threadpool(app.command, name, msgspec.structs.asdict(args)))

    routes = [
        Route("/metrics", scrape),
        Route("/healthz", healthz),
        Route("/readyz", readyz),
        Route("/status", status),
        Route("/recommend/{id:id}", recommend),
        Route("/similar/{id:id}", similar),
        Route("/explain/{pair:id}", explain),
        Route("/admin/{name}", admin, methods=["POST"]),
    ]
    served = Starlette(
        routes=routes,
        exception_handlers={HTTPException: _http_error, HeadwaterError: _headwater_error, Exception: _server_error},
        middleware=[Middleware(_RightNamespace, namespace=namespace)],
    )
    # An id may end in a slash: no redirect to a path without it.
    served.router.redirect_slashes = False
    # Around everything, so that failures, which the framework answers outside of middleware, are counted too.
    return _Counted(served, metrics, {route.endpoint: route.path for route in routes})


class _Counted:
    """Counts each answer by route (its pattern, not its path: ids would be a series each) and status code."""

    def __init__(self, app: ASGIApp, metrics: Metrics, routes: Mapping[Callable[..., Any], str]) -> None:
        self.app, self.metrics, self.routes = app, metrics, routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = self.routes.get(scope.get("endpoint", _no_route), "other")
                self.metrics.http_requests.labels(route.replace(":id", ""), str(message["status"])).inc()
            await send(message)

        await self.app(scope, receive, counting)


class _RightNamespace:
    """A verb names the recommender it means; another daemon that happens to have that port must not obey it."""

    def __init__(self, app: ASGIApp, namespace: str) -> None:
        self.app, self.namespace = app, namespace

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        meant = Request(scope).headers.get(NAMESPACE_HEADER) if scope["type"] == "http" else None
        if meant is not None and meant != self.namespace:
            text = f"this daemon serves the namespace {self.namespace!r}, not {meant!r}."
            await Json({"error": text}, status_code=421)(scope, receive, send)
            return
        await self.app(scope, receive, send)


def _no_route() -> None: ...


def _id(request: Request) -> str:
    if identifier := str(request.path_params["id"]):
        return identifier
    raise HTTPException(400, "an id is missing at the end of the path.")


def _pair(request: Request) -> tuple[str, str]:
    """The two ids at the end of the path, as it was sent: a slash within an id is told from the one between them by
    its encoding."""
    path = bytes(request.scope["raw_path"]).decode("ascii", "replace")
    ids = [unquote(part) for part in path.removeprefix("/explain/").split("/")]
    if len(ids) != 2 or not all(ids):
        raise HTTPException(400, "the path must end in USER/ITEM; write a slash within an id as %2F.")
    return ids[0], ids[1]


def _k(request: Request) -> int:
    text = request.query_params.get("k", "20")
    if not (text.isascii() and text.isdigit() and len(text) <= 4 and 1 <= int(text) <= MAX_K):
        raise HTTPException(400, f"k must be a whole number from 1 to {MAX_K}, not {text!r}.")
    return int(text)


def _flag(request: Request, name: str) -> bool:
    text = request.query_params.get(name, "0").lower()
    if text not in TRUTH:
        raise HTTPException(400, f"{name} must be 0 or 1, not {text!r}.")
    return TRUTH[text]


def _authorise(request: Request, token_file: Path | None) -> None:
    """Raises 403 where no token is configured, 401 where the request does not carry it."""
    try:
        token = read_secret(token_file)
    except SecretError as error:
        raise HTTPException(403, error.message) from error
    if token is None:
        raise HTTPException(403, 'admin verbs are off: name a "token_file" in [http] and restart the daemon.')
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    # compare_digest takes the same time for a nearly right token as for a wrong one.
    right = secrets.compare_digest(given.strip().encode(), token.get_secret_value().encode())
    if scheme.lower() != "bearer" or not right:
        challenge = {"WWW-Authenticate": "Bearer"}
        raise HTTPException(401, "admin verbs need the header Authorization: Bearer TOKEN.", challenge)


async def _http_error(_request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    return Json({"error": error.detail}, status_code=error.status_code, headers=error.headers)


async def _headwater_error(_request: Request, error: Exception) -> Response:
    code = 404 if isinstance(error, UnknownId) else 503 if isinstance(error, NotReady) else 409
    return Json({"error": str(error)}, status_code=code)


async def _server_error(_request: Request, _error: Exception) -> Response:
    # Uvicorn logs the traceback; the client gets no inside view.
    return Json({"error": "the daemon failed to answer; its log says why."}, status_code=500)
