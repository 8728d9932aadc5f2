"""Inputs of a request's units: units as the panel's components, objects and other scripts give them; img2img's image
and mask; and the units' own images, saved for PNG info.

Units' own images are saved beside the results that they guided. PNG info names them by their content, and the names are
looked for in one folder within each of the host's folders of results, so that a text from elsewhere makes nothing else
be read.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from ..files.image_reader import read_image, read_mask
from ..files.image_writer import write_image
from ..generation.inpainting import Postprocess
from ..sdwebui.build import HostInputs, InpaintCrop
from ..sdwebui.images import ImageMaskPair
from ..sdwebui.units import RESIZE_MODES, WebuiUnit
from . import host
from .gradio_images import read_canvas

PANEL_UNIT_FIELDS = (
    *("enabled", "image", "mask", "module", "model", "weight", "weight_schedule", "guidance_start", "guidance_end"),
    *("control_mode", "resize_mode", "hr_option", "processor_res", "threshold_a", "threshold_b", "pixel_perfect"),
    *("low_vram", "union_control_type", "advanced_weighting", "effective_region_mask", "save_detected_map"),
    *("batch_folder", "loopback"),
)
PANEL_ONLY_FIELDS = ("batch_folder", "loopback")  # no request's JSON names a folder
PROCESSING_ATTRIBUTES = {  # of a request, by which scripts of old set a field of all units, or by a list one of each
    "control_net_input_image": "image",
    "control_net_image": "image",
    "control_net_lowvram": "low_vram",
    "control_net_pres": "processor_res",
    "control_net_pthr_a": "threshold_a",
    "control_net_pthr_b": "threshold_b",
    "control_net_guidance_strength": "guidance_end",
    **{
        f"control_net_{name}": name
        for name in (
            *("enabled", "module", "model", "weight", "resize_mode", "guidance_start", "guidance_end"),
            *("control_mode", "pixel_perfect"),
        )
    },
}
AXES_ATTRIBUTE = "controlnet_axes"  # of a request: what the XYZ script sets


def iter_panel_units(args: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """Yield the units in the values of the panel's components."""
    for begin in range(0, len(args) - len(PANEL_UNIT_FIELDS) + 1, len(PANEL_UNIT_FIELDS)):
        values = dict(zip(PANEL_UNIT_FIELDS, args[begin : begin + len(PANEL_UNIT_FIELDS)], strict=True))
        yield {
            **values,
            "image": read_canvas(values["image"]),
            "advanced_weighting": _parse_layer_weights(values["advanced_weighting"]),
        }


def parse_unit_arguments(args: Sequence[Any]) -> list[dict[str, Any]]:
    """Return the units at their places. `args` are the panel's values, of which the first is a bool, or objects and
    nulls, after which the host leaves the panel's own values. Raises ValueError for anything else."""
    args = list(args)
    if args and isinstance(args[0], bool):
        return list(iter_panel_units(args))
    if args and args[0] is not None and not isinstance(args[0], Mapping):
        raise ValueError(f"unit 1 is {args[0]!r:.60}, expected an object")
    entries = list(takewhile(lambda each: each is None or isinstance(each, Mapping), args))
    while entries and entries[-1] is None:
        entries.pop()
    return [{key: each[key] for key in each if key not in PANEL_ONLY_FIELDS} if each else {} for each in entries]


def read_request_units(args: Sequence[Any], p: Any, with_script_control: bool) -> list[dict[str, Any]]:
    """Return the units of a request as the XYZ script, and with `with_script_control` other scripts, changed them."""
    units = parse_unit_arguments(args)
    changes = dict(vars(p).get(AXES_ATTRIBUTE, {}))
    if with_script_control:
        changes |= {
            field: getattr(p, name)
            for name, field in PROCESSING_ATTRIBUTES.items()
            if getattr(p, name, None) is not None
        }
    for field, value in changes.items():
        each = value if isinstance(value, list | tuple) else [value] * len(units)
        for unit, setting in zip(units, each, strict=False):
            if setting is not None:
                unit[field] = setting
    return units


def _parse_layer_weights(text: Any) -> list[float] | None:
    words = str(text or "").replace(",", " ").split()
    try:
        return [float(word) for word in words] or None
    except ValueError as error:
        raise ValueError(f"layer weights {text!r:.60}: expected numbers, such as 1, 0.8, 0.5") from error


INPUT_FOLDER = "controlnet"  # within a folder of results
INPUT_LABELS = {
    "image": "Image File",
    "mask": "Mask File",
    "effective_region_mask": "Region File",
}  # fields in PNG info
FILE_NAME_PATTERN = r"[0-9a-f]{32}\.png"


def save_input(pixels: np.ndarray, folder: Path) -> str:
    """Save an image (H, W, 3) uint8 as a PNG in this folder and return its file name, a hash of its content. An
    existing file is not written again."""
    shape = "x".join(map(str, pixels.shape))
    path = folder / f"{hashlib.sha256(shape.encode() + pixels.tobytes()).hexdigest()[:32]}.png"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_image(path, pixels)
    return path.name


def save_unit_inputs(unit: WebuiUnit, p: Any) -> str:
    """Save a unit's images beside the results of the request `p` and return their part of PNG info: ", Image File:
    ….png". Nothing is saved where results are not, the settings forbid it, or the unit has several images."""
    if not host.get_setting("controlnet_save_unit_images", True) or not p.save_samples() or len(unit.images) > 1:
        return ""
    image, mask = unit.images[0] if unit.images else (None, None)
    own = {"image": image, "mask": mask, "effective_region_mask": unit.region_mask}
    folder = Path(p.outpath_samples) / INPUT_FOLDER
    return "".join(
        f", {INPUT_LABELS[field]}: {save_input(each, folder)}" for field, each in own.items() if each is not None
    )


def load_saved_input(text: str, field: str) -> np.ndarray | None:
    """Return the image (H, W, 3) uint8 RGB that a unit's text names for this field; None if it names none or the file
    is not in the host's folders."""
    match = re.search(rf"(?:^|, ){INPUT_LABELS[field]}: ({FILE_NAME_PATTERN})(?:,|$)", text)
    if match is None:
        return None
    for folder in host.list_result_folders():
        path = folder / INPUT_FOLDER / match[1]
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
        _get_hires_size(p),
        _get_init_image(p),
        _get_init_fit(p),
        restores_unmasked=mask is not None,
        crop=crop,
        is_tile=is_upscale_tile(p),
        tile=_find_upscale_tile(p),
        ignores_stray_masks=bool(host.get_setting("controlnet_ignore_noninpaint_mask", False)),
        mask_blur=host.get_inpaint_blur(),
    )


def _get_hires_size(p: Any) -> tuple[int, int] | None:
    """Height and width of the second pass in pixels; what the host cuts off the enlarged latents does not count."""
    if not getattr(p, "enable_hr", False):
        return None
    height, width = p.hr_upscale_to_y // 8 - p.truncate_y, p.hr_upscale_to_x // 8 - p.truncate_x
    return 8 * height, 8 * width


def is_upscale_tile(p: Any) -> bool:
    """Return True for a request in which the host's script SD upscale draws a tile; it takes all results for tiles."""
    return any("SD upscale" in key for key in getattr(p, "extra_generation_params", ()))


def _find_upscale_tile(p: Any) -> InpaintCrop | None:
    """Return the tile that the host's script SD upscale draws; None if it draws several at once, or is not at work.

    It tells nobody, so that its variables are read: the `grid` of modules.images.split_grid, whose tiles are img2img's
    images, one run after the other (AUTOMATIC1111 1.10.1, scripts/sd_upscale.py).
    """
    images, frame = list(getattr(p, "init_images", None) or ()), sys._getframe(1)
    while frame is not None and len(images) == 1:
        grid: Any = frame.f_locals.get("grid") if frame.f_locals.get("p") is p else None
        for top, height, row in getattr(grid, "tiles", None) or ():
            for left, width, image in row:
                if image is images[0]:
                    return InpaintCrop(grid.image_h, grid.image_w, (left, top, left + width, top + height))
        frame = frame.f_back  # type: ignore[assignment]
    return None


def apply_finishes(images: Any, finishes: Sequence[Postprocess]) -> None:
    """Apply processing to finished images, a tensor `(B, 3, H, W)` in 0..1, in place. The host truncates 255 times a
    value to an integer, so each value is set half a step above its own."""
    for image in images:
        pixels = np.rint(image.cpu().permute(1, 2, 0).numpy() * 255).astype(np.uint8)
        for finish in finishes:
            pixels = finish(pixels)
        image.copy_(image.new_tensor((pixels + np.float32(0.5)) / 255).permute(2, 0, 1).clamp(max=1))


def save_maps(maps: Sequence[np.ndarray]) -> None:
    """Save maps (H, W, 3) uint8 as PNGs in the folder of the settings."""
    for pixels in maps:
        save_input(pixels, host.get_map_folder())


def _get_init_image(p: Any) -> ImageMaskPair | None:
    """img2img's image (H, W, 3) uint8 RGB with its mask, white where to repaint; None in txt2img."""
    images = [image for image in getattr(p, "init_images", None) or () if image is not None]
    if not images:
        return None
    image, mask = np.asarray(images[0].convert("RGB")), getattr(p, "image_mask", None)
    if mask is None:
        return image, None
    mask_pixels = read_mask(mask)
    return image, 255 - mask_pixels if p.inpainting_mask_invert else mask_pixels


def _get_init_fit(p: Any) -> str:
    """The host's way of resizing img2img's image."""
    mode = int(getattr(p, "resize_mode", 0) or 0)
    return RESIZE_MODES[mode][1] if mode < 4 else "stretch"
