"""A unit as clients of sd-webui-controlnet send it, old and new, read into what it says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import error_prefix
from ..guidance.schedule import WebuiWindow, Window
from ..preprocessors.registry import Preprocessor
from .fields import JsonFields, is_empty_value
from .modules import find_module
from .pictures import ImageMaskPair, decode_base64_image, parse_image_mask_pairs

RESIZE_MODES = (
    *(("Just Resize", "stretch"), ("Crop and Resize", "crop"), ("Resize and Fill", "fill")),
    ("Latent upscale", "stretch"),  # the webui's own fourth
    *(("Scale to Fit (Inner Fit)", "crop"), ("Inner Fit (Scale to Fit)", "crop")),
    *(("Envelope (Outer Fit)", "fill"), ("Outer Fit (Shrink to Fit)", "fill")),
)
CONTROL_MODES = (
    ("Balanced", "balanced"),
    ("My prompt is more important", "prompt"),
    ("ControlNet is more important", "control"),
)
HR_OPTIONS = (("Both", "both"), ("Low res only", "low"), ("High res only", "high"))
UNION_MAP_TYPES = (
    *(("OpenPose", "pose"), ("Depth", "depth"), ("Soft Edge", "soft edges"), ("Hard Edge", "edges")),
    *(("Normal Map", "normals"), ("Segmentation", "segmentation"), ("Tile", "tile"), ("Inpaint", "inpaint")),
    ("Unknown", None),
)
MAX_LAYER_SCALES = 100  # scales in advanced_weighting at most
SLIDER_BOUND = 1e9  # sliders take any number: what lies outside their range means their default


@dataclass(frozen=True, eq=False)
class WebuiUnit:
    """What a unit says. `images` are pairs (image, mask or None), empty where it has none; `model` is a name as listed.
    `schedule` replaces the weight by text as `Unit.weight` takes it. `resolution`, `a` and `b` are sliders, -1 for
    their defaults; `layers` are scales that replace weight and soft weights. `crops`: where only the masked part is
    repainted, that part of the image is looked at."""

    module: Preprocessor | None
    model: str | None
    images: tuple[ImageMaskPair, ...]
    weight: float
    weight_schedule: str | None
    window: Window
    fit: str
    mode: str
    hires: str
    resolution: float
    threshold_a: float
    threshold_b: float
    pixel_perfect: bool
    low_vram: bool
    union_type: str | None
    layer_scales: tuple[float, ...] | None
    region_mask: np.ndarray | None
    returns_map: bool
    crops_to_inpaint_area: bool


def parse_webui_unit(value: Any, name: str) -> WebuiUnit | None:
    """The unit that a JSON object describes; None if it is off: where nothing says `enabled`, without model, module and
    image. Fields that it does not know are passed over, as sd-webui-controlnet does. ValueError begins with `name`."""
    fields = JsonFields.from_json(value, name)
    image = fields.get("image", "input_image")
    said = any(not _is_blank(each) for each in (image, *map(fields.get, ("model", "module"))))
    if not fields.get_bool("enabled", default=said):
        return None
    if not is_empty_value(fields.get("ipadapter_input")):
        raise ValueError(f"{name}: ipadapter_input holds serialised objects, which are not decoded; send the image")
    if fields.get_text("input_mode", "simple").casefold() not in ("simple", "inputmode.simple"):
        raise ValueError(
            f"{name}: input_mode {fields.get('input_mode')!r:.40} reads folders; send images, one a request"
        )
    start = fields.get_number("guidance_start", default=0, low=0, high=1)
    end = fields.get_number("guidance_end", "guidance", default=1, low=0, high=1)
    region = fields.get("effective_region_mask")
    with error_prefix(name):
        window, preprocessor = WebuiWindow(start, end), find_module(fields.get_text("module", "none"))
    return WebuiUnit(
        module=preprocessor,
        model=fields.get_text("model") or None,
        images=parse_image_mask_pairs(image, fields.get("mask", "mask_image"), f"{name}: image"),
        weight=fields.get_number("weight", default=1, low=0, high=2),
        weight_schedule=fields.get_text("weight_schedule") or None,
        window=window,
        fit=fields.get_choice("resize_mode", choices=RESIZE_MODES, default="crop"),
        mode=fields.get_choice(
            "control_mode", choices=CONTROL_MODES, default="control" if fields.get_bool("guessmode") else "balanced"
        ),
        hires=fields.get_choice("hr_option", choices=HR_OPTIONS, default="both"),
        resolution=fields.get_number("processor_res", default=-1, low=-SLIDER_BOUND, high=SLIDER_BOUND),
        threshold_a=fields.get_number("threshold_a", default=-1, low=-SLIDER_BOUND, high=SLIDER_BOUND),
        threshold_b=fields.get_number("threshold_b", default=-1, low=-SLIDER_BOUND, high=SLIDER_BOUND),
        pixel_perfect=fields.get_bool("pixel_perfect"),
        low_vram=fields.get_bool("low_vram", "lowvram"),
        union_type=fields.get_choice("union_control_type", choices=UNION_MAP_TYPES, default=None),
        layer_scales=_read_layer_scales(fields),
        region_mask=None if region is None else decode_base64_image(region, f"{name}: effective_region_mask"),
        returns_map=fields.get_bool("save_detected_map", default=True),
        crops_to_inpaint_area=fields.get_bool("inpaint_crop_input_image", default=True),
    )


def _is_blank(value: Any) -> bool:
    """Also of {"image": "", "mask": ""} and of lists of such."""
    if isinstance(value, Mapping):
        return is_empty_value(value.get("image"))
    return all(map(_is_blank, value)) if isinstance(value, list) else is_empty_value(value)


def _read_layer_scales(fields: JsonFields) -> tuple[float, ...] | None:
    value = fields.get("advanced_weighting")
    if value is None:
        return None
    if not isinstance(value, list) or len(value) > MAX_LAYER_SCALES:
        raise fields.make_error("advanced_weighting", value, "a list of numbers")
    each = JsonFields(dict(zip(map(str, range(len(value))), value, strict=True)), f"{fields.owner}: advanced_weighting")
    return tuple(each.get_number(key, default=0, low=-10, high=10) for key in each.values)
