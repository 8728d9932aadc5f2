"""The ASGI application of the routes, behind a token and for given host names only."""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from ..sdwebui.fields import Schema
from .http import error_response
from .openapi import make_openapi_document
from .routes import CONTROL_ROUTES, SERVER_ROUTES, ApiRoute, ControlContext, ServerContext, create_document_route
from .service import Service
from .worker import RequestWorker


def create_app(service: Service, worker: RequestWorker, token: str | None, allowed_hosts: Sequence[str]) -> Starlette:
    """Return the ASGI application of all routes.

    With a `token` every request but those of open routes must bring it, as bearer or as the password of basic
    authentication. `allowed_hosts` are the names in the Host header that are served, "*" for any, so that a page of
    another site cannot reach the server under a name of its own.
    """
    routes = create_routes(service, worker, bool(token))
    middleware = [Middleware(TrustedHostMiddleware, allowed_hosts=list(allowed_hosts))]
    if token is not None:
        open_paths = frozenset(route.path for route in routes if route.is_open)
        middleware.append(Middleware(TokenMiddleware, token=token, open_paths=open_paths))
    return Starlette(routes=[route.to_starlette() for route in routes], middleware=middleware)


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


class TokenMiddleware:
    """Pass on requests with the token, and those to open paths; answer others with status 401."""

    def __init__(self, app: Any, token: str, open_paths: frozenset[str]):
        self._app, self._token, self._open_paths = app, token.encode(), open_paths

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"] not in self._open_paths:
            brought = _extract_token(dict(scope["headers"]).get(b"authorization", b""))
            if not hmac.compare_digest(brought, self._token):
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
