"""The routes: each is a function that answers, under a decorator with its path and the schemas of request and response.

Adding a route means adding such a function here; the application and the OpenAPI document follow from it. `http` reads
bodies and answers errors, `service` does the work.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from threading import Event
from typing import Any

from starlette.requests import Request

from ..preprocessors.poses.json import POSES_SCHEMA
from ..sdwebui.catalog import ModelCatalog
from ..sdwebui.control_types import list_control_types
from ..sdwebui.detect import (
    API_VERSION,
    POSE_LIST_SCHEMA,
    DetectFields,
    PoseFields,
    describe_settings,
    list_modules,
    render_poses,
)
from ..sdwebui.fields import RequestLimits, Schema
from ..sdwebui.requests import ImageToImageFields, TextToImageFields
from .http import get_endpoint
from .route_table import (
    BOOLEAN,
    COUNT,
    IMAGES,
    NAMES,
    NUMBER,
    TEXT,
    ApiRoute,
    NamedSchema,
    RouteTable,
    make_list_schema,
    make_nullable_schema,
    make_object_schema,
)
from .service import Service, measure_memory
from .worker import RequestWorker

SLIDER = make_object_schema({"name": TEXT, "value": NUMBER, "min": NUMBER, "max": NUMBER, "step": NUMBER})
MODULE = make_object_schema({"model_free": BOOLEAN, "sliders": make_list_schema(SLIDER)})
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
POSES = NamedSchema(  # the last where poses state no canvas, as OpenPose's own
    "PosesOfImages", {"anyOf": [POSE_LIST_SCHEMA, POSES_SCHEMA, PoseFields.make_schema(RequestLimits())]}
)
OPTIONS = NamedSchema(
    "Options", make_object_schema({"sd_model_checkpoint": {**TEXT, "maxLength": 300}}, "sd_model_checkpoint")
)
GENERATION = NamedSchema(
    "GeneratedImages",
    make_object_schema(
        {
            "images": IMAGES,
            "parameters": {"type": "object"},
            "info": {
                **TEXT,
                "description": "JSON: seeds, sizes, the text that each PNG holds, and warnings about ignored fields",
            },
        }
    ),
)
NOTHING = NamedSchema("Nothing", make_nullable_schema("object"))
EMPTY_LIST = NamedSchema("EmptyList", {"type": "array", "maxItems": 0})


# The routes of sd-webui-controlnet


@dataclass(frozen=True)
class ControlContext:
    """Context of the routes of sd-webui-controlnet; `detect_maps` answers a request for maps, and ends
    early once its event is set."""

    catalog: ModelCatalog
    max_units: int
    detect_maps: Callable[[Any, Event], Any]
    worker: RequestWorker


CONTROL_ROUTES: RouteTable[ControlContext] = RouteTable()


@CONTROL_ROUTES.add(
    "GET",
    "/controlnet/version",
    "The version of this API",
    NamedSchema("Version", make_object_schema({"version": COUNT})),
)
def _get_version(_: ControlContext, __: Request) -> dict[str, int]:
    return {"version": API_VERSION}


@CONTROL_ROUTES.add(
    "GET",
    "/controlnet/model_list",
    "Names of control models",
    NamedSchema("ModelList", make_object_schema({"model_list": NAMES})),
    query_flags=("update",),
)
def _list_models(context: ControlContext, request: Request) -> dict[str, list[str]]:
    if _read_flag(request, "update", "true"):
        context.catalog.rescan()
    return {"model_list": context.catalog.names}


@CONTROL_ROUTES.add(
    "GET",
    "/controlnet/module_list",
    "Names of preprocessors, and their sliders",
    NamedSchema(
        "ModuleList",
        make_object_schema({"module_list": NAMES, "module_detail": {"type": "object", "additionalProperties": MODULE}}),
    ),
    query_flags=("alias_names",),
)
def _list_modules(_: ControlContext, request: Request) -> dict[str, Any]:
    return list_modules(_read_flag(request, "alias_names", "false"))


@CONTROL_ROUTES.add(
    "GET",
    "/controlnet/control_types",
    "Preprocessors and control models by type",
    NamedSchema(
        "ControlTypes",
        make_object_schema({"control_types": {"type": "object", "additionalProperties": CONTROL_TYPE}}),
    ),
)
def _list_control_types(context: ControlContext, _: Request) -> dict[str, Any]:
    return {"control_types": list_control_types(context.catalog.names)}


@CONTROL_ROUTES.add(
    "GET",
    "/controlnet/settings",
    "The number of units that a request may have",
    NamedSchema("Settings", make_object_schema({"control_net_unit_count": COUNT, "control_net_max_models_num": COUNT})),
)
def _get_settings(context: ControlContext, _: Request) -> dict[str, int]:
    return describe_settings(context.max_units)


@CONTROL_ROUTES.add(
    "POST",
    "/controlnet/detect",
    "Maps of images, and the JSON of poses",
    NamedSchema(
        "Maps",
        make_object_schema(
            {"info": TEXT, "images": IMAGES, "poses": make_list_schema(POSES_SCHEMA), "warnings": NAMES},
            "poses",
            "warnings",
        ),
    ),
    request=DetectFields,
    is_queued=True,
)
def _detect_maps(context: ControlContext, value: Any, stop_event: Event) -> Any:
    return context.detect_maps(value, stop_event)


@CONTROL_ROUTES.add(
    "POST",
    "/controlnet/render_openpose_json",
    "Images of people and animals from the JSON of their poses",
    NamedSchema("RenderedPoses", make_object_schema({"info": TEXT, "images": IMAGES}, "images")),
    request=POSES,
    is_queued=True,
)
def _render_poses(_: ControlContext, value: Any, __: Event) -> Any:
    return render_poses(value)


# The routes of the webui that its clients need, and /health


@dataclass(frozen=True)
class ServerContext:
    """Context of the routes of the webui."""

    service: Service
    worker: RequestWorker


SERVER_ROUTES: RouteTable[ServerContext] = RouteTable()


@SERVER_ROUTES.add(
    "POST",
    "/sdapi/v1/txt2img",
    "Images of a prompt, then the map of each unit",
    GENERATION,
    request=TextToImageFields,
    is_queued=True,
)
def _generate_from_text(context: ServerContext, value: Any, stop_event: Event) -> dict[str, Any]:
    return context.service.generate(value, from_image=False, stop_event=stop_event)


@SERVER_ROUTES.add(
    "POST",
    "/sdapi/v1/img2img",
    "Images of a prompt and an image, then the map of each unit",
    GENERATION,
    request=ImageToImageFields,
    is_queued=True,
)
def _generate_from_image(context: ServerContext, value: Any, stop_event: Event) -> dict[str, Any]:
    return context.service.generate(value, from_image=True, stop_event=stop_event)


@SERVER_ROUTES.add(
    "GET",
    "/sdapi/v1/options",
    "The settings",
    NamedSchema("CurrentOptions", make_object_schema({"sd_model_checkpoint": TEXT, "control_net_unit_count": COUNT})),
)
def _get_options(context: ServerContext, _: Request) -> dict[str, Any]:
    return context.service.get_options()


@SERVER_ROUTES.add(
    "POST", "/sdapi/v1/options", "Accept settings as they are, and refuse others", NOTHING, request=OPTIONS
)
def _set_options(context: ServerContext, value: Any) -> None:
    context.service.set_options(value)


@SERVER_ROUTES.add("POST", "/sdapi/v1/interrupt", "End the request at work after its step", NOTHING)
def _interrupt(context: ServerContext, _: Request) -> dict[str, Any]:
    context.service.engine.progress.stop_requested.set()
    return {}


@SERVER_ROUTES.add("POST", "/sdapi/v1/skip", "End the image at work after its step, and go on to the next", NOTHING)
def _skip(context: ServerContext, _: Request) -> dict[str, Any]:
    context.service.engine.progress.skip_requested.set()
    return {}


@SERVER_ROUTES.add("POST", "/sdapi/v1/refresh-checkpoints", "Look for control models anew", NOTHING)
def _refresh_models(context: ServerContext, _: Request) -> None:
    context.service.catalog.rescan()


@SERVER_ROUTES.add(
    "GET",
    "/sdapi/v1/progress",
    "Progress of the request at work, with the image as it is",
    NamedSchema(
        "Progress",
        make_object_schema(
            {
                "progress": {"type": "number", "minimum": 0, "maximum": 1},
                "eta_relative": NUMBER,
                "state": JOB_STATE,
                "current_image": make_nullable_schema("string"),
                "textinfo": make_nullable_schema("string"),
            }
        ),
    ),
    query_flags=("skip_current_image",),
)
def _get_progress(context: ServerContext, request: Request) -> dict[str, Any]:
    return context.service.get_progress(not _read_flag(request, "skip_current_image", "false"))


@SERVER_ROUTES.add(
    "GET",
    "/sdapi/v1/sd-models",
    "The checkpoint",
    NamedSchema(
        "Checkpoints",
        make_list_schema(
            make_object_schema(
                {
                    **dict.fromkeys(("title", "model_name", "filename"), TEXT),
                    **{name: make_nullable_schema("string") for name in ("hash", "sha256", "config")},
                }
            )
        ),
    ),
)
def _list_checkpoints(context: ServerContext, _: Request) -> list[dict[str, Any]]:
    return context.service.list_checkpoints()


@SERVER_ROUTES.add(
    "GET",
    "/sdapi/v1/samplers",
    "Names of samplers",
    NamedSchema(
        "Samplers",
        make_list_schema(make_object_schema({"name": TEXT, "aliases": NAMES, "options": {"type": "object"}})),
    ),
)
def _list_samplers(context: ServerContext, _: Request) -> list[dict[str, Any]]:
    return context.service.list_samplers()


@SERVER_ROUTES.add(
    "GET",
    "/sdapi/v1/schedulers",
    "Names of noise schedules",
    NamedSchema(
        "Schedulers",
        make_list_schema(
            make_object_schema({"name": TEXT, "label": TEXT, "aliases": {"type": ["array", "null"], "items": TEXT}})
        ),
    ),
)
def _list_schedulers(context: ServerContext, _: Request) -> list[dict[str, Any]]:
    return context.service.list_schedulers()


@SERVER_ROUTES.add(
    "GET",
    "/sdapi/v1/scripts",
    "Names of scripts",
    NamedSchema("Scripts", make_object_schema({"txt2img": NAMES, "img2img": NAMES})),
)
def _list_scripts(context: ServerContext, _: Request) -> dict[str, list[str]]:
    return context.service.list_scripts()


@SERVER_ROUTES.add(
    "GET",
    "/sdapi/v1/script-info",
    "Scripts, without the arguments of an interface",
    NamedSchema(
        "ScriptInfo",
        make_list_schema(
            make_object_schema(
                {
                    "name": TEXT,
                    **dict.fromkeys(("is_alwayson", "is_img2img"), BOOLEAN),
                    "args": make_list_schema({"type": "object"}),
                }
            )
        ),
    ),
)
def _describe_scripts(context: ServerContext, _: Request) -> list[dict[str, Any]]:
    return context.service.describe_scripts()


@SERVER_ROUTES.add(
    "GET",
    "/sdapi/v1/upscalers",
    "Upscalers of hires fix that enlarge pixels",
    NamedSchema(
        "Upscalers",
        make_list_schema(
            make_object_schema(
                {
                    "name": TEXT,
                    **{name: make_nullable_schema("string") for name in ("model_name", "model_path", "model_url")},
                    "scale": NUMBER,
                }
            )
        ),
    ),
)
def _list_upscalers(context: ServerContext, _: Request) -> list[dict[str, Any]]:
    return context.service.list_upscalers()


@SERVER_ROUTES.add(
    "GET",
    "/sdapi/v1/latent-upscale-modes",
    "Upscalers of hires fix that enlarge latents",
    NamedSchema("LatentUpscalers", make_list_schema(make_object_schema({"name": TEXT}))),
)
def _list_latent_upscalers(context: ServerContext, _: Request) -> list[dict[str, str]]:
    return context.service.list_latent_upscalers()


@SERVER_ROUTES.add(
    "GET",
    "/sdapi/v1/memory",
    "Bytes of memory",
    NamedSchema("Memory", make_object_schema({"ram": {"type": "object"}, "cuda": {"type": "object"}})),
)
def _get_memory(_: ServerContext, __: Request) -> dict[str, Any]:
    return measure_memory()


@SERVER_ROUTES.add(
    "GET",
    "/sdapi/v1/embeddings",
    "Textual inversions: none",
    NamedSchema("Embeddings", make_object_schema({"loaded": {"type": "object"}, "skipped": {"type": "object"}})),
)
def _list_embeddings(_: ServerContext, __: Request) -> dict[str, Any]:
    return {"loaded": {}, "skipped": {}}


@SERVER_ROUTES.add("GET", "/sdapi/v1/cmd-flags", "Flags of the webui: none", NamedSchema("Flags", {"type": "object"}))
def _get_flags(_: ServerContext, __: Request) -> dict[str, Any]:
    return {}


def _list_nothing(_: ServerContext, __: Request) -> list[Any]:
    return []


for _path, _summary in {  # what the webui has and this server does not
    "loras": "LoRAs",
    "hypernetworks": "Hypernetworks",
    "face-restorers": "Face restorers",
    "realesrgan-models": "RealESRGAN models",
    "prompt-styles": "Prompt styles",
    "sd-vae": "VAEs beside the checkpoint's own",
    "extensions": "Extensions",
    "artists": "Artists",
    "artist-categories": "Categories of artists",
}.items():
    SERVER_ROUTES.add("GET", f"/sdapi/v1/{_path}", f"{_summary}: none", EMPTY_LIST)(_list_nothing)


@SERVER_ROUTES.add(
    "GET",
    "/health",
    "The number of requests that wait or are at work",
    NamedSchema("Health", make_object_schema({"status": {"const": "ok"}, "waiting": COUNT})),
    is_open=True,
)
def _get_health(context: ServerContext, _: Request) -> dict[str, Any]:
    return {"status": "ok", "waiting": context.worker.pending_count}


# The route of the document, which needs all others


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
