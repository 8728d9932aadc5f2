"""The routes of controlnet_ext.server on the host's own application."""

from __future__ import annotations

import base64
import hmac
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from ..sdwebui.detect import detect
from ..sdwebui.limits import Limits
from ..server.worker import Worker
from . import host, settings
from .description import described

WAITING = 16  # requests for maps that wait at most


class HostWorker(Worker):
    """One request for maps at a time, and none while the host makes pictures."""

    def submit(self, work: Callable[[], Any]) -> Future[Any]:
        from modules.call_queue import queue_lock

        def locked() -> Any:
            with queue_lock:
                return work()

        return super().submit(locked)


def register() -> None:
    """Have the host call `mount`."""
    from modules import script_callbacks

    script_callbacks.on_app_started(mount)


def mount(_: Any, app: Any) -> None:
    """Add the routes, where the host offers its API, behind the host's own password where it has one."""
    from modules import shared

    from ..server.app import control_routes
    from ..server.schema import document

    if not (shared.cmd_opts.api or shared.cmd_opts.nowebui):
        return
    names = [name for name in (shared.cmd_opts.api_auth or "").split(",") if name]
    routes = control_routes(
        host.shelf(), settings.units(), lambda value: detect(value, host.ready()), HostWorker(WAITING)
    )
    for route in routes:
        if names:
            route.app = Password(route.app, names)
        app.router.routes.insert(0, route)
    if hasattr(app, "openapi"):
        ours = document(routes, Limits(units=settings.units()), host.shelf().names, bool(names))
        app.openapi = described(app.openapi, ours, bool(names))


class Password:
    """Lets requests pass that bring one of the host's `--api-auth`, "name:password", by basic authentication."""

    def __init__(self, app: Any, names: list[str]):
        self._app, self._words = app, [base64.b64encode(name.encode()) for name in names]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        from ..server.http import refusal

        kind, _, brought = dict(scope["headers"]).get(b"authorization", b"").partition(b" ")
        if kind.lower() == b"basic" and any(hmac.compare_digest(brought.strip(), word) for word in self._words):
            await self._app(scope, receive, send)
        else:
            await refusal(401, "Incorrect username or password")(scope, receive, send)
