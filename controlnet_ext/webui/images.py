"""The images that units look at where the host has some of its own: img2img's picture, its mask, the part that "only
masked" repaints.

Units' own pictures, saved beside those they guided, so that PNG info brings them back.

PNG info names them by their content, and the names are looked for in one folder within each of the host's folders of
results, so a text from elsewhere makes nothing else be read.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..files.image_reader import read_image
from ..files.image_writer import write_image
from ..generation.inpainting import Finish
from ..maps.resize import fit
from ..sdwebui.pictures import Pair
from ..sdwebui.units import FITS, WebuiUnit, beside_mask
from . import settings

FOLDER = "controlnet"  # within a folder of results
WORDS = {"image": "Image File", "mask": "Mask File", "effective_region_mask": "Region File"}  # fields in PNG info
NAME = r"[0-9a-f]{32}\.png"


def saved(pixels: np.ndarray, folder: Path) -> str:
    """The name, by its content, of a picture (H, W, 3) uint8 as a PNG in this folder; one that is there already is not
    written again."""
    shape = "x".join(map(str, pixels.shape))
    path = folder / f"{hashlib.sha256(shape.encode() + pixels.tobytes()).hexdigest()[:32]}.png"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_image(path, pixels)
    return path.name


def keep(unit: WebuiUnit, p: Any) -> str:
    """What PNG info says of a unit's pictures, which are saved beside the results of the request `p`: ", Image File:
    ….png". Nothing where results are not saved, the settings say no, or the unit has several images."""
    if not settings.value("controlnet_save_unit_images", True) or not p.save_samples() or len(unit.images) > 1:
        return ""
    image, mask = unit.images[0] if unit.images else (None, None)
    own = {"image": image, "mask": mask, "effective_region_mask": unit.region}
    folder = Path(p.outpath_samples) / FOLDER
    return "".join(f", {WORDS[field]}: {saved(each, folder)}" for field, each in own.items() if each is not None)


def brought(text: str, field: str) -> np.ndarray | None:
    """The picture (H, W, 3) uint8 RGB that a unit's text names for this field; None where it names none, or there is no
    such picture in the host's folders."""
    found = re.search(rf"(?:^|, ){WORDS[field]}: ({NAME})(?:,|$)", text)
    if found is None:
        return None
    for folder in settings.result_folders():
        path = folder / FOLDER / found[1]
        if path.is_file() and not path.is_symlink():
            return _read(path)
    return None


def _read(path: Path) -> np.ndarray | None:
    try:
        return read_image(path)
    except ValueError:
        return None


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
