"""A request for pictures, txt2img or img2img, as the webui's clients send it, read into what it says."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..generation.recipe import check_text
from ..maps.fit import fit
from .fields import Fields, empty
from .limits import Limits
from .pictures import Pair, check_sizes, picture
from .requests import Repaint, painted, read_repaint
from .second_pass import SecondPass, read_second_pass
from .units import FITS, WebuiUnit, read_unit

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
