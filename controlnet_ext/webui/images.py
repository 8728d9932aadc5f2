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
from ..generation.inpainting import Postprocess
from ..maps.resize import fit
from ..sdwebui.pictures import ImageMaskPair
from ..sdwebui.units import RESIZE_MODES, WebuiUnit, without_own_restore
from . import settings

INPUT_FOLDER = "controlnet"  # within a folder of results
INPUT_LABELS = {
    "image": "Image File",
    "mask": "Mask File",
    "effective_region_mask": "Region File",
}  # fields in PNG info
FILE_NAME_PATTERN = r"[0-9a-f]{32}\.png"


def save_input(pixels: np.ndarray, folder: Path) -> str:
    """The name, by its content, of a picture (H, W, 3) uint8 as a PNG in this folder; one that is there already is not
    written again."""
    shape = "x".join(map(str, pixels.shape))
    path = folder / f"{hashlib.sha256(shape.encode() + pixels.tobytes()).hexdigest()[:32]}.png"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_image(path, pixels)
    return path.name


def save_unit_inputs(unit: WebuiUnit, p: Any) -> str:
    """What PNG info says of a unit's pictures, which are saved beside the results of the request `p`: ", Image File:
    ….png". Nothing where results are not saved, the settings say no, or the unit has several images."""
    if not settings.get_setting("controlnet_save_unit_images", True) or not p.save_samples() or len(unit.images) > 1:
        return ""
    image, mask = unit.images[0] if unit.images else (None, None)
    own = {"image": image, "mask": mask, "effective_region_mask": unit.region_mask}
    folder = Path(p.outpath_samples) / INPUT_FOLDER
    return "".join(
        f", {INPUT_LABELS[field]}: {save_input(each, folder)}" for field, each in own.items() if each is not None
    )


def load_saved_input(text: str, field: str) -> np.ndarray | None:
    """The picture (H, W, 3) uint8 RGB that a unit's text names for this field; None where it names none, or there is no
    such picture in the host's folders."""
    found = re.search(rf"(?:^|, ){INPUT_LABELS[field]}: ({FILE_NAME_PATTERN})(?:,|$)", text)
    if found is None:
        return None
    for folder in settings.list_result_folders():
        path = folder / INPUT_FOLDER / found[1]
        if path.is_file() and not path.is_symlink():
            return _read_image_or_none(path)
    return None


def _read_image_or_none(path: Path) -> np.ndarray | None:
    try:
        return read_image(path)
    except ValueError:
        return None


def resolve_unit_images(unit: WebuiUnit, p: Any) -> WebuiUnit:
    """The unit with the host's picture where it has none of its own, and of each image the part that is repainted. For
    a request that the host has initialised. ValueError where there is no image."""
    if not unit.images:
        image, mask = _get_init_image(p)
        unit = replace(unit, images=((image, mask if _is_inpaint(unit) else None),), fit=_get_host_fit(p))
    elif not _is_inpaint(unit) and settings.get_setting("controlnet_ignore_noninpaint_mask", False):
        unit = replace(unit, images=tuple((image, None) for image, _ in unit.images))
    if getattr(p, "image_mask", None) is not None:
        unit = without_own_restore(unit)
    box = getattr(p, "paste_to", None)
    if not unit.crops_to_inpaint_area or box is None or not p.inpaint_full_res or p.image_mask is None:
        return unit
    width, height = p.image_mask.size
    seen = [_crop_fitted(image, width, height, box, unit.fit) for image, _ in unit.images]
    masks = [None if mask is None else _crop_fitted(mask, width, height, box, unit.fit) for _, mask in unit.images]
    images = tuple(zip(seen, masks, strict=True))
    return replace(unit, images=images, fit="fill")


def apply_finishes(images: Any, finishes: Sequence[Postprocess]) -> None:
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
        save_input(pixels, settings.get_map_folder())


def _is_inpaint(unit: WebuiUnit) -> bool:
    return unit.module is not None and unit.module.makes == "inpaint"


def _get_init_image(p: Any) -> ImageMaskPair:
    images = [image for image in getattr(p, "init_images", None) or () if image is not None]
    if not images:
        raise ValueError("it is on and has no image")
    mask = getattr(p, "image_mask", None)
    if mask is None:
        return np.asarray(images[0].convert("RGB")), None
    painted = np.asarray(mask.convert("RGB"))
    return np.asarray(images[0].convert("RGB")), 255 - painted if p.inpainting_mask_invert else painted


def _get_host_fit(p: Any) -> str:
    """The host's own way of resizing img2img's picture."""
    mode = int(getattr(p, "resize_mode", 0) or 0)
    return RESIZE_MODES[mode][1] if mode < 4 else "stretch"


def _crop_fitted(pixels: np.ndarray, width: int, height: int, crop_box: tuple[int, ...], fit_mode: str) -> np.ndarray:
    """What lies in the box (x, y, width, height) of pixels fitted to the picture's size."""
    x, y, w, h = crop_box
    return np.ascontiguousarray(fit(pixels, height, width, fit_mode)[y : y + h, x : x + w])
