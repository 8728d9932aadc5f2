"""What the routes answer, as JSON schemas by name."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]
TEXT: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}
NAMES: Schema = {"type": "array", "items": TEXT}
PICTURES: Schema = {"type": "array", "items": {"type": "string", "format": "byte", "description": "A PNG in base64"}}


def record(properties: Schema, *optional: str) -> Schema:
    """An object with these properties, all of them but the optional ones required."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, **({"required": required} if required else {})}


def listed(properties: Schema) -> Schema:
    return {"type": "array", "items": record(properties)}


def _or_null(*types: str) -> Schema:
    return {"type": [*types, "null"]}


SLIDER = record({"name": TEXT, **{name: {"type": "number"} for name in ("value", "min", "max", "step")}})
MODULE = record({"model_free": {"type": "boolean"}, "sliders": {"type": "array", "items": SLIDER}})
TYPE = record({"module_list": NAMES, "model_list": NAMES, "default_option": TEXT, "default_model": TEXT})
STATE = record(
    {
        **{name: {"type": "boolean"} for name in ("skipped", "interrupted")},
        "job": TEXT,
        **dict.fromkeys(("job_count", "job_no", "sampling_step", "sampling_steps"), COUNT),
    }
)
ANSWERS: dict[str, Schema] = {
    "Refusal": record({"detail": {**TEXT, "maxLength": 500, "description": "One sentence"}}),
    "Nothing": _or_null("object"),
    "Version": record({"version": COUNT}),
    "ModelList": record({"model_list": NAMES}),
    "ModuleList": record(
        {"module_list": NAMES, "module_detail": {"type": "object", "additionalProperties": MODULE}},
    ),
    "ControlTypes": record({"control_types": {"type": "object", "additionalProperties": TYPE}}),
    "Settings": record({"control_net_unit_count": COUNT, "control_net_max_models_num": COUNT}),
    "Maps": record(
        {"info": TEXT, "images": PICTURES, "poses": {"type": "array", "items": {"type": "object"}}}, "poses"
    ),
    "Rendered": record({"info": TEXT, "images": PICTURES}, "images"),
    "Pictures": record(
        {
            "images": PICTURES,
            "parameters": {"type": "object"},
            "info": {**TEXT, "description": "JSON: seeds, sizes, and the text that each PNG holds"},
        }
    ),
    "CurrentOptions": record({"sd_model_checkpoint": TEXT, "control_net_unit_count": COUNT}),
    "Progress": record(
        {
            "progress": {"type": "number", "minimum": 0, "maximum": 1},
            "eta_relative": {"type": "number"},
            "state": STATE,
            "current_image": _or_null("string"),
            "textinfo": _or_null("string"),
        }
    ),
    "Checkpoints": listed(
        {
            **dict.fromkeys(("title", "model_name", "filename"), TEXT),
            **{name: _or_null("string") for name in ("hash", "sha256", "config")},
        }
    ),
    "Samplers": listed({"name": TEXT, "aliases": NAMES, "options": {"type": "object"}}),
    "Schedulers": listed({"name": TEXT, "label": TEXT, "aliases": {"type": ["array", "null"], "items": TEXT}}),
    "Scripts": record({"txt2img": NAMES, "img2img": NAMES}),
    "Health": record({"status": {"const": "ok"}, "waiting": COUNT}),
    "Document": {"type": "object"},
}
