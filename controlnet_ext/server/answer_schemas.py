"""What the routes answer, as JSON schemas by name."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]
TEXT_SCHEMA: Schema = {"type": "string"}
COUNT_SCHEMA: Schema = {"type": "integer", "minimum": 0}
NAME_LIST_SCHEMA: Schema = {"type": "array", "items": TEXT_SCHEMA}
IMAGE_LIST_SCHEMA: Schema = {
    "type": "array",
    "items": {"type": "string", "format": "byte", "description": "A PNG in base64"},
}


def make_object_schema(properties: Schema, *optional: str) -> Schema:
    """An object with these properties, all of them but the optional ones required."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, **({"required": required} if required else {})}


def make_list_schema(properties: Schema) -> Schema:
    return {"type": "array", "items": make_object_schema(properties)}


def _make_nullable_schema(*types: str) -> Schema:
    return {"type": [*types, "null"]}


SLIDER_SCHEMA = make_object_schema(
    {"name": TEXT_SCHEMA, **{name: {"type": "number"} for name in ("value", "min", "max", "step")}}
)
MODULE_SCHEMA = make_object_schema(
    {"model_free": {"type": "boolean"}, "sliders": {"type": "array", "items": SLIDER_SCHEMA}}
)
CONTROL_TYPE_SCHEMA = make_object_schema(
    {
        "module_list": NAME_LIST_SCHEMA,
        "model_list": NAME_LIST_SCHEMA,
        "default_option": TEXT_SCHEMA,
        "default_model": TEXT_SCHEMA,
    }
)
STATE_SCHEMA = make_object_schema(
    {
        **{name: {"type": "boolean"} for name in ("skipped", "interrupted")},
        "job": TEXT_SCHEMA,
        **dict.fromkeys(("job_count", "job_no", "sampling_step", "sampling_steps"), COUNT_SCHEMA),
    }
)
RESPONSE_SCHEMAS: dict[str, Schema] = {
    "Refusal": make_object_schema({"detail": {**TEXT_SCHEMA, "maxLength": 500, "description": "One sentence"}}),
    "Nothing": _make_nullable_schema("object"),
    "Version": make_object_schema({"version": COUNT_SCHEMA}),
    "ModelList": make_object_schema({"model_list": NAME_LIST_SCHEMA}),
    "ModuleList": make_object_schema(
        {"module_list": NAME_LIST_SCHEMA, "module_detail": {"type": "object", "additionalProperties": MODULE_SCHEMA}},
    ),
    "ControlTypes": make_object_schema(
        {"control_types": {"type": "object", "additionalProperties": CONTROL_TYPE_SCHEMA}}
    ),
    "Settings": make_object_schema(
        {"control_net_unit_count": COUNT_SCHEMA, "control_net_max_models_num": COUNT_SCHEMA}
    ),
    "Maps": make_object_schema(
        {"info": TEXT_SCHEMA, "images": IMAGE_LIST_SCHEMA, "poses": {"type": "array", "items": {"type": "object"}}},
        "poses",
    ),
    "Rendered": make_object_schema({"info": TEXT_SCHEMA, "images": IMAGE_LIST_SCHEMA}, "images"),
    "Pictures": make_object_schema(
        {
            "images": IMAGE_LIST_SCHEMA,
            "parameters": {"type": "object"},
            "info": {**TEXT_SCHEMA, "description": "JSON: seeds, sizes, and the text that each PNG holds"},
        }
    ),
    "CurrentOptions": make_object_schema({"sd_model_checkpoint": TEXT_SCHEMA, "control_net_unit_count": COUNT_SCHEMA}),
    "Progress": make_object_schema(
        {
            "progress": {"type": "number", "minimum": 0, "maximum": 1},
            "eta_relative": {"type": "number"},
            "state": STATE_SCHEMA,
            "current_image": _make_nullable_schema("string"),
            "textinfo": _make_nullable_schema("string"),
        }
    ),
    "Checkpoints": make_list_schema(
        {
            **dict.fromkeys(("title", "model_name", "filename"), TEXT_SCHEMA),
            **{name: _make_nullable_schema("string") for name in ("hash", "sha256", "config")},
        }
    ),
    "Samplers": make_list_schema({"name": TEXT_SCHEMA, "aliases": NAME_LIST_SCHEMA, "options": {"type": "object"}}),
    "Schedulers": make_list_schema(
        {"name": TEXT_SCHEMA, "label": TEXT_SCHEMA, "aliases": {"type": ["array", "null"], "items": TEXT_SCHEMA}}
    ),
    "Scripts": make_object_schema({"txt2img": NAME_LIST_SCHEMA, "img2img": NAME_LIST_SCHEMA}),
    "Health": make_object_schema({"status": {"const": "ok"}, "waiting": COUNT_SCHEMA}),
    "Document": {"type": "object"},
}
