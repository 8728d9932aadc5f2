"""What requests may say, as JSON schemas by name. Canonical spellings only: readers take more (docs/api.md)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..generation.recipe import MAX_PROMPT_LENGTH
from ..preprocessors.registry import list_preprocessors
from ..sdwebui.detect import MAX_REQUEST_IMAGES
from ..sdwebui.limits import RequestLimits
from ..sdwebui.pictures import MAX_UNIT_IMAGES
from ..sdwebui.requests import INPAINTING_FILLS, MAX_HIRES_SCALE, MAX_MASK_BLUR, MAX_PADDING, UPSCALERS
from ..sdwebui.samplers import NOISE_SCHEDULES, SAMPLERS
from ..sdwebui.units import CONTROL_MODES, HR_OPTIONS, MAX_LAYER_SCALES, RESIZE_MODES, UNION_MAP_TYPES
from .http import MAX_BODY_BYTES

Schema = dict[str, Any]
BOOL_SCHEMA: Schema = {"type": "boolean"}
SLIDER_VALUE_SCHEMA: Schema = {
    "type": "number",
    "default": -1,
    "description": "Outside of the module's slider: its default",
}
IMAGE_SCHEMA: Schema = {
    "type": "string",
    "format": "byte",
    "maxLength": MAX_BODY_BYTES,
    "description": "A picture in base64, plain or as a data URL; no path, and no address",
}
IMAGE_REF: Schema = {"$ref": "#/components/schemas/Picture"}


def make_request_schemas(limits: RequestLimits, model_names: Sequence[str]) -> dict[str, Schema]:
    """`models` are the listed names of control models."""
    unit = {"$ref": "#/components/schemas/Unit"}
    return {
        "Picture": IMAGE_SCHEMA,
        "Unit": _make_input_schema(_make_unit_schema(model_names)),
        "TextToImage": _make_input_schema(
            {
                **_make_generation_schema(limits),
                **_make_hires_fix_schema(limits),
                "alwayson_scripts": _make_scripts_schema(unit, limits),
            }
        ),
        "ImageToImage": _make_input_schema(
            {
                **_make_generation_schema(limits),
                **_make_img2img_schema(),
                "alwayson_scripts": _make_scripts_schema(unit, limits),
            },
            "init_images",
        ),
        "Detection": _make_input_schema(_make_detection_schema(), "controlnet_input_images"),
        "PosesOfPictures": {"type": "array", "maxItems": MAX_REQUEST_IMAGES, "items": _make_poses_schema()},
        "Options": _make_input_schema({"sd_model_checkpoint": {"type": "string", "maxLength": 300}}),
    }


def _make_input_schema(properties: Schema, *required: str) -> Schema:
    return {"type": "object", "properties": properties, **({"required": list(required)} if required else {})}


def _make_number_schema(
    low: float, high: float, default: float | None = None, kind: str = "number", **more: Any
) -> Schema:
    found = {"type": kind, "minimum": low, "maximum": high, **more}
    return found if default is None else {**found, "default": default}


def _make_text_schema(max_length: int) -> Schema:
    return {"type": "string", "maxLength": max_length, "default": ""}


def _make_open_enum_schema(names: Sequence[str]) -> Schema:
    """These names, and other spellings of them."""
    return {"anyOf": [{"enum": list(names)}, {"type": "string", "maxLength": 300}]}


def _make_choice_schema(choices: Sequence[tuple[str, Any]]) -> Schema:
    return {
        "anyOf": [{"enum": [word for word, _ in choices]}, _make_number_schema(0, len(choices) - 1, kind="integer")]
    }


def _make_unit_schema(model_names: Sequence[str]) -> Schema:
    masked = _make_input_schema({"image": IMAGE_REF, "mask": IMAGE_REF})
    several = {"type": "array", "items": masked, "maxItems": MAX_UNIT_IMAGES}
    pair = {"type": "array", "items": IMAGE_REF, "minItems": 1, "maxItems": 2}
    return {
        "enabled": BOOL_SCHEMA | {"description": "By default whether there is a model, a module or an image"},
        "module": _make_open_enum_schema(["none", *(entry.name for entry in list_preprocessors())]),
        "model": _make_open_enum_schema(["None", *model_names]),
        "image": {"anyOf": [IMAGE_REF, masked, pair, several]},
        "mask": IMAGE_REF,
        "weight": _make_number_schema(0, 2, 1),
        "resize_mode": _make_choice_schema(RESIZE_MODES),
        "control_mode": _make_choice_schema(CONTROL_MODES),
        "hr_option": _make_choice_schema(HR_OPTIONS),
        "guidance_start": _make_number_schema(0, 1, 0),
        "guidance_end": _make_number_schema(0, 1, 1),
        **dict.fromkeys(("processor_res", "threshold_a", "threshold_b"), SLIDER_VALUE_SCHEMA),
        **dict.fromkeys(("pixel_perfect", "low_vram", "save_detected_map", "inpaint_crop_input_image"), BOOL_SCHEMA),
        "union_control_type": _make_choice_schema(UNION_MAP_TYPES),
        "effective_region_mask": IMAGE_REF,
        "advanced_weighting": {"type": "array", "items": _make_number_schema(-10, 10), "maxItems": MAX_LAYER_SCALES},
    }


def _make_generation_schema(limits: RequestLimits) -> Schema:
    side = _make_number_schema(64, limits.max_side, kind="integer", multipleOf=8)
    override = {
        "CLIP_stop_at_last_layers": _make_number_schema(1, 12, 1, "integer"),
        "sd_model_checkpoint": _make_text_schema(300),
    }
    return {
        "prompt": _make_text_schema(MAX_PROMPT_LENGTH),
        "negative_prompt": _make_text_schema(MAX_PROMPT_LENGTH),
        "seed": _make_number_schema(-1, 2**63 - 1, -1, "integer"),
        **{name: _make_number_schema(1, limits.max_images, 1, "integer") for name in ("batch_size", "n_iter")},
        "steps": _make_number_schema(1, limits.max_steps, min(20, limits.max_steps), "integer"),
        **dict.fromkeys(("width", "height"), side),
        "cfg_scale": _make_number_schema(0, 100, 7),
        "sampler_name": _make_open_enum_schema(list(SAMPLERS)),
        "scheduler": {"enum": ["Automatic", *NOISE_SCHEDULES]},
        "send_images": BOOL_SCHEMA,
        "override_settings": _make_input_schema(override),
    }


def _make_hires_fix_schema(limits: RequestLimits) -> Schema:
    side = _make_number_schema(0, limits.max_side, 0, "integer")
    return {
        "enable_hr": BOOL_SCHEMA,
        "hr_scale": _make_number_schema(1, MAX_HIRES_SCALE, 2),
        "hr_resize_x": side,
        "hr_resize_y": side,
        "hr_second_pass_steps": _make_number_schema(0, limits.max_steps, 0, "integer"),
        "hr_upscaler": {"enum": list(UPSCALERS)},
        "denoising_strength": _make_number_schema(0, 1, 0.75),
    }


def _make_img2img_schema() -> Schema:
    return {
        "init_images": {"type": "array", "items": IMAGE_REF, "minItems": 1, "maxItems": 1},
        "denoising_strength": _make_number_schema(0, 1, 0.75),
        "resize_mode": _make_choice_schema(RESIZE_MODES[:4]),
        "mask": IMAGE_REF,
        **{f"mask_blur{axis}": _make_number_schema(0, MAX_MASK_BLUR, 4) for axis in ("", "_x", "_y")},
        "inpainting_mask_invert": _make_number_schema(0, 1, 0, "integer"),
        "inpainting_fill": _make_choice_schema(INPAINTING_FILLS),
        "inpaint_full_res": BOOL_SCHEMA | {"default": True},
        "inpaint_full_res_padding": _make_number_schema(0, MAX_PADDING, 0, "integer"),
    }


def _make_scripts_schema(unit: Schema, limits: RequestLimits) -> Schema:
    args = _make_input_schema({"args": {"type": "array", "items": unit, "maxItems": limits.max_units}})
    return {**_make_input_schema({"ControlNet": args}), "additionalProperties": False}


def _make_detection_schema() -> Schema:
    pictures = {"type": "array", "items": IMAGE_REF, "maxItems": MAX_REQUEST_IMAGES}
    return {
        "controlnet_module": _make_open_enum_schema(["none", *(entry.name for entry in list_preprocessors())]),
        "controlnet_input_images": {**pictures, "minItems": 1},
        "controlnet_masks": pictures,
        **{f"controlnet_{name}": SLIDER_VALUE_SCHEMA for name in ("processor_res", "threshold_a", "threshold_b")},
    }


def _make_poses_schema() -> Schema:
    points = {"type": ["array", "null"], "items": {"type": "number"}, "maxItems": 3 * 70}
    parts = ("pose", "face", "hand_left", "hand_right")
    person = _make_input_schema({f"{part}_keypoints_2d": points for part in parts})
    canvas = {f"canvas_{side}": {"type": "integer", "minimum": 1} for side in ("width", "height")}
    people = {"people": {"type": "array", "items": person}, "animals": {"type": "array", "items": points}}
    return _make_input_schema({**people, **canvas}, *canvas)
