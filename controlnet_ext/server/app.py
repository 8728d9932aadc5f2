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

from ..sdwebui.catalog import ModelCatalog
from ..sdwebui.control_types import list_control_types
from ..sdwebui.detect import API_VERSION, describe_settings, list_modules, render_poses
from .http import error_response, get_endpoint, json_endpoint, queued_endpoint
from .schema import make_openapi_document
from .service import Service
from .worker import RequestWorker


def create_control_routes(
    catalog: ModelCatalog, max_units: int, detect_maps: Callable[[Any], Any], worker: RequestWorker
) -> list[Route]:
    """Those of sd-webui-controlnet; `detection` answers a request for maps."""

    def model_list(request: Request) -> dict[str, list[str]]:
        if _query_flag(request, "update", "true"):
            catalog.rescan()
        return {"model_list": catalog.names}

    def modules(request: Request) -> dict[str, Any]:
        return list_modules(_query_flag(request, "alias_names", "false"))

    return [
        Route("/controlnet/version", get_endpoint(lambda _: {"version": API_VERSION})),
        Route("/controlnet/model_list", get_endpoint(model_list)),
        Route("/controlnet/module_list", get_endpoint(modules)),
        Route(
            "/controlnet/control_types", get_endpoint(lambda _: {"control_types": list_control_types(catalog.names)})
        ),
        Route("/controlnet/settings", get_endpoint(lambda _: describe_settings(max_units))),
        Route("/controlnet/detect", queued_endpoint(detect_maps, worker), methods=["POST"]),
        Route("/controlnet/render_openpose_json", queued_endpoint(render_poses, worker), methods=["POST"]),
    ]


def create_generation_routes(service: Service, worker: RequestWorker) -> list[Route]:
    """Those of the webui that its clients need."""

    def progress(request: Request) -> dict[str, Any]:
        return service.get_progress(with_preview=not _query_flag(request, "skip_current_image", "false"))

    def interrupt(_: Request) -> dict[str, Any]:
        service.engine.progress.stop_requested.set()
        return {}

    return [
        Route(
            "/sdapi/v1/txt2img", queued_endpoint(lambda value: service.generate(value, False), worker), methods=["POST"]
        ),
        Route(
            "/sdapi/v1/img2img", queued_endpoint(lambda value: service.generate(value, True), worker), methods=["POST"]
        ),
        Route("/sdapi/v1/options", get_endpoint(lambda _: service.get_options())),
        Route("/sdapi/v1/options", json_endpoint(service.set_options), methods=["POST"]),
        Route("/sdapi/v1/interrupt", get_endpoint(interrupt), methods=["POST"]),
        Route("/sdapi/v1/progress", get_endpoint(progress)),
        Route("/sdapi/v1/sd-models", get_endpoint(lambda _: service.list_checkpoints())),
        Route("/sdapi/v1/samplers", get_endpoint(lambda _: service.list_samplers())),
        Route("/sdapi/v1/schedulers", get_endpoint(lambda _: service.list_schedulers())),
        Route("/sdapi/v1/scripts", get_endpoint(lambda _: service.list_scripts())),
        Route("/health", get_endpoint(lambda _: {"status": "ok", "waiting": worker.pending_count})),
    ]


def create_app(service: Service, worker: RequestWorker, token: str | None, allowed_hosts: Sequence[str]) -> Starlette:
    """All routes. With a `token` every request but /health must bring it, as bearer or as
    the password of basic authentication. `hosts` are the names under which it may be asked, "*" for any: a page of
    another site whose name leads here is none of them."""
    routes = create_control_routes(
        service.catalog, service.limits.max_units, service.detect_maps, worker
    ) + create_generation_routes(service, worker)
    routes.append(
        Route(
            "/openapi.json",
            get_endpoint(lambda _: make_openapi_document(routes, service.limits, service.catalog.names, bool(token))),
        )
    )

    guards = [Middleware(TrustedHostMiddleware, allowed_hosts=list(allowed_hosts))]
    if token is not None:
        guards.append(Middleware(TokenMiddleware, token=token))
    return Starlette(routes=routes, middleware=guards)


class TokenMiddleware:
    """Lets requests pass that bring the token."""

    def __init__(self, app: Any, token: str):
        self._app, self._token = app, token.encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"] != "/health":
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


def _query_flag(request: Request, name: str, default: str) -> bool:
    return request.query_params.get(name, default).casefold() in ("true", "1")
