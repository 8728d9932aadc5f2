"""img2img with a mask: what the pipeline gets to see of the picture, and how its result comes back into it. Sizes and
borders as in AUTOMATIC1111 1.10.1 (modules/processing.py, modules/masking.py).

hires fix: a picture is made small, enlarged, and gone over once more. Sizes as in AUTOMATIC1111 1.10.1
(modules/processing.py).

A request for pictures, txt2img or img2img, as the webui's clients send it, read into what it says.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from ..generation.inpainting import InpaintArea, make_inpaint_area
from ..generation.recipe import check_text
from ..generation.request import UPSCALERS, GenerationRequest, HiresFix
from ..maps.resize import fit
from .fields import JsonFields, is_empty_value
from .limits import RequestLimits
from .pictures import ImageMaskPair, check_total_pixels, decode_base64_image
from .units import RESIZE_MODES, WebuiUnit, parse_webui_unit

INPAINTING_FILLS = (
    ("fill", "fill"),
    ("original", "original"),
    ("latent noise", "noise"),
    ("latent nothing", "nothing"),
)
MAX_PADDING, MAX_MASK_BLUR = 256, 64  # pixels at most


def parse_inpaint_area(
    fields: JsonFields, image: np.ndarray, mask: np.ndarray, height: int, width: int, fit_mode: str
) -> InpaintArea | None:
    """What the request says of repainting `image` (H, W, 3) where `mask` (H, W, 3) is white, for pictures of that size;
    `how` the image comes to it. None where only the masked part is wanted and there is none."""
    both = fields.get("mask_blur")
    blurs = [fields.get_number(f"mask_blur_{axis}", default=4, low=0, high=MAX_MASK_BLUR) for axis in ("x", "y")]
    if both is not None:
        blurs = [fields.get_number("mask_blur", default=4, low=0, high=MAX_MASK_BLUR)] * 2
    padding = fields.get_int("inpaint_full_res_padding", default=0, low=0, high=MAX_PADDING)
    content = fields.get_choice("inpainting_fill", choices=INPAINTING_FILLS, default="fill")
    only_masked = fields.get_bool("inpaint_full_res", default=True)
    inverted = fields.get_bool("inpainting_mask_invert")
    return make_inpaint_area(
        image,
        mask,
        (height, width),
        fit_mode,
        blur=(blurs[0], blurs[1]),
        padding=padding,
        masked_content=content,
        only_masked=only_masked,
        is_inverted=inverted,
    )


def prepare_inpaint_mask(fields: JsonFields, mask: np.ndarray, image: np.ndarray) -> np.ndarray:
    """The mask (H, W, 3) in black and white, as large as its image, inverted where the request says so."""
    sized = cv2.resize(mask, image.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    white = (cv2.cvtColor(sized, cv2.COLOR_RGB2GRAY) > 127) != fields.get_bool("inpainting_mask_invert")
    return cv2.merge([np.where(white, np.uint8(255), np.uint8(0))] * 3)


UNSUPPORTED_HIRES_FIELDS = ("hr_prompt", "hr_negative_prompt", "hr_sampler_name", "hr_scheduler", "hr_checkpoint_name")
MAX_HIRES_SCALE = 4  # at most


def parse_hires_fix(fields: JsonFields, height: int, width: int, steps: int, limits: RequestLimits) -> HiresFix | None:
    """What the request for a first pass of this size and steps says of a second; None without `enable_hr`."""
    if not fields.get_bool("enable_hr"):
        return None
    for name in UNSUPPORTED_HIRES_FIELDS:
        if fields.get(name) is not None and fields.get(name) != fields.get(name.removeprefix("hr_")):
            raise ValueError(f"{fields.owner}: {name} is not offered by this server")
    x, y = (fields.get_int(f"hr_resize_{axis}", default=0, low=0, high=limits.max_side) for axis in ("x", "y"))
    scale = fields.get_number("hr_scale", default=2, low=1, high=MAX_HIRES_SCALE)
    if x and y:
        scale = max(x / width, y / height)
    elif x or y:
        scale = x / width if x else y / height
    over = _floor8(height * scale), _floor8(width * scale)
    size = (min(_floor8(y), over[0]), min(_floor8(x), over[1])) if x and y else over
    if min(size) < 64 or max(size) > limits.max_side:
        raise ValueError(
            f"{fields.owner}: the second pass makes {size[1]}x{size[0]}, expected sides of 64..{limits.max_side}"
        )
    return HiresFix(
        size,
        over,
        _read_upscaler(fields),
        fields.get_int("hr_second_pass_steps", default=0, low=0, high=limits.max_steps) or steps,
        fields.get_number("denoising_strength", default=0.75, low=0, high=1),
    )


def _floor8(side: float) -> int:
    return int(side + 1e-6) // 8 * 8  # 1e-6: 3 * (64 / 3) is 64


def _read_upscaler(fields: JsonFields) -> str:
    value = fields.values.get("hr_upscaler") or "Latent"  # "None" is one
    for known in UPSCALERS:
        if str(value).strip().casefold() == known.casefold():
            return known
    raise fields.make_error("hr_upscaler", value, "one of " + ", ".join(map(repr, UPSCALERS)))


SCRIPT_TITLES = (
    "controlnet",
    "controlnet m2m",
)  # scripts that are here; by the second webuiapi knows that ControlNet is
UNSUPPORTED_FIELDS = (
    "restore_faces",
    "tiling",
    "subseed_strength",
    "styles",
    "script_name",
    "refiner_checkpoint",
)


@dataclass(frozen=True, eq=False, kw_only=True)
class WebuiRequest(GenerationRequest):
    """A txt2img or img2img request of a webui client: a generation and what the server adds to it.

    `units` are the units that are on, with their places in the request, from 1. `init_source` is the initial image with
    its mask, which units without an image use; `fit` is how it came to the size of `init_image`. `image_count` images
    have the seeds `seed`, `seed` + 1, …"""

    image_count: int
    batch_size: int
    sampler_name: str
    noise_schedule: str
    units: tuple[tuple[int, WebuiUnit], ...]
    init_source: ImageMaskPair | None = None
    fit: str = "stretch"
    returns_images: bool = True
    checkpoint: str | None = None


def parse_generation_request(
    value: Any, default_size: tuple[int, int], limits: RequestLimits, is_img2img: bool
) -> WebuiRequest:
    """The request in a JSON object. `size` is the height and width where it says none. ValueError in one line."""
    fields = JsonFields.from_json(value, "the request")
    check_total_pixels(value)
    for name in UNSUPPORTED_FIELDS:
        if not is_empty_value(fields.values.get(name)) and fields.values[name] not in (False, 0):
            raise ValueError(f"the request: {name} is not offered by this server")
    height = fields.get_int("height", default=min(default_size[0], limits.max_side), low=64, high=limits.max_side)
    width = fields.get_int("width", default=min(default_size[1], limits.max_side), low=64, high=limits.max_side)
    if height % 8 or width % 8:
        raise ValueError(f"the request: size {width}x{height}: both sides must be multiples of 8")
    seed = fields.get_int("seed", default=-1, low=-1, high=2**63 - 1)
    batch = fields.get_int("batch_size", default=1, low=1, high=limits.max_images)
    count = batch * fields.get_int("n_iter", default=1, low=1, high=limits.max_images)
    if count > limits.max_images:
        raise ValueError(f"the request: {count} pictures, expected up to {limits.max_images}")
    override = JsonFields.from_json(fields.get("override_settings") or {}, "override_settings")
    steps = fields.get_int("steps", default=min(20, limits.max_steps), low=1, high=limits.max_steps)
    return WebuiRequest(
        prompt=_read_prompt(fields, "prompt"),
        negative_prompt=_read_prompt(fields, "negative_prompt"),
        seed=int.from_bytes(os.urandom(4), "big") if seed < 0 else seed,
        image_count=count,
        batch_size=batch,
        steps=steps,
        width=width,
        height=height,
        guidance_scale=fields.get_number("cfg_scale", default=7, low=0, high=100),
        sampler_name=fields.get_text("sampler_name") or fields.get_text("sampler_index"),
        noise_schedule=fields.get_text("scheduler"),
        clip_skip=override.get_int("CLIP_stop_at_last_layers", default=1, low=1, high=12) - 1,
        units=_read_units(fields, limits.max_units),
        returns_images=fields.get_bool("send_images", default=True),
        checkpoint=override.get_text("sd_model_checkpoint") or None,
        **(
            _read_init_image(fields, height, width)
            if is_img2img
            else {"hires_fix": parse_hires_fix(fields, height, width, steps, limits)}
        ),
    )


def _read_prompt(fields: JsonFields, name: str) -> str:
    value = fields.values.get(name)  # "none" is a prompt
    check_text(name, "" if value is None else value)
    return value or ""


def _read_init_image(fields: JsonFields, height: int, width: int) -> dict[str, Any]:
    images = fields.get("init_images")
    if not isinstance(images, list) or len(images) != 1:
        raise fields.make_error("init_images", images, "a list of one picture")
    how = fields.get_choice("resize_mode", choices=RESIZE_MODES[:4], default="stretch")
    image, mask = decode_base64_image(images[0], "init_images"), fields.get("mask")
    found: dict[str, Any] = {"init_source": (image, None), "fit": how, "init_image": fit(image, height, width, how)}
    found["strength"] = fields.get_number("denoising_strength", default=0.75, low=0, high=1)
    if mask is not None:
        white = prepare_inpaint_mask(fields, decode_base64_image(mask, "mask"), image)
        found |= {
            "init_source": (image, white),
            "inpaint_area": parse_inpaint_area(fields, image, white, height, width, how),
        }
    return found


def _read_units(fields: JsonFields, max_units: int) -> tuple[tuple[int, WebuiUnit], ...]:
    """From alwayson_scripts, else from the older controlnet_units."""
    scripts = JsonFields.from_json(fields.get("alwayson_scripts") or {}, "alwayson_scripts").values
    listed: list[Any] = []
    for title, script in scripts.items():
        if title.casefold() not in SCRIPT_TITLES:
            raise ValueError(f"alwayson_scripts: always on script {title!r:.80} not found")
        args = script.get("args") if isinstance(script, Mapping) else script
        if args is not None and not isinstance(args, list):
            raise ValueError(f"alwayson_scripts: args of {title} is {type(args).__name__}, expected a list of units")
        listed += args or []
    if not listed:
        legacy = fields.get("controlnet_units") or []
        if not isinstance(legacy, list):
            raise fields.make_error("controlnet_units", legacy, "a list of units")
        listed = legacy
    if len(listed) > max_units:
        raise ValueError(f"{len(listed)} units, expected up to {max_units}")
    units = [(i, parse_webui_unit(unit, f"unit {i}")) for i, unit in enumerate(listed, 1)]
    return tuple((i, unit) for i, unit in units if unit is not None)
