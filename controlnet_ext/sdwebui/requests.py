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

from ..generation.recipe import check_text
from ..maps.resize import fit
from .fields import Fields, empty
from .limits import Limits
from .pictures import Pair, check_sizes, picture
from .units import FITS, WebuiUnit, read_unit

FILLINGS = (("fill", "fill"), ("original", "original"), ("latent noise", "noise"), ("latent nothing", "nothing"))
PADDING, BLUR = 256, 64  # pixels at most
SQUARES = (1024, 256, 64, 16, 4, 2)  # pixels over which `filled` takes averages, one after the other
Box = tuple[int, int, int, int]  # left, top, right, bottom


@dataclass(frozen=True, eq=False)
class Repaint:
    """`image` (h, w, 3) and `mask` (h, w), white where to repaint, as large as the picture to be made. Its pixels come
    into `canvas` (H, W, 3) at `box` as far as `shows` (H, W) is white. `content` is what the masked part begins with,
    of `FILLINGS`; `only_masked`: the box is that of the mask, else the whole canvas."""

    image: np.ndarray
    mask: np.ndarray
    content: str
    canvas: np.ndarray
    shows: np.ndarray
    box: Box
    only_masked: bool
    blur: float
    padding: int
    inverted: bool

    def pasted(self, pixels: np.ndarray) -> np.ndarray:
        """The canvas with the picture made (h, w, 3)."""
        left, top, right, bottom = self.box
        result = self.canvas.copy()
        result[top:bottom, left:right] = fit(pixels, bottom - top, right - left, "crop")
        share = self.shows[..., None].astype(np.float32) / 255
        return np.rint(result * share + self.canvas * (1 - share)).astype(np.uint8)

    def part(self, pixels: np.ndarray, how: str) -> np.ndarray:
        """What a control image, which comes to the canvas by `how`, shows of the box."""
        left, top, right, bottom = self.box
        height, width = self.canvas.shape[:2]
        return np.ascontiguousarray(fit(pixels, height, width, how)[top:bottom, left:right])


def read_repaint(
    fields: Fields, image: np.ndarray, mask: np.ndarray, height: int, width: int, how: str
) -> Repaint | None:
    """What the request says of repainting `image` (H, W, 3) where `mask` (H, W, 3) is white, for pictures of that size;
    `how` the image comes to it. None where only the masked part is wanted and there is none."""
    both = fields.get("mask_blur")
    blurs = [fields.number(f"mask_blur_{axis}", default=4, low=0, high=BLUR) for axis in ("x", "y")]
    if both is not None:
        blurs = [fields.number("mask_blur", default=4, low=0, high=BLUR)] * 2
    padding = fields.whole("inpaint_full_res_padding", default=0, low=0, high=PADDING)
    content = fields.choice("inpainting_fill", among=FILLINGS, default="fill")
    only_masked = fields.flag("inpaint_full_res", default=True)
    inverted = fields.flag("inpainting_mask_invert")
    soft = _blurred(mask[..., 0], *blurs)
    if only_masked:
        if not soft.any():
            return None
        canvas, shows, box = image, soft, _box(soft, padding, height, width)
        left, top, right, bottom = box
        seen = fit(np.ascontiguousarray(image[top:bottom, left:right]), height, width, "fill")
        soft = fit(cv2.merge([soft[top:bottom, left:right]] * 3), height, width, "fill")[..., 0]
    else:
        canvas = seen = fit(image, height, width, how)
        soft = fit(cv2.merge([soft] * 3), height, width, how)[..., 0]
        shows, box = np.minimum(soft.astype(np.uint16) * 2, 255).astype(np.uint8), (0, 0, width, height)
    begins = seen if content == "original" else filled(seen, soft)
    return Repaint(begins, soft, content, canvas, shows, box, only_masked, max(blurs), padding, inverted)


def painted(fields: Fields, mask: np.ndarray, image: np.ndarray) -> np.ndarray:
    """The mask (H, W, 3) in black and white, as large as its image, inverted where the request says so."""
    sized = cv2.resize(mask, image.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    white = (cv2.cvtColor(sized, cv2.COLOR_RGB2GRAY) > 127) != fields.flag("inpainting_mask_invert")
    return cv2.merge([np.where(white, np.uint8(255), np.uint8(0))] * 3)


def filled(pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The picture (H, W, 3) with the masked part in the colours around it, the nearer the more."""
    kept = 1 - mask[..., None].astype(np.float32) / 255
    own = pixels * kept
    found = np.full_like(own, 127)
    for square in SQUARES:
        there = np.atleast_3d(_averaged(kept, square))
        near = _averaged(own, square) / np.maximum(there, 1e-6)
        found += np.minimum(4 * there, 1) * (near - found)
    return np.rint(found * (1 - kept) + own).clip(0, 255).astype(np.uint8)


def _averaged(x: np.ndarray, square: int) -> np.ndarray:
    height, width = x.shape[:2]
    small = cv2.resize(x, (max(width // square, 1), max(height // square, 1)), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)


def _blurred(mask: np.ndarray, x: float, y: float) -> np.ndarray:
    for sigma, across in ((x, True), (y, False)):
        if sigma:
            side = 2 * int(2.5 * sigma + 0.5) + 1
            mask = cv2.GaussianBlur(mask, (side, 1) if across else (1, side), sigma)
    return mask


def _box(mask: np.ndarray, padding: int, height: int, width: int) -> Box:
    """Around what is not black, with so much beside it, and of the shape of (height, width) as far as the mask goes."""
    spans = []
    for axis, limit in ((0, mask.shape[1]), (1, mask.shape[0])):
        (places,) = np.nonzero(mask.any(axis=axis))
        spans.append((max(int(places[0]) - padding, 0), min(int(places[-1]) + 1 + padding, limit)))
    (left, right), (top, bottom) = spans
    left, right = _grown(left, right, int((bottom - top) * width / height), mask.shape[1])
    top, bottom = _grown(top, bottom, int((right - left) * height / width), mask.shape[0])
    return left, top, right, bottom


def _grown(start: int, stop: int, length: int, limit: int) -> tuple[int, int]:
    """At least that long about its middle, moved to lie in 0..limit, or all of it."""
    more = max(length - (stop - start), 0)
    start, stop = start - more // 2, stop + more - more // 2
    move = max(-start, 0) - max(stop - limit, 0) if stop - start <= limit else -start
    return max(start + move, 0), min(stop + move, limit)


LATENT = {  # upscaler: torch's mode and antialias, of the latents
    "Latent": ("bilinear", False),
    "Latent (antialiased)": ("bilinear", True),
    "Latent (bicubic)": ("bicubic", False),
    "Latent (bicubic antialiased)": ("bicubic", True),
    "Latent (nearest)": ("nearest", False),
    "Latent (nearest-exact)": ("nearest-exact", False),
}
PIXELS = {"None": "lanczos", "Lanczos": "lanczos", "Nearest": "nearest"}  # upscaler: of the picture
UPSCALERS = (*LATENT, *PIXELS)
UNSUPPORTED_HIRES_FIELDS = ("hr_prompt", "hr_negative_prompt", "hr_sampler_name", "hr_scheduler", "hr_checkpoint_name")
SCALE = 4  # at most


@dataclass(frozen=True)
class SecondPass:
    """The picture of the first pass enlarged to `over`, (height, width) that cover `size` and are cut to it, then
    `steps` at that strength."""

    size: tuple[int, int]
    over: tuple[int, int]
    upscaler: str
    steps: int
    strength: float


def read_second_pass(fields: Fields, height: int, width: int, steps: int, limits: Limits) -> SecondPass | None:
    """What the request for a first pass of this size and steps says of a second; None without `enable_hr`."""
    if not fields.flag("enable_hr"):
        return None
    for name in UNSUPPORTED_HIRES_FIELDS:
        if fields.get(name) is not None and fields.get(name) != fields.get(name.removeprefix("hr_")):
            raise ValueError(f"{fields.where}: {name} is not offered by this server")
    x, y = (fields.whole(f"hr_resize_{axis}", default=0, low=0, high=limits.side) for axis in ("x", "y"))
    scale = fields.number("hr_scale", default=2, low=1, high=SCALE)
    if x and y:
        scale = max(x / width, y / height)
    elif x or y:
        scale = x / width if x else y / height
    over = _eights(height * scale), _eights(width * scale)
    size = (min(_eights(y), over[0]), min(_eights(x), over[1])) if x and y else over
    if min(size) < 64 or max(size) > limits.side:
        raise ValueError(
            f"{fields.where}: the second pass makes {size[1]}x{size[0]}, expected sides of 64..{limits.side}"
        )
    return SecondPass(
        size,
        over,
        _upscaler(fields),
        fields.whole("hr_second_pass_steps", default=0, low=0, high=limits.steps) or steps,
        fields.number("denoising_strength", default=0.75, low=0, high=1),
    )


def _eights(side: float) -> int:
    return int(side + 1e-6) // 8 * 8  # 1e-6: 3 * (64 / 3) is 64


def _upscaler(fields: Fields) -> str:
    value = fields.values.get("hr_upscaler") or "Latent"  # "None" is one
    for known in UPSCALERS:
        if str(value).strip().casefold() == known.casefold():
            return known
    raise fields.wrong("hr_upscaler", value, "one of " + ", ".join(map(repr, UPSCALERS)))


TITLES = ("controlnet", "controlnet m2m")  # scripts that are here; by the second webuiapi knows that ControlNet is
NOT_OFFERED = (
    "restore_faces",
    "tiling",
    "subseed_strength",
    "styles",
    "script_name",
    "refiner_checkpoint",
)


@dataclass(frozen=True, eq=False)
class Generation:
    """`units` are those that are on, with their places in the request, from 1. `source` is the initial image with its
    mask, at which units without an image look; by `fit` it becomes `init`, (H, W, 3) as large as the pictures; what
    its mask says is `repaint`."""

    prompt: str
    negative: str
    seed: int
    count: int
    batch: int
    steps: int
    width: int
    height: int
    guidance: float
    sampler: str
    spacing: str
    clip_skip: int
    units: tuple[tuple[int, WebuiUnit], ...]
    source: Pair | None = None
    fit: str = "stretch"
    init: np.ndarray | None = None
    repaint: Repaint | None = None
    second: SecondPass | None = None
    strength: float = 1.0
    sends_images: bool = True
    model: str | None = None

    @property
    def denoising(self) -> float | None:
        """The strength of what begins with a picture; None where nothing does."""
        return self.second.strength if self.second else None if self.init is None else self.strength


def read_generation(value: Any, size: tuple[int, int], limits: Limits, from_image: bool) -> Generation:
    """The request in a JSON object. `size` is the height and width where it says none. ValueError in one line."""
    fields = Fields.of(value, "the request")
    check_sizes(value)
    for name in NOT_OFFERED:
        if not empty(fields.values.get(name)) and fields.values[name] not in (False, 0):
            raise ValueError(f"the request: {name} is not offered by this server")
    height = fields.whole("height", default=min(size[0], limits.side), low=64, high=limits.side)
    width = fields.whole("width", default=min(size[1], limits.side), low=64, high=limits.side)
    if height % 8 or width % 8:
        raise ValueError(f"the request: size {width}x{height}: both sides must be multiples of 8")
    seed = fields.whole("seed", default=-1, low=-1, high=2**63 - 1)
    batch = fields.whole("batch_size", default=1, low=1, high=limits.pictures)
    count = batch * fields.whole("n_iter", default=1, low=1, high=limits.pictures)
    if count > limits.pictures:
        raise ValueError(f"the request: {count} pictures, expected up to {limits.pictures}")
    override = Fields.of(fields.get("override_settings") or {}, "override_settings")
    steps = fields.whole("steps", default=min(20, limits.steps), low=1, high=limits.steps)
    return Generation(
        prompt=_prompt(fields, "prompt"),
        negative=_prompt(fields, "negative_prompt"),
        seed=int.from_bytes(os.urandom(4), "big") if seed < 0 else seed,
        count=count,
        batch=batch,
        steps=steps,
        width=width,
        height=height,
        guidance=fields.number("cfg_scale", default=7, low=0, high=100),
        sampler=fields.text("sampler_name") or fields.text("sampler_index"),
        spacing=fields.text("scheduler"),
        clip_skip=override.whole("CLIP_stop_at_last_layers", default=1, low=1, high=12) - 1,
        units=_units(fields, limits.units),
        sends_images=fields.flag("send_images", default=True),
        model=override.text("sd_model_checkpoint") or None,
        **(
            _init(fields, height, width)
            if from_image
            else {"second": read_second_pass(fields, height, width, steps, limits)}
        ),
    )


def _prompt(fields: Fields, name: str) -> str:
    value = fields.values.get(name)  # "none" is a prompt
    check_text(name, "" if value is None else value)
    return value or ""


def _init(fields: Fields, height: int, width: int) -> dict[str, Any]:
    images = fields.get("init_images")
    if not isinstance(images, list) or len(images) != 1:
        raise fields.wrong("init_images", images, "a list of one picture")
    how = fields.choice("resize_mode", among=FITS[:4], default="stretch")
    image, mask = picture(images[0], "init_images"), fields.get("mask")
    found: dict[str, Any] = {"source": (image, None), "fit": how, "init": fit(image, height, width, how)}
    found["strength"] = fields.number("denoising_strength", default=0.75, low=0, high=1)
    if mask is not None:
        white = painted(fields, picture(mask, "mask"), image)
        found |= {"source": (image, white), "repaint": read_repaint(fields, image, white, height, width, how)}
    return found


def _units(fields: Fields, limit: int) -> tuple[tuple[int, WebuiUnit], ...]:
    """From alwayson_scripts, else from the older controlnet_units."""
    scripts = Fields.of(fields.get("alwayson_scripts") or {}, "alwayson_scripts").values
    listed: list[Any] = []
    for title, script in scripts.items():
        if title.casefold() not in TITLES:
            raise ValueError(f"alwayson_scripts: always on script {title!r:.80} not found")
        args = script.get("args") if isinstance(script, Mapping) else script
        if args is not None and not isinstance(args, list):
            raise ValueError(f"alwayson_scripts: args of {title} is {type(args).__name__}, expected a list of units")
        listed += args or []
    if not listed:
        legacy = fields.get("controlnet_units") or []
        if not isinstance(legacy, list):
            raise fields.wrong("controlnet_units", legacy, "a list of units")
        listed = legacy
    if len(listed) > limit:
        raise ValueError(f"{len(listed)} units, expected up to {limit}")
    units = [(i, read_unit(unit, f"unit {i}")) for i, unit in enumerate(listed, 1)]
    return tuple((i, unit) for i, unit in units if unit is not None)
