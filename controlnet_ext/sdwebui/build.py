"""From what a client's unit says to a `Unit`, with its map made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np

from ..generation.inpainting import MASK_BLUR, Postprocess, postprocess_for
from ..guidance.after_steps import ColorFix, post_step_for
from ..guidance.contract import ControlModel
from ..guidance.unit import Unit
from ..guidance.weighting import layer_scales
from ..maps.control_map import ControlMap
from ..maps.resize import compute_fit_resolution, fit, fit_for_outpainting
from ..models.map_types import MapTypeSelection
from ..preprocessors.registry import LoadedPreprocessor
from .modules import MAX_RESOLUTION, MIN_RESOLUTION, parameters_from_sliders
from .pictures import ImageMaskPair
from .units import WebuiUnit


@dataclass(frozen=True, eq=False)
class BuiltUnit:
    """A unit at work, the picture of its map (H, W, 3) as large as the result, the listed name of its model, what is
    done to pictures in the end, and the picture (H, W, 3) that a first pass begins with in its noise."""

    unit: Unit
    map_image: np.ndarray
    model_name: str
    finish: Postprocess | None = None
    initial_noise_image: np.ndarray | None = None

    def split_by_pass(self, has_hires_pass: bool) -> list[Unit]:
        """The unit; for hires fix two where the second pass has options of its own: the colours of tile_colorfix come
        from boxes twice as large there."""
        unit, after = self.unit, self.unit.after
        if not has_hires_pass or not isinstance(after, ColorFix) or unit.passes == "first":
            return [unit]
        second = replace(unit, passes="second", after=replace(after, variation=2 * after.variation))
        return [second] if unit.passes == "second" else [replace(unit, passes="first"), second]


def find_initial_noise_image(built_units: Sequence[BuiltUnit], has_hires_pass: bool) -> np.ndarray | None:
    """What the first pass begins with: of the first unit that acts in it and wants something."""
    acting = (each for each in built_units if not (has_hires_pass and each.unit.passes == "second"))
    return next((each.initial_noise_image for each in acting if each.initial_noise_image is not None), None)


def build_unit(
    webui_unit: WebuiUnit,
    model_name: str,
    net: ControlModel,
    load_preprocessor: Callable[[str], LoadedPreprocessor],
    size: tuple[int, int],
    blur: int = MASK_BLUR,
) -> BuiltUnit:
    """The unit, which has an image, for results of this height and width. ValueError, TypeError or FileNotFoundError in
    one line, without the unit's name. `ready` gives a preprocessor by name; `blur` is that of the border where an
    inpainted picture meets its original."""
    entry = webui_unit.module
    inpaints = entry is not None and entry.makes == "inpaint"
    sources = [_select_source(pair, inpaints) for pair in webui_unit.images]
    mask = webui_unit.images[0][1] if inpaints and len(sources) == 1 else None
    if entry is not None and inpaints and webui_unit.fit == "fill" and len(sources) == 1:
        mask = np.zeros_like(sources[0]) if mask is None else mask  # what is added around is to be painted
        if entry.needs_mask:
            sources[0], mask = fit_for_outpainting(sources[0], _resize_mask(mask, sources[0]), *size)
    maps = [_run_module(webui_unit, image, mask, load_preprocessor, size) for image in sources]
    white = None if mask is None else _resize_mask(mask, maps[0])
    shown = [fit(pixels, *size, webui_unit.fit) for pixels in maps]
    pictures: list[Any] = maps  # the host fits them, for each pass to its size
    if entry is not None:
        pictures = [ControlMap(pixels, entry.makes) for pixels in pictures]
    network: Any = net
    if webui_unit.union_type is not None and isinstance(net, MapTypeSelection):
        network = net.with_types(*[webui_unit.union_type] * len(sources))
    mode, layers = webui_unit.mode, webui_unit.layer_scales
    weight = webui_unit.weight if webui_unit.weight_schedule is None else webui_unit.weight_schedule
    if layers is not None:  # they replace weight and soft weights, which ours multiply
        weight, (mode, layers) = webui_unit.weight_schedule or 1.0, _override_layer_scales(mode, layers)
    how: Any = {"fit": webui_unit.fit, "mode": mode, "passes": webui_unit.hires}
    unit = Unit(
        network,
        tuple(pictures) if len(pictures) > 1 else pictures[0],
        weight,
        webui_unit.window,
        layers=layers,
        region=None
        if webui_unit.region_mask is None
        else cv2.cvtColor(webui_unit.region_mask, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255,
        inpaint=white,
        low_vram=webui_unit.low_vram,
        after=None
        if entry is None
        else post_step_for(entry, parameters_from_sliders(entry, -1, webui_unit.threshold_a, webui_unit.threshold_b)),
        **how,
    )
    if entry is None or (webui_unit.weight == 0 and webui_unit.weight_schedule is None):
        return BuiltUnit(unit, shown[0], model_name)
    finish = postprocess_for(entry, maps[0], white, webui_unit.fit, blur)
    return BuiltUnit(unit, shown[0], model_name, finish, shown[0] if entry.traits.starts_from_map else None)


def _run_module(
    webui_unit: WebuiUnit,
    image: np.ndarray,
    mask: np.ndarray | None,
    load_preprocessor: Callable[[str], LoadedPreprocessor],
    size: tuple[int, int],
) -> np.ndarray:
    """What the module makes of an image."""
    if webui_unit.module is None:
        return image
    given = parameters_from_sliders(
        webui_unit.module, webui_unit.resolution, webui_unit.threshold_a, webui_unit.threshold_b
    )
    if webui_unit.pixel_perfect and "resolution" in given:
        matching = compute_fit_resolution(image.shape[0], image.shape[1], *size, webui_unit.fit)
        given["resolution"] = min(max(matching, MIN_RESOLUTION), MAX_RESOLUTION)
    masked = _resize_mask(mask, image) if webui_unit.module.needs_mask and mask is not None else None
    return load_preprocessor(webui_unit.module.name)(image, masked, **given).pixels


def _select_source(pair: ImageMaskPair, is_inpaint: bool) -> np.ndarray:
    """The image; a partly painted mask instead of it, unless the module inpaints: a scribble on the canvas."""
    image, mask = pair
    if is_inpaint or mask is None or not (mask > 127).any() or (mask > 127).all():
        return image
    return mask


def _resize_mask(mask: np.ndarray, image: np.ndarray) -> np.ndarray:
    """The mask as large as its image, black and white."""
    sized = cv2.resize(mask, image.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    return np.where(sized > 127, np.uint8(255), np.uint8(0))


def _override_layer_scales(mode: str, factors: tuple[float, ...]) -> tuple[str, tuple[float, ...]]:
    """Mode and factors such that the layers' scales are `layers`; "control" still acts on the prompt's rows only."""
    if mode != "control":
        return "balanced", factors
    adapter = len(factors) == 4
    outer, inner = layer_scales(1, mode, None, 0 if adapter else len(factors) - 1, 4 if adapter else 0)
    return mode, tuple(value / soft for value, soft in zip(factors, inner if adapter else outer, strict=True))
