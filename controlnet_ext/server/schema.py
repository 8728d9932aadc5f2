"""The routes as an OpenAPI 3.1 document, made of the tables that requests are read by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.routing import Route

from ..sdwebui.detect import API_VERSION
from ..sdwebui.limits import RequestLimits
from .answer_schemas import RESPONSE_SCHEMAS
from .openapi import make_request_schemas

Schema = dict[str, Any]
GET_OPERATIONS = {  # path: what it gives, the answer's schema, and what the query may say
    "/controlnet/version": ("The version of this API", "Version", ()),
    "/controlnet/model_list": ("Names of control models", "ModelList", ("update",)),
    "/controlnet/module_list": ("Names of preprocessors, and their sliders", "ModuleList", ("alias_names",)),
    "/controlnet/control_types": ("Preprocessors and control models by type", "ControlTypes", ()),
    "/controlnet/settings": ("How many units a request may have", "Settings", ()),
    "/sdapi/v1/options": ("The settings that there are", "CurrentOptions", ()),
    "/sdapi/v1/progress": ("How far the request at work is", "Progress", ("skip_current_image",)),
    "/sdapi/v1/sd-models": ("The checkpoint", "Checkpoints", ()),
    "/sdapi/v1/samplers": ("Names of samplers", "Samplers", ()),
    "/sdapi/v1/schedulers": ("Names of noise schedules", "Schedulers", ()),
    "/sdapi/v1/scripts": ("Names of scripts", "Scripts", ()),
    "/health": ("That the server answers, and how many requests wait or are at work", "Health", ()),
    "/openapi.json": ("This document", "Document", ()),
}
POST_OPERATIONS = {  # path: what it does, the request's schema, the answer's
    "/controlnet/detect": ("Maps of pictures", "Detection", "Maps"),
    "/controlnet/render_openpose_json": ("Pictures of people and animals", "PosesOfPictures", "Rendered"),
    "/sdapi/v1/txt2img": ("Pictures of a text", "TextToImage", "Pictures"),
    "/sdapi/v1/img2img": ("Pictures of a text and an image", "ImageToImage", "Pictures"),
    "/sdapi/v1/options": ("Says yes to what is set, and to nothing else", "Options", "Nothing"),
    "/sdapi/v1/interrupt": ("Ends the request at work after its step", None, "Nothing"),
}
ERROR_DESCRIPTIONS = {  # of those that read a body
    401: "The request brings no valid token",
    413: "The request is too large",
    415: "The request is no application/json",
    422: "What was asked for cannot be",
    429: "Too many requests wait",
    500: "It failed on the way",
    503: "The server is stopping",
}


def make_openapi_document(
    routes: Sequence[Route], limits: RequestLimits, model_names: Sequence[str], needs_token: bool
) -> Schema:
    """All `routes`; `models` are the listed names, `guarded` says whether they need a token. KeyError for a route that
    no table has."""
    paths: Schema = {}
    for route in routes:
        for method in sorted((route.methods or set()) - {"HEAD"}):
            operation = _make_get_operation(route.path) if method == "GET" else _make_post_operation(route.path)
            if not needs_token or route.path == "/health":
                del operation["responses"]["401"]
                operation["security"] = []
            paths.setdefault(route.path, {})[method.lower()] = operation
    schemes = {name: {"type": "http", "scheme": name} for name in ("bearer", "basic")}
    found: Schema = {
        "openapi": "3.1.0",
        "info": {"title": "controlnet-ext", "version": str(API_VERSION)},
        "paths": paths,
        "components": {"schemas": {**RESPONSE_SCHEMAS, **make_request_schemas(limits, model_names)}},
    }
    if needs_token:
        found["components"]["securitySchemes"] = schemes
        found["security"] = [{name: []} for name in schemes]
    return found


def _make_get_operation(path: str) -> Schema:
    words, answer, query = GET_OPERATIONS[path]
    operation = _make_operation("get", path, words, answer, (401, 500))
    if query:
        operation["parameters"] = [
            {"name": name, "in": "query", "schema": {"type": "boolean"}, "required": False} for name in query
        ]
    return operation


def _make_post_operation(path: str) -> Schema:
    words, request, answer = POST_OPERATIONS[path]
    operation = _make_operation("post", path, words, answer, ERROR_DESCRIPTIONS if request else (401, 500))
    if request:
        content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{request}"}}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _make_operation(method: str, path: str, summary: str, response_schema: str, error_statuses: Any) -> Schema:
    name = "_".join([method, *path.strip("/").replace(".", "_").replace("-", "_").split("/")])
    answers = {"200": _make_content("As asked", response_schema)} | {
        str(status): _make_content(ERROR_DESCRIPTIONS[status], "Refusal") for status in error_statuses
    }
    return {"operationId": name, "summary": summary, "responses": answers}


def _make_content(description: str, schema_name: str) -> Schema:
    return {
        "description": description,
        "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema_name}"}}},
    }
