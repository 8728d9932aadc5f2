"""The routes, and an ASGI application of them."""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Callable, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.routing import Route

from ..sdwebui.catalog import Shelf
from ..sdwebui.control_types import control_types
from ..sdwebui.detect import VERSION, module_list, render_poses, settings
from .http import answering, reading, refusal, working
from .schema import document
from .service import Desk
from .worker import Worker


def control_routes(shelf: Shelf, units: int, detection: Callable[[Any], Any], worker: Worker) -> list[Route]:
    """Those of sd-webui-controlnet; `detection` answers a request for maps."""

    def model_list(request: Request) -> dict[str, list[str]]:
        if _says(request, "update", "true"):
            shelf.rescan()
        return {"model_list": shelf.names}

    def modules(request: Request) -> dict[str, Any]:
        return module_list(_says(request, "alias_names", "false"))

    return [
        Route("/controlnet/version", answering(lambda _: {"version": VERSION})),
        Route("/controlnet/model_list", answering(model_list)),
        Route("/controlnet/module_list", answering(modules)),
        Route("/controlnet/control_types", answering(lambda _: {"control_types": control_types(shelf.names)})),
        Route("/controlnet/settings", answering(lambda _: settings(units))),
        Route("/controlnet/detect", working(detection, worker), methods=["POST"]),
        Route("/controlnet/render_openpose_json", working(render_poses, worker), methods=["POST"]),
    ]


def picture_routes(desk: Desk, worker: Worker) -> list[Route]:
    """Those of the webui that its clients need."""

    def progress(request: Request) -> dict[str, Any]:
        return desk.progress(seen=not _says(request, "skip_current_image", "false"))

    def interrupt(_: Request) -> dict[str, Any]:
        desk.engine.progress.stop.set()
        return {}

    return [
        Route("/sdapi/v1/txt2img", working(lambda value: desk.generation(value, False), worker), methods=["POST"]),
        Route("/sdapi/v1/img2img", working(lambda value: desk.generation(value, True), worker), methods=["POST"]),
        Route("/sdapi/v1/options", answering(lambda _: desk.options())),
        Route("/sdapi/v1/options", reading(desk.choose), methods=["POST"]),
        Route("/sdapi/v1/interrupt", answering(interrupt), methods=["POST"]),
        Route("/sdapi/v1/progress", answering(progress)),
        Route("/sdapi/v1/sd-models", answering(lambda _: desk.models())),
        Route("/sdapi/v1/samplers", answering(lambda _: desk.samplers())),
        Route("/sdapi/v1/schedulers", answering(lambda _: desk.schedulers())),
        Route("/sdapi/v1/scripts", answering(lambda _: desk.scripts())),
        Route("/health", answering(lambda _: {"status": "ok", "waiting": worker.waiting})),
    ]


def app(desk: Desk, worker: Worker, token: str | None, hosts: Sequence[str]) -> Starlette:
    """All routes. With a `token` every request but /health must bring it, as bearer or as
    the password of basic authentication. `hosts` are the names under which it may be asked, "*" for any: a page of
    another site whose name leads here is none of them."""
    routes = control_routes(desk.shelf, desk.limits.units, desk.detection, worker) + picture_routes(desk, worker)
    routes.append(
        Route("/openapi.json", answering(lambda _: document(routes, desk.limits, desk.shelf.names, bool(token))))
    )

    guards = [Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))]
    if token is not None:
        guards.append(Middleware(Guard, token=token))
    return Starlette(routes=routes, middleware=guards)


class Guard:
    """Lets requests pass that bring the token."""

    def __init__(self, app: Any, token: str):
        self._app, self._token = app, token.encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"] != "/health":
            brought = _brought(dict(scope["headers"]).get(b"authorization", b""))
            if not hmac.compare_digest(brought, self._token):
                await refusal(401, "the request brings no valid token")(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _brought(header: bytes) -> bytes:
    kind, _, words = header.partition(b" ")
    if kind.lower() == b"bearer":
        return words.strip()
    try:
        return base64.b64decode(words, validate=True).partition(b":")[2] if kind.lower() == b"basic" else b""
    except binascii.Error:
        return b""


def _says(request: Request, name: str, default: str) -> bool:
    return request.query_params.get(name, default).casefold() in ("true", "1")
