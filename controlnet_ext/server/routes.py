"""The routes: each with its path, its answer, and the schemas of its request and its response.

Adding a route means adding an `ApiRoute` here; the application and the OpenAPI document follow from it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from starlette.requests import Request
from starlette.routing import Route

from ..sdwebui.catalog import ModelCatalog
from ..sdwebui.control_types import list_control_types
from ..sdwebui.detect import (
    API_VERSION,
    MAX_REQUEST_IMAGES,
    DetectFields,
    describe_settings,
    list_modules,
    render_poses,
)
from ..sdwebui.fields import JsonObject, Schema
from ..sdwebui.requests import ImageToImageFields, TextToImageFields
from .http import Endpoint, get_endpoint, json_endpoint, queued_endpoint
from .service import Service
from .worker import RequestWorker


@dataclass(frozen=True)
class NamedSchema:
    """A JSON schema with its name among the components of an OpenAPI document."""

    name: str
    schema: Schema


@dataclass(frozen=True)
class ApiRoute:
    """A route with its description: `request` is the table or schema of the body, None where no body is read;
    `query_flags` are booleans in the query; `is_open` routes need no token."""

    method: Literal["GET", "POST"]
    path: str
    summary: str
    endpoint: Endpoint
    response: NamedSchema
    request: type[JsonObject] | NamedSchema | None = None
    query_flags: tuple[str, ...] = ()
    is_open: bool = False

    def to_starlette(self) -> Route:
        """Return the route as starlette has it."""
        return Route(self.path, self.endpoint, methods=[self.method])


# Parts of the schemas


def make_object_schema(properties: Schema, *optional: str) -> Schema:
    """Return the schema of an object with these properties, all but the optional ones required."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, **({"required": required} if required else {})}


def _make_list_schema(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _make_nullable_schema(kind: str) -> Schema:
    return {"type": [kind, "null"]}


TEXT: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}
NUMBER: Schema = {"type": "number"}
BOOLEAN: Schema = {"type": "boolean"}
NAMES = _make_list_schema(TEXT)
IMAGES = _make_list_schema({"type": "string", "format": "byte", "description": "A PNG in base64"})
SLIDER = make_object_schema({"name": TEXT, "value": NUMBER, "min": NUMBER, "max": NUMBER, "step": NUMBER})
MODULE = make_object_schema({"model_free": BOOLEAN, "sliders": _make_list_schema(SLIDER)})
CONTROL_TYPE = make_object_schema(
    {"module_list": NAMES, "model_list": NAMES, "default_option": TEXT, "default_model": TEXT}
)
JOB_STATE = make_object_schema(
    {
        **dict.fromkeys(("skipped", "interrupted"), BOOLEAN),
        "job": TEXT,
        **dict.fromkeys(("job_count", "job_no", "sampling_step", "sampling_steps"), COUNT),
    }
)
POINTS: Schema = {"type": ["array", "null"], "items": NUMBER, "maxItems": 3 * 70}
KEYPOINT_FIELDS = tuple(f"{part}_keypoints_2d" for part in ("pose", "face", "hand_left", "hand_right"))
PERSON = make_object_schema(dict.fromkeys(KEYPOINT_FIELDS, POINTS), *KEYPOINT_FIELDS)
POSES = NamedSchema(
    "PosesOfImages",
    {
        "type": "array",
        "maxItems": MAX_REQUEST_IMAGES,
        "items": make_object_schema(
            {
                "people": _make_list_schema(PERSON),
                "animals": _make_list_schema(POINTS),
                "canvas_width": {"type": "integer", "minimum": 1},
                "canvas_height": {"type": "integer", "minimum": 1},
            },
            "people",
            "animals",
        ),
    },
)
OPTIONS = NamedSchema(
    "Options", make_object_schema({"sd_model_checkpoint": {**TEXT, "maxLength": 300}}, "sd_model_checkpoint")
)
GENERATED = NamedSchema(
    "GeneratedImages",
    make_object_schema(
        {
            "images": IMAGES,
            "parameters": {"type": "object"},
            "info": {**TEXT, "description": "JSON: seeds, sizes, and the text that each PNG holds"},
        }
    ),
)
NOTHING = NamedSchema("Nothing", _make_nullable_schema("object"))


def create_control_routes(
    catalog: ModelCatalog, max_units: int, detect_maps: Callable[[Any], Any], worker: RequestWorker
) -> list[ApiRoute]:
    """Return the routes of sd-webui-controlnet; `detect_maps` answers a request for maps, called by `worker`."""

    def list_models(request: Request) -> dict[str, list[str]]:
        if _read_flag(request, "update", "true"):
            catalog.rescan()
        return {"model_list": catalog.names}

    return [
        ApiRoute(
            "GET",
            "/controlnet/version",
            "The version of this API",
            get_endpoint(lambda _: {"version": API_VERSION}),
            NamedSchema("Version", make_object_schema({"version": COUNT})),
        ),
        ApiRoute(
            "GET",
            "/controlnet/model_list",
            "Names of control models",
            get_endpoint(list_models),
            NamedSchema("ModelList", make_object_schema({"model_list": NAMES})),
            query_flags=("update",),
        ),
        ApiRoute(
            "GET",
            "/controlnet/module_list",
            "Names of preprocessors, and their sliders",
            get_endpoint(lambda request: list_modules(_read_flag(request, "alias_names", "false"))),
            NamedSchema(
                "ModuleList",
                make_object_schema(
                    {"module_list": NAMES, "module_detail": {"type": "object", "additionalProperties": MODULE}}
                ),
            ),
            query_flags=("alias_names",),
        ),
        ApiRoute(
            "GET",
            "/controlnet/control_types",
            "Preprocessors and control models by type",
            get_endpoint(lambda _: {"control_types": list_control_types(catalog.names)}),
            NamedSchema(
                "ControlTypes",
                make_object_schema({"control_types": {"type": "object", "additionalProperties": CONTROL_TYPE}}),
            ),
        ),
        ApiRoute(
            "GET",
            "/controlnet/settings",
            "The number of units that a request may have",
            get_endpoint(lambda _: describe_settings(max_units)),
            NamedSchema(
                "Settings",
                make_object_schema({"control_net_unit_count": COUNT, "control_net_max_models_num": COUNT}),
            ),
        ),
        ApiRoute(
            "POST",
            "/controlnet/detect",
            "Maps of images, and the JSON of poses",
            queued_endpoint(detect_maps, worker),
            NamedSchema(
                "Maps",
                make_object_schema(
                    {"info": TEXT, "images": IMAGES, "poses": _make_list_schema({"type": "object"})}, "poses"
                ),
            ),
            request=DetectFields,
        ),
        ApiRoute(
            "POST",
            "/controlnet/render_openpose_json",
            "Images of people and animals from the JSON of their poses",
            queued_endpoint(render_poses, worker),
            NamedSchema("RenderedPoses", make_object_schema({"info": TEXT, "images": IMAGES}, "images")),
            request=POSES,
        ),
    ]


def create_generation_routes(service: Service, worker: RequestWorker) -> list[ApiRoute]:
    """Return the routes of the webui that its clients need, and /health."""

    def interrupt(_: Request) -> dict[str, Any]:
        service.engine.progress.stop_requested.set()
        return {}

    return [
        ApiRoute(
            "POST",
            "/sdapi/v1/txt2img",
            "Images of a prompt, then the map of each unit",
            queued_endpoint(lambda value: service.generate(value, False), worker),
            GENERATED,
            request=TextToImageFields,
        ),
        ApiRoute(
            "POST",
            "/sdapi/v1/img2img",
            "Images of a prompt and an image, then the map of each unit",
            queued_endpoint(lambda value: service.generate(value, True), worker),
            GENERATED,
            request=ImageToImageFields,
        ),
        ApiRoute(
            "GET",
            "/sdapi/v1/options",
            "The settings",
            get_endpoint(lambda _: service.get_options()),
            NamedSchema(
                "CurrentOptions", make_object_schema({"sd_model_checkpoint": TEXT, "control_net_unit_count": COUNT})
            ),
        ),
        ApiRoute(
            "POST",
            "/sdapi/v1/options",
            "Accept settings as they are, and refuse others",
            json_endpoint(lambda value: service.set_options(value)),
            NOTHING,
            request=OPTIONS,
        ),
        ApiRoute(
            "POST", "/sdapi/v1/interrupt", "End the request at work after its step", get_endpoint(interrupt), NOTHING
        ),
        ApiRoute(
            "GET",
            "/sdapi/v1/progress",
            "Progress of the request at work, with the image as it is",
            get_endpoint(lambda request: service.get_progress(not _read_flag(request, "skip_current_image", "false"))),
            NamedSchema(
                "Progress",
                make_object_schema(
                    {
                        "progress": {"type": "number", "minimum": 0, "maximum": 1},
                        "eta_relative": NUMBER,
                        "state": JOB_STATE,
                        "current_image": _make_nullable_schema("string"),
                        "textinfo": _make_nullable_schema("string"),
                    }
                ),
            ),
            query_flags=("skip_current_image",),
        ),
        ApiRoute(
            "GET",
            "/sdapi/v1/sd-models",
            "The checkpoint",
            get_endpoint(lambda _: service.list_checkpoints()),
            NamedSchema(
                "Checkpoints",
                _make_list_schema(
                    make_object_schema(
                        {
                            **dict.fromkeys(("title", "model_name", "filename"), TEXT),
                            **{name: _make_nullable_schema("string") for name in ("hash", "sha256", "config")},
                        }
                    )
                ),
            ),
        ),
        ApiRoute(
            "GET",
            "/sdapi/v1/samplers",
            "Names of samplers",
            get_endpoint(lambda _: service.list_samplers()),
            NamedSchema(
                "Samplers",
                _make_list_schema(make_object_schema({"name": TEXT, "aliases": NAMES, "options": {"type": "object"}})),
            ),
        ),
        ApiRoute(
            "GET",
            "/sdapi/v1/schedulers",
            "Names of noise schedules",
            get_endpoint(lambda _: service.list_schedulers()),
            NamedSchema(
                "Schedulers",
                _make_list_schema(
                    make_object_schema(
                        {"name": TEXT, "label": TEXT, "aliases": {"type": ["array", "null"], "items": TEXT}}
                    )
                ),
            ),
        ),
        ApiRoute(
            "GET",
            "/sdapi/v1/scripts",
            "Names of scripts",
            get_endpoint(lambda _: service.list_scripts()),
            NamedSchema("Scripts", make_object_schema({"txt2img": NAMES, "img2img": NAMES})),
        ),
        ApiRoute(
            "GET",
            "/health",
            "The number of requests that wait or are at work",
            get_endpoint(lambda _: {"status": "ok", "waiting": worker.pending_count}),
            NamedSchema("Health", make_object_schema({"status": {"const": "ok"}, "waiting": COUNT})),
            is_open=True,
        ),
    ]


def create_document_route(make_document: Callable[[], Schema]) -> ApiRoute:
    """Return the route of the OpenAPI document."""
    return ApiRoute(
        "GET",
        "/openapi.json",
        "This document",
        get_endpoint(lambda _: make_document()),
        NamedSchema("Document", {"type": "object"}),
    )


def _read_flag(request: Request, name: str, default: str) -> bool:
    return request.query_params.get(name, default).casefold() in ("true", "1")
