"""Images of a request in the webui: what units take from the host, and the units' own images saved for PNG info.

Units' own images are saved beside the results that they guided. PNG info names them by their content, and the names are
looked for in one folder within each of the host's folders of results, so that a text from elsewhere makes nothing else
be read.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..files.image_reader import read_image
from ..files.image_writer import write_image
from ..generation.inpainting import Postprocess
from ..sdwebui.build import HostInputs, InpaintCrop
from ..sdwebui.pictures import ImageMaskPair
from ..sdwebui.units import RESIZE_MODES, WebuiUnit
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


def get_host_inputs(p: Any) -> HostInputs:
    """Return the properties of a webui request on which its units depend; `p` is the host's processing object after its
    `init`, which knows all sizes."""
    mask, box, size = (
        getattr(p, "image_mask", None),
        getattr(p, "paste_to", None),
        (p.height // 8 * 8, p.width // 8 * 8),
    )
    crop = None
    if mask is not None and box is not None and p.inpaint_full_res:
        left, top, width, height = box
        crop = InpaintCrop(mask.size[1], mask.size[0], (left, top, left + width, top + height))
    return HostInputs(
        size,
        _get_init_image(p),
        _get_init_fit(p),
        restores_unmasked=mask is not None,
        crop=crop,
        ignores_stray_masks=bool(settings.get_setting("controlnet_ignore_noninpaint_mask", False)),
        mask_blur=settings.get_inpaint_blur(),
    )


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


def _get_init_image(p: Any) -> ImageMaskPair | None:
    """img2img's image (H, W, 3) uint8 RGB with its mask, white where to repaint; None in txt2img."""
    images = [image for image in getattr(p, "init_images", None) or () if image is not None]
    if not images:
        return None
    image, mask = np.asarray(images[0].convert("RGB")), getattr(p, "image_mask", None)
    if mask is None:
        return image, None
    painted = np.asarray(mask.convert("RGB"))
    return image, 255 - painted if p.inpainting_mask_invert else painted


def _get_init_fit(p: Any) -> str:
    """The host's way of resizing img2img's image."""
    mode = int(getattr(p, "resize_mode", 0) or 0)
    return RESIZE_MODES[mode][1] if mode < 4 else "stretch"
