"""The images that units look at where the host has some of its own: img2img's picture, its mask, the part that "only
masked" repaints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..generation.finishing import Finish
from ..maps.fit import fit
from ..sdwebui.pictures import Pair
from ..sdwebui.units import FITS, WebuiUnit, beside_mask
from . import settings
from .originals import saved


def with_images(unit: WebuiUnit, p: Any) -> WebuiUnit:
    """The unit with the host's picture where it has none of its own, and of each image the part that is repainted. For
    a request that the host has initialised. ValueError where there is no image."""
    if not unit.images:
        image, mask = _initial(p)
        unit = replace(unit, images=((image, mask if _inpaints(unit) else None),), fit=_fit(p))
    elif not _inpaints(unit) and settings.value("controlnet_ignore_noninpaint_mask", False):
        unit = replace(unit, images=tuple((image, None) for image, _ in unit.images))
    if getattr(p, "image_mask", None) is not None:
        unit = beside_mask(unit)
    box = getattr(p, "paste_to", None)
    if not unit.crops or box is None or not p.inpaint_full_res or p.image_mask is None:
        return unit
    width, height = p.image_mask.size
    seen = [_part(image, width, height, box, unit.fit) for image, _ in unit.images]
    masks = [None if mask is None else _part(mask, width, height, box, unit.fit) for _, mask in unit.images]
    images = tuple(zip(seen, masks, strict=True))
    return replace(unit, images=images, fit="fill")


def finished(images: Any, finishes: Sequence[Finish]) -> None:
    """The pictures, a tensor `(B, 3, H, W)` in 0..1, as these finish them, in place. The host cuts 255 times a number
    to a whole one, so that each stands half a step above its own."""
    for image in images:
        pixels = np.rint(image.cpu().permute(1, 2, 0).numpy() * 255).astype(np.uint8)
        for finish in finishes:
            pixels = finish(pixels)
        image.copy_(image.new_tensor((pixels + np.float32(0.5)) / 255).permute(2, 0, 1).clamp(max=1))


def save_maps(maps: Sequence[np.ndarray]) -> None:
    """As PNGs in the folder of the settings."""
    for pixels in maps:
        saved(pixels, settings.map_folder())


def _inpaints(unit: WebuiUnit) -> bool:
    return unit.module is not None and unit.module.makes == "inpaint"


def _initial(p: Any) -> Pair:
    images = [image for image in getattr(p, "init_images", None) or () if image is not None]
    if not images:
        raise ValueError("it is on and has no image")
    mask = getattr(p, "image_mask", None)
    if mask is None:
        return np.asarray(images[0].convert("RGB")), None
    painted = np.asarray(mask.convert("RGB"))
    return np.asarray(images[0].convert("RGB")), 255 - painted if p.inpainting_mask_invert else painted


def _fit(p: Any) -> str:
    """The host's own way of resizing img2img's picture."""
    mode = int(getattr(p, "resize_mode", 0) or 0)
    return FITS[mode][1] if mode < 4 else "stretch"


def _part(pixels: np.ndarray, width: int, height: int, box: tuple[int, ...], how: str) -> np.ndarray:
    """What lies in the box (x, y, width, height) of pixels fitted to the picture's size."""
    x, y, w, h = box
    return np.ascontiguousarray(fit(pixels, height, width, how)[y : y + h, x : x + w])
