"""The OpenAPI 3.1 document, made from the routes and the declared fields of their requests.

`python -m controlnet_ext.server.openapi` prints the document of a server with the default limits, for documentation.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ..sdwebui.detect import API_VERSION
from ..sdwebui.fields import JsonObject, RequestLimits, Schema
from ..sdwebui.units import UnitFields
from .http import MAX_BODY_BYTES
from .route_table import ApiRoute, NamedSchema
from .routes import CONTROL_ROUTES, SERVER_ROUTES, ControlContext, ServerContext, create_document_route

IMAGE_SCHEMA = NamedSchema(
    "Image",
    {
        "type": "string",
        "format": "byte",
        "maxLength": MAX_BODY_BYTES,
        "description": "An image in base64, plain or as a data URL; no path, and no address",
    },
)
ERROR_SCHEMA = NamedSchema(
    "Error",
    {
        "type": "object",
        "properties": {"detail": {"type": "string", "maxLength": 500, "description": "One sentence"}},
        "required": ["detail"],
    },
)
ERROR_DESCRIPTIONS = {
    401: "The request has no valid token",
    403: "The request comes from a page of another site",
    408: "The request came too slowly",
    413: "The request is too large",
    415: "The request is not application/json",
    422: "The request asks for something impossible",
    429: "Too many requests wait",
    500: "The work failed",
    503: "The server is stopping, or the memory for requests is full",
}


def make_openapi_document(
    routes: Sequence[ApiRoute], limits: RequestLimits, model_names: Sequence[str], needs_token: bool
) -> Schema:
    """Return the document of `routes`; `model_names` are the listed control models, `needs_token` whether requests need
    a token."""
    paths: Schema = {}
    for route in routes:
        operation = _make_operation(route)
        if not needs_token or route.is_open:
            del operation["responses"]["401"]
            operation["security"] = []
        paths.setdefault(route.path, {})[route.method.lower()] = operation
    document: Schema = {
        "openapi": "3.1.0",
        "info": {"title": "controlnet-ext", "version": str(API_VERSION)},
        "paths": paths,
        "components": {"schemas": _collect_schemas(routes, limits, model_names)},
    }
    if needs_token:
        schemes = {name: {"type": "http", "scheme": name} for name in ("bearer", "basic")}
        document["components"]["securitySchemes"] = schemes
        document["security"] = [{name: []} for name in schemes]
    return document


def _make_operation(route: ApiRoute) -> Schema:
    name = "_".join(route.path.strip("/").replace(".", "_").replace("-", "_").split("/"))
    statuses = tuple(ERROR_DESCRIPTIONS) if route.request else (401, 500) if route.method == "GET" else (401, 403, 500)
    operation: Schema = {
        "operationId": f"{route.method.lower()}_{name}",
        "summary": route.summary,
        "responses": {"200": _make_content(route.summary, route.response.name)}
        | {str(status): _make_content(ERROR_DESCRIPTIONS[status], ERROR_SCHEMA.name) for status in statuses},
    }
    if route.query_flags:
        operation["parameters"] = [
            {"name": flag, "in": "query", "schema": {"type": "boolean"}, "required": False}
            for flag in route.query_flags
        ]
    if route.request:
        content = {"application/json": {"schema": _make_ref(_get_schema_name(route.request))}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _make_content(description: str, schema_name: str) -> Schema:
    return {"description": description, "content": {"application/json": {"schema": _make_ref(schema_name)}}}


def _make_ref(schema_name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{schema_name}"}


def _get_schema_name(request: type[JsonObject] | NamedSchema) -> str:
    return request.name if isinstance(request, NamedSchema) else request.schema_name


def _collect_schemas(
    routes: Sequence[ApiRoute], limits: RequestLimits, model_names: Sequence[str]
) -> dict[str, Schema]:
    """Return the schemas of the routes by name, and those that these refer to."""
    schemas: dict[str, Schema] = {ERROR_SCHEMA.name: ERROR_SCHEMA.schema}
    for route in routes:
        for each in (route.response, route.request):
            if isinstance(each, NamedSchema):
                schemas[each.name] = each.schema
            elif each is not None:
                schemas[each.schema_name] = each.make_schema(limits, model_names)
    text = json.dumps(schemas)
    for name, schema in (
        (UnitFields.schema_name, UnitFields.make_schema(limits, model_names)),
        (IMAGE_SCHEMA.name, IMAGE_SCHEMA.schema),
    ):
        if f'/{name}"' in text:
            schemas[name] = schema
    return schemas


def make_default_document() -> Schema:
    """Return the document of a server with the default limits, a token, and the embedded control models."""
    endpoint: Any = None  # no answer is called
    limits = RequestLimits()
    routes = [
        *CONTROL_ROUTES.create(ControlContext(endpoint, limits.max_units, endpoint, endpoint)),
        *SERVER_ROUTES.create(ServerContext(endpoint, endpoint)),
        create_document_route(endpoint),
    ]
    return make_openapi_document(routes, limits, ("embedded/canny",), True)


if __name__ == "__main__":
    print(json.dumps(make_default_document(), indent=1))
