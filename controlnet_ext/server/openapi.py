"""What requests may say, as JSON schemas by name. Canonical spellings only: readers take more (docs/api.md)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..generation.recipe import TEXT
from ..preprocessors.registry import registered
from ..sdwebui.detect import PICTURES
from ..sdwebui.limits import Limits
from ..sdwebui.pictures import IMAGES
from ..sdwebui.requests import BLUR, FILLINGS, PADDING, SCALE, UPSCALERS
from ..sdwebui.samplers import SAMPLERS, SPACINGS
from ..sdwebui.units import FITS, LAYERS, MODES, PASSES, UNIONS
from .http import BODY

Schema = dict[str, Any]
FLAG: Schema = {"type": "boolean"}
SLIDER: Schema = {"type": "number", "default": -1, "description": "Outside of the module's slider: its default"}
PICTURE: Schema = {
    "type": "string",
    "format": "byte",
    "maxLength": BODY,
    "description": "A picture in base64, plain or as a data URL; no path, and no address",
}
REF: Schema = {"$ref": "#/components/schemas/Picture"}


def requests(limits: Limits, models: Sequence[str]) -> dict[str, Schema]:
    """`models` are the listed names of control models."""
    unit = {"$ref": "#/components/schemas/Unit"}
    return {
        "Picture": PICTURE,
        "Unit": _object(_unit(models)),
        "TextToImage": _object(
            {**_generation(limits), **_second_pass(limits), "alwayson_scripts": _scripts(unit, limits)}
        ),
        "ImageToImage": _object(
            {**_generation(limits), **_initial(), "alwayson_scripts": _scripts(unit, limits)}, "init_images"
        ),
        "Detection": _object(_detection(), "controlnet_input_images"),
        "PosesOfPictures": {"type": "array", "maxItems": PICTURES, "items": _poses()},
        "Options": _object({"sd_model_checkpoint": {"type": "string", "maxLength": 300}}),
    }


def _object(properties: Schema, *required: str) -> Schema:
    return {"type": "object", "properties": properties, **({"required": list(required)} if required else {})}


def _number(low: float, high: float, default: float | None = None, kind: str = "number", **more: Any) -> Schema:
    found = {"type": kind, "minimum": low, "maximum": high, **more}
    return found if default is None else {**found, "default": default}


def _text(length: int) -> Schema:
    return {"type": "string", "maxLength": length, "default": ""}


def _known(names: Sequence[str]) -> Schema:
    """These names, and other spellings of them."""
    return {"anyOf": [{"enum": list(names)}, {"type": "string", "maxLength": 300}]}


def _choice(words: Sequence[tuple[str, Any]]) -> Schema:
    return {"anyOf": [{"enum": [word for word, _ in words]}, _number(0, len(words) - 1, kind="integer")]}


def _unit(models: Sequence[str]) -> Schema:
    masked = _object({"image": REF, "mask": REF})
    several = {"type": "array", "items": masked, "maxItems": IMAGES}
    pair = {"type": "array", "items": REF, "minItems": 1, "maxItems": 2}
    return {
        "enabled": FLAG | {"description": "By default whether there is a model, a module or an image"},
        "module": _known(["none", *(entry.name for entry in registered())]),
        "model": _known(["None", *models]),
        "image": {"anyOf": [REF, masked, pair, several]},
        "mask": REF,
        "weight": _number(0, 2, 1),
        "resize_mode": _choice(FITS),
        "control_mode": _choice(MODES),
        "hr_option": _choice(PASSES),
        "guidance_start": _number(0, 1, 0),
        "guidance_end": _number(0, 1, 1),
        **dict.fromkeys(("processor_res", "threshold_a", "threshold_b"), SLIDER),
        **dict.fromkeys(("pixel_perfect", "low_vram", "save_detected_map", "inpaint_crop_input_image"), FLAG),
        "union_control_type": _choice(UNIONS),
        "effective_region_mask": REF,
        "advanced_weighting": {"type": "array", "items": _number(-10, 10), "maxItems": LAYERS},
    }


def _generation(limits: Limits) -> Schema:
    side = _number(64, limits.side, kind="integer", multipleOf=8)
    override = {"CLIP_stop_at_last_layers": _number(1, 12, 1, "integer"), "sd_model_checkpoint": _text(300)}
    return {
        "prompt": _text(TEXT),
        "negative_prompt": _text(TEXT),
        "seed": _number(-1, 2**63 - 1, -1, "integer"),
        **{name: _number(1, limits.pictures, 1, "integer") for name in ("batch_size", "n_iter")},
        "steps": _number(1, limits.steps, min(20, limits.steps), "integer"),
        **dict.fromkeys(("width", "height"), side),
        "cfg_scale": _number(0, 100, 7),
        "sampler_name": _known(list(SAMPLERS)),
        "scheduler": {"enum": ["Automatic", *SPACINGS]},
        "send_images": FLAG,
        "override_settings": _object(override),
    }


def _second_pass(limits: Limits) -> Schema:
    side = _number(0, limits.side, 0, "integer")
    return {
        "enable_hr": FLAG,
        "hr_scale": _number(1, SCALE, 2),
        "hr_resize_x": side,
        "hr_resize_y": side,
        "hr_second_pass_steps": _number(0, limits.steps, 0, "integer"),
        "hr_upscaler": {"enum": list(UPSCALERS)},
        "denoising_strength": _number(0, 1, 0.75),
    }


def _initial() -> Schema:
    return {
        "init_images": {"type": "array", "items": REF, "minItems": 1, "maxItems": 1},
        "denoising_strength": _number(0, 1, 0.75),
        "resize_mode": _choice(FITS[:4]),
        "mask": REF,
        **{f"mask_blur{axis}": _number(0, BLUR, 4) for axis in ("", "_x", "_y")},
        "inpainting_mask_invert": _number(0, 1, 0, "integer"),
        "inpainting_fill": _choice(FILLINGS),
        "inpaint_full_res": FLAG | {"default": True},
        "inpaint_full_res_padding": _number(0, PADDING, 0, "integer"),
    }


def _scripts(unit: Schema, limits: Limits) -> Schema:
    args = _object({"args": {"type": "array", "items": unit, "maxItems": limits.units}})
    return {**_object({"ControlNet": args}), "additionalProperties": False}


def _detection() -> Schema:
    pictures = {"type": "array", "items": REF, "maxItems": PICTURES}
    return {
        "controlnet_module": _known(["none", *(entry.name for entry in registered())]),
        "controlnet_input_images": {**pictures, "minItems": 1},
        "controlnet_masks": pictures,
        **{f"controlnet_{name}": SLIDER for name in ("processor_res", "threshold_a", "threshold_b")},
    }


def _poses() -> Schema:
    points = {"type": ["array", "null"], "items": {"type": "number"}, "maxItems": 3 * 70}
    parts = ("pose", "face", "hand_left", "hand_right")
    person = _object({f"{part}_keypoints_2d": points for part in parts})
    canvas = {f"canvas_{side}": {"type": "integer", "minimum": 1} for side in ("width", "height")}
    people = {"people": {"type": "array", "items": person}, "animals": {"type": "array", "items": points}}
    return _object({**people, **canvas}, *canvas)
