"""A unit as clients of sd-webui-controlnet send it, old and new, read into what it says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..guidance.contract import Span, Window
from ..guidance.unit import named
from ..preprocessors.registry import Preprocessor
from .fields import Fields, empty
from .modules import module
from .pictures import Pair, pairs, picture

FITS = (
    *(("Just Resize", "stretch"), ("Crop and Resize", "crop"), ("Resize and Fill", "fill")),
    ("Latent upscale", "stretch"),  # the webui's own fourth
    *(("Scale to Fit (Inner Fit)", "crop"), ("Inner Fit (Scale to Fit)", "crop")),
    *(("Envelope (Outer Fit)", "fill"), ("Outer Fit (Shrink to Fit)", "fill")),
)
MODES = (
    ("Balanced", "balanced"),
    ("My prompt is more important", "prompt"),
    ("ControlNet is more important", "control"),
)
PASSES = (("Both", "both"), ("Low res only", "first"), ("High res only", "second"))
UNIONS = (
    *(("OpenPose", "pose"), ("Depth", "depth"), ("Soft Edge", "soft edges"), ("Hard Edge", "edges")),
    *(("Normal Map", "normals"), ("Segmentation", "segmentation"), ("Tile", "tile"), ("Inpaint", "inpaint")),
    ("Unknown", None),
)
LAYERS = 100  # scales in advanced_weighting at most
ANY = 1e9  # sliders take any number: what lies outside their range means their default


class BeginsIn(Window):
    """sd-webui-controlnet's rule: a step acts if it begins in the window, both ends included."""

    def holds(self, span: Span) -> bool:
        return self.start <= span.begins <= self.end


@dataclass(frozen=True, eq=False)
class WebuiUnit:
    """What a unit says. `images` are pairs (image, mask or None), empty where it has none; `model` is a name as listed.
    `schedule` replaces the weight by text as `Unit.weight` takes it. `resolution`, `a` and `b` are sliders, -1 for
    their defaults; `layers` are scales that replace weight and soft weights. `crops`: where only the masked part is
    repainted, that part of the image is looked at."""

    module: Preprocessor | None
    model: str | None
    images: tuple[Pair, ...]
    weight: float
    schedule: str | None
    window: Window
    fit: str
    mode: str
    passes: str
    resolution: float
    a: float
    b: float
    pixel_perfect: bool
    low_vram: bool
    union: str | None
    layers: tuple[float, ...] | None
    region: np.ndarray | None
    shows_map: bool
    crops: bool


def read_unit(value: Any, name: str) -> WebuiUnit | None:
    """The unit that a JSON object describes; None if it is off: where nothing says `enabled`, without model, module and
    image. Fields that it does not know are passed over, as sd-webui-controlnet does. ValueError begins with `name`."""
    fields = Fields.of(value, name)
    image = fields.get("image", "input_image")
    said = any(not _says_nothing(each) for each in (image, *map(fields.get, ("model", "module"))))
    if not fields.flag("enabled", default=said):
        return None
    if not empty(fields.get("ipadapter_input")):
        raise ValueError(f"{name}: ipadapter_input holds serialised objects, which are not decoded; send the image")
    if fields.text("input_mode", "simple").casefold() not in ("simple", "inputmode.simple"):
        raise ValueError(
            f"{name}: input_mode {fields.get('input_mode')!r:.40} reads folders; send images, one a request"
        )
    start = fields.number("guidance_start", default=0, low=0, high=1)
    end = fields.number("guidance_end", "guidance", default=1, low=0, high=1)
    region = fields.get("effective_region_mask")
    with named(name):
        window, preprocessor = BeginsIn(start, end), module(fields.text("module", "none"))
    return WebuiUnit(
        module=preprocessor,
        model=fields.text("model") or None,
        images=pairs(image, fields.get("mask", "mask_image"), f"{name}: image"),
        weight=fields.number("weight", default=1, low=0, high=2),
        schedule=fields.text("weight_schedule") or None,
        window=window,
        fit=fields.choice("resize_mode", among=FITS, default="crop"),
        mode=fields.choice("control_mode", among=MODES, default="control" if fields.flag("guessmode") else "balanced"),
        passes=fields.choice("hr_option", among=PASSES, default="both"),
        resolution=fields.number("processor_res", default=-1, low=-ANY, high=ANY),
        a=fields.number("threshold_a", default=-1, low=-ANY, high=ANY),
        b=fields.number("threshold_b", default=-1, low=-ANY, high=ANY),
        pixel_perfect=fields.flag("pixel_perfect"),
        low_vram=fields.flag("low_vram", "lowvram"),
        union=fields.choice("union_control_type", among=UNIONS, default=None),
        layers=_layers(fields),
        region=None if region is None else picture(region, f"{name}: effective_region_mask"),
        shows_map=fields.flag("save_detected_map", default=True),
        crops=fields.flag("inpaint_crop_input_image", default=True),
    )


def beside_mask(unit: WebuiUnit) -> WebuiUnit:
    """The unit in img2img with a mask, where the host itself keeps what is around: then "inpaint_only" would do it once
    more, and is "inpaint", as sd-webui-controlnet has it."""
    if unit.module is None or unit.module.name != "inpaint_only":
        return unit
    return replace(unit, module=module("inpaint"))


def _says_nothing(value: Any) -> bool:
    """Also of {"image": "", "mask": ""} and of lists of such."""
    if isinstance(value, Mapping):
        return empty(value.get("image"))
    return all(map(_says_nothing, value)) if isinstance(value, list) else empty(value)


def _layers(fields: Fields) -> tuple[float, ...] | None:
    value = fields.get("advanced_weighting")
    if value is None:
        return None
    if not isinstance(value, list) or len(value) > LAYERS:
        raise fields.wrong("advanced_weighting", value, "a list of numbers")
    each = Fields(dict(zip(map(str, range(len(value))), value, strict=True)), f"{fields.where}: advanced_weighting")
    return tuple(each.number(key, default=0, low=-10, high=10) for key in each.values)
