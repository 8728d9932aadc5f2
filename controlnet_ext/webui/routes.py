"""The routes of controlnet_ext.server on the host's own application and in its OpenAPI document, where FastAPI lists
only its own."""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ..sdwebui.detect import detect_maps
from ..sdwebui.fields import RequestLimits
from ..server.worker import RequestWorker, check_abandoned
from . import host

SCHEMA_REF = "#/components/schemas/"
SCHEMA_PREFIX = "ControlNet"  # of our schemas' names
AUTH_SCHEME = "HTTPBasic"  # FastAPI's name of the host's `--api-auth`


def merge_openapi(host_openapi: Callable[[], Any], document: Mapping[str, Any], needs_auth: bool) -> Callable[[], Any]:
    """Return a function that makes the host's OpenAPI 3.0.2 document with the paths and schemas of ours."""
    paths = _to_openapi_3_0(document["paths"])
    for operation in (each for path in paths.values() for each in path.values()):
        operation["security"] = [{AUTH_SCHEME: []}] if needs_auth else []
    schemas = {
        f"{SCHEMA_PREFIX}{name}": schema for name, schema in _to_openapi_3_0(document["components"]["schemas"]).items()
    }
    paths, schemas = (
        json.loads(json.dumps(each).replace(SCHEMA_REF, SCHEMA_REF + SCHEMA_PREFIX)) for each in (paths, schemas)
    )

    def both() -> Any:
        document = host_openapi()
        parts = document.get("components", {})
        all_schemas = {**parts.get("schemas", {}), **schemas}
        return {**document, "paths": {**document["paths"], **paths}, "components": {**parts, "schemas": all_schemas}}

    return both


def _to_openapi_3_0(value: Any) -> Any:
    """A part of an OpenAPI 3.1 document in the words of 3.0."""
    if isinstance(value, list):
        return [_to_openapi_3_0(each) for each in value]
    if not isinstance(value, dict):
        return value
    schema = {key: _to_openapi_3_0(each) for key, each in value.items()}
    if isinstance(schema.get("type"), list):
        (kind,) = (each for each in schema["type"] if each != "null")
        schema |= {"type": kind, "nullable": True}
    return schema


MAX_PENDING = 16  # requests for maps that wait at most


class HostWorker(RequestWorker):
    """A worker that runs one request for maps at a time, and none while the host generates images."""

    def run_work(self, work: Callable[[], Any]) -> Any:
        """Run a request for maps, after those of the host's own queue."""
        from modules.call_queue import queue_lock

        with queue_lock:
            return work()


def register() -> None:
    """Have the host call `mount_routes` when its application starts."""
    from modules import script_callbacks

    script_callbacks.on_app_started(mount_routes)


def mount_routes(_: Any, app: Any) -> None:
    """Add the routes if the host offers its API, behind the host's own password if it has one."""
    from modules import shared

    from ..server.openapi import make_openapi_document
    from ..server.routes import CONTROL_ROUTES, ControlContext

    if not (shared.cmd_opts.api or shared.cmd_opts.nowebui):
        return
    names = [name for name in (shared.cmd_opts.api_auth or "").split(",") if name]
    routes = CONTROL_ROUTES.create(
        ControlContext(
            host.get_model_catalog(),
            host.get_unit_count(),
            lambda value, stop_event: detect_maps(
                value, host.get_preprocessor_loader(), partial(check_abandoned, stop_event)
            ),
            HostWorker(MAX_PENDING),
        )
    )
    for each in routes:
        route = each.to_starlette()
        if names:
            route.app = PasswordMiddleware(route.app, names)
        app.router.routes.insert(0, route)
    if hasattr(app, "openapi"):
        ours = make_openapi_document(
            routes, RequestLimits(max_units=host.get_unit_count()), host.get_model_catalog().names, bool(names)
        )
        app.openapi = merge_openapi(app.openapi, ours, bool(names))


class PasswordMiddleware:
    """Middleware that passes requests with one of the host's `--api-auth` accounts, "name:password", by basic
    authentication."""

    def __init__(self, app: Any, accounts: list[str]):
        self._app, self._credentials = app, [base64.b64encode(name.encode()) for name in accounts]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        from ..server.http import error_response

        kind, _, words = dict(scope["headers"]).get(b"authorization", b"").partition(b" ")
        if kind.lower() == b"basic" and any(hmac.compare_digest(words.strip(), each) for each in self._credentials):
            await self._app(scope, receive, send)
        else:
            await error_response(401, "Incorrect username or password")(scope, receive, send)
