"""The ASGI application of the routes, behind a token and for given host names only, with a line in the log for each
request."""

from __future__ import annotations

import base64
import binascii
import hmac
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import suggest_names
from ..sdwebui.fields import Schema
from .http import error_response
from .openapi import make_openapi_document
from .page import create_page_routes
from .route_table import ApiRoute
from .routes import CONTROL_ROUTES, SERVER_ROUTES, ControlContext, ServerContext, create_document_route
from .service import Service
from .worker import RequestWorker

MAX_LOGGED_PATH = 200  # characters
PORT_SUFFIX = re.compile(r":\d*\Z")


def create_app(
    service: Service,
    worker: RequestWorker,
    token: str | None,
    allowed_hosts: Sequence[str],
    report: Callable[[str], object] | None = None,
) -> Starlette:
    """Return the ASGI application of all routes.

    With a `token` every request but those of open routes must bring it, as bearer or as the password of basic
    authentication. `allowed_hosts` are the names in the Host header that are served, "*" for any, so that a page of
    another site cannot reach the server under a name of its own. `report` is called with a line for each request.
    """
    routes = create_routes(service, worker, bool(token))
    middleware = [] if report is None else [Middleware(RequestLogMiddleware, report=report)]
    middleware.append(Middleware(HostMiddleware, allowed_hosts=allowed_hosts))
    if token is not None:
        open_paths = frozenset(route.path for route in routes if route.is_open)
        middleware.append(Middleware(TokenMiddleware, token=token, open_paths=open_paths))
    return Starlette(
        routes=[
            *(route.to_starlette() for route in routes),
            *create_page_routes(routes, lambda: service.engine.checkpoint_name),
        ],
        middleware=middleware,
        exception_handlers={HTTPException: _answer_http_exception, Exception: _answer_exception},
    )


def create_routes(service: Service, worker: RequestWorker, needs_token: bool) -> list[ApiRoute]:
    """Return the routes of the server, with that of the OpenAPI document of all of them."""

    def make_document() -> Schema:
        return make_openapi_document(routes, service.limits, service.catalog.names, needs_token)

    routes = [
        *CONTROL_ROUTES.create(ControlContext(service.catalog, service.limits.max_units, service.detect_maps, worker)),
        *SERVER_ROUTES.create(ServerContext(service, worker)),
        create_document_route(make_document),
    ]
    return routes


def _answer_http_exception(request: Request, error: Exception) -> Response:
    """Answer a path or a method that no route has."""
    if not isinstance(error, HTTPException):
        raise error
    what = f"{request.method} {request.url.path!r:.200}"
    if error.status_code == 404:
        paths = [route.path for route in request.app.routes]
        response = error_response(404, suggest_names(f"this server has no {what}", request.url.path, paths))
    else:
        response = error_response(error.status_code, f"{what}: {error.detail}")
    response.headers.update(error.headers or {})
    return response


def _answer_exception(_: Request, error: Exception) -> Response:
    """Answer a fault of the server's own; starlette raises it again, for the log."""
    return error_response(500, f"{type(error).__name__}: {error}")


class RequestLogMiddleware:
    """Call `report` with a line for each request: method, path, status and milliseconds. The path stands as it came,
    percent-encoded, without the query."""

    def __init__(self, app: ASGIApp, report: Callable[[str], object]):
        self._app, self._report = app, report

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 500

        async def note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, note_status)
        finally:
            path = (scope.get("raw_path") or quote(scope["path"]).encode()).decode("ascii", "backslashreplace")
            with suppress(OSError, ValueError):  # stderr was closed: the requests of others go on
                milliseconds = (time.monotonic() - began) * 1000
                self._report(f"{scope['method']} {path:.{MAX_LOGGED_PATH}} {status} {milliseconds:.0f} ms")


class HostMiddleware:
    """Pass on requests to the given host names, "*" for any; answer others with status 400."""

    def __init__(self, app: ASGIApp, allowed_hosts: Sequence[str]):
        self._app, self._allowed_hosts = app, frozenset(allowed_hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        host = dict(scope.get("headers", ())).get(b"host", b"").decode("latin-1")
        name = PORT_SUFFIX.sub("", host).casefold()
        if scope["type"] == "http" and not self._allowed_hosts & {name, "*"}:
            names = ", ".join(sorted(self._allowed_hosts))
            message = f"this server does not answer to the host name {name!r:.80}, only to: {names}"
            await error_response(400, message)(scope, receive, send)
            return
        await self._app(scope, receive, send)


class TokenMiddleware:
    """Pass on requests with the token, and those to open paths; answer others with status 401."""

    def __init__(self, app: ASGIApp, token: str, open_paths: frozenset[str]):
        self._app, self._token, self._open_paths = app, token.encode(), open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in self._open_paths:
            token = _extract_token(dict(scope["headers"]).get(b"authorization", b""))
            if not hmac.compare_digest(token, self._token):
                await error_response(401, "the request brings no valid token")(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _extract_token(header: bytes) -> bytes:
    kind, _, words = header.partition(b" ")
    if kind.lower() == b"bearer":
        return words.strip()
    try:
        return base64.b64decode(words, validate=True).partition(b":")[2] if kind.lower() == b"basic" else b""
    except binascii.Error:
        return b""
