"""Build `Unit`s, with their maps, of units that clients of the webui describe; for the server and the extension.

Two steps: `resolve_unit` completes a unit with what the host has (img2img's image, its mask, the inpaint area), and
`build_unit` makes its map. `UnitBuilder` does both and loads the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np

from ..errors import error_prefix
from ..generation.inpainting import MASK_BLUR, Postprocess, postprocess_for
from ..guidance.after_steps import ColorFix, post_step_for
from ..guidance.contract import ControlModel
from ..guidance.hints import PreprocessorCall, extend_for_outpainting, fit_and_crop, make_map
from ..guidance.unit import Unit
from ..guidance.weighting import layer_scales
from ..maps.control_map import ControlMap
from ..maps.resize import fit
from ..models.map_types import MapTypeSelection
from .catalog import ModelCatalog
from .images import ImageMaskPair
from .modules import find_module, parameters_from_sliders
from .units import WebuiUnit

Loader = Callable[[str], PreprocessorCall]  # gives a preprocessor by its canonical name


@dataclass(frozen=True, eq=False)
class InpaintCrop:
    """The part of an image that "only masked" repaints, or an upscale script draws: `box` (left, top, right, bottom) in
    pixels of an image of this height and width."""

    height: int
    width: int
    box: tuple[int, int, int, int]


@dataclass(frozen=True, eq=False)
class HostInputs:
    """Properties of a request on which its units depend.

    size: height and width of the result in pixels, of the first pass with hires fix.
    hires_size: those of the second pass, None without hires fix.
    init_image: img2img's image (H, W, 3) uint8 RGB, and its mask, white where to repaint, or None.
    init_fit: how the host resizes that image: "crop", "stretch" or "fill".
    restores_unmasked: True where the host itself restores what lies outside a mask.
    crop: the part that "only masked" repaints; None for the whole image.
    is_tile: True if an upscale script draws a tile; then units' own images belong to the whole.
    tile: the part of the whole that img2img's image is, None if that is not known.
    ignores_stray_masks: True where masks of units whose preprocessor does not inpaint are dropped.
    mask_blur: border in pixels in which an inpainted image is mixed with its original.
    """

    size: tuple[int, int]
    hires_size: tuple[int, int] | None = None
    init_image: ImageMaskPair | None = None
    init_fit: str = "crop"
    restores_unmasked: bool = False
    crop: InpaintCrop | None = None
    is_tile: bool = False
    tile: InpaintCrop | None = None
    ignores_stray_masks: bool = False
    mask_blur: int = MASK_BLUR


NO_MODEL_NAME = "None"  # the word of sd-webui-controlnet


@dataclass(frozen=True, eq=False)
class BuiltUnit:
    """A unit ready to guide.

    unit: the unit with its model and maps.
    map_image: its first map (H, W, 3) uint8 RGB at the size of the result, of the first pass with hires fix.
    hires_map_image: the same map at the size of the second pass, None without hires fix.
    model_name: the listed name of its model, or `NO_MODEL_NAME`.
    finish: processing of finished images, None for none.
    initial_noise_image: image (H, W, 3) uint8 RGB that the first pass's noise contains, None for none.
    """

    unit: Unit
    map_image: np.ndarray
    model_name: str
    finish: Postprocess | None = None
    initial_noise_image: np.ndarray | None = None
    hires_map_image: np.ndarray | None = None

    def list_pass_maps(self) -> list[np.ndarray]:
        """Return the first map (H, W, 3) for each pass in which the unit acts, at the size of the pass."""
        if self.hires_map_image is None:
            return [self.map_image]
        maps = ("low", self.map_image), ("high", self.hires_map_image)
        return [pixels for pass_name, pixels in maps if self.unit.hires in ("both", pass_name)]

    def split_by_pass(self, has_hires_pass: bool) -> list[Unit]:
        """Return the unit as a list of one; with hires fix, two units where the second pass has options of its own: the
        boxes of a color fix are twice as large there."""
        unit, after = self.unit, self.unit.after
        if not has_hires_pass or not isinstance(after, ColorFix) or unit.hires == "low":
            return [unit]
        second = replace(unit, hires="high", after=replace(after, variation=2 * after.variation))
        return [second] if unit.hires == "high" else [replace(unit, hires="low"), second]


def find_initial_noise_image(built_units: Sequence[BuiltUnit], has_hires_pass: bool) -> np.ndarray | None:
    """Return the image (H, W, 3) that the first pass's noise contains: that of the first unit that acts in this pass
    and has one; None if none has."""
    acting = (each for each in built_units if not (has_hires_pass and each.unit.hires == "high"))
    return next((each.initial_noise_image for each in acting if each.initial_noise_image is not None), None)


@dataclass(frozen=True, eq=False)
class UnitBuilder:
    """Builds units with the control models and preprocessors of one host. `device` and `dtype` are those of control
    models. With `unet` models are bound to it at once, otherwise when guidance starts."""

    catalog: ModelCatalog
    load_preprocessor: Loader
    device: str
    dtype: Any
    unet: Any = None

    def build(self, unit_number: int, webui_unit: WebuiUnit, host: HostInputs) -> BuiltUnit:
        """Return the unit for this request. Raises ValueError, TypeError or FileNotFoundError in one line that begins
        with "unit" and its number, from 1."""
        with error_prefix(f"unit {unit_number}"):
            model_name = resolve_model_name(webui_unit, self.catalog)
            webui_unit = resolve_unit(webui_unit, host)
            model = self._load_model(webui_unit, model_name)
            if self.unet is not None:
                model.bind(self.unet)
            built_unit = build_unit(webui_unit, model_name, model, self.load_preprocessor, host.size, host.mask_blur)
            return built_unit if host.hires_size is None else _fit_hires_map(built_unit, host.hires_size)

    def _load_model(self, webui_unit: WebuiUnit, model_name: str) -> ControlModel:
        """Return the model; of a unit without one what its preprocessor does after each step."""
        if webui_unit.model is not None:
            return self.catalog.load(model_name, self.device, self.dtype)
        after = post_step_for(webui_unit.module, _read_parameters(webui_unit))
        assert after is not None  # `resolve_model_name` has refused the others
        return after


def resolve_model_name(webui_unit: WebuiUnit, catalog: ModelCatalog) -> str:
    """Return the listed name of the unit's model, or `NO_MODEL_NAME` where its preprocessor acts by itself after each
    step. Raises ValueError for another unit without a model, and for an unknown one."""
    if webui_unit.model is None:
        if webui_unit.module is not None and webui_unit.module.traits.acts_after_step:
            return NO_MODEL_NAME
        raise ValueError("it is on and has no model; choose one of /controlnet/model_list, or switch it off")
    return catalog.resolve_name(webui_unit.model)


def resolve_unit(webui_unit: WebuiUnit, host: HostInputs) -> WebuiUnit:
    """Return the unit completed by its host: with img2img's image where it has none of its own, without masks that its
    preprocessor does not use, with the preprocessor for hosts that restore unmasked parts, and cropped to the inpaint
    area or tile. Raises ValueError if there is no image, or the tile's place is not known."""
    images, fit_mode, module = webui_unit.images, webui_unit.fit, webui_unit.module
    ignores_masks, region, is_own = host.ignores_stray_masks, webui_unit.region_mask, bool(images)
    if not images:
        if host.init_image is None:
            raise ValueError("it is on and has no image")
        # another preprocessor would take img2img's mask for a scribble
        images, fit_mode, ignores_masks = (host.init_image,), host.init_fit, True
    if ignores_masks and not _is_inpaint(webui_unit):
        images = tuple((image, None) for image, _ in images)
    replaces = host.restores_unmasked and webui_unit.model is not None  # alone it does nothing but restore
    if replaces and module is not None and module.traits.variant_without_restore is not None:
        module = find_module(module.traits.variant_without_restore)
    crop = host.crop if webui_unit.crops_to_inpaint_area or host.is_tile else None
    if crop is None and is_own and host.is_tile:
        crop = host.tile
        if crop is None:
            raise ValueError(
                "the upscale script draws several tiles at once, or does not tell where a tile is: set the batch size "
                "to 1, or leave the unit's image empty, so that each tile is its own image"
            )
    if crop is not None:
        region = None if region is None else _crop_region(region, crop, host.size)
        images = tuple(
            (_crop(image, crop, fit_mode), None if mask is None else _crop(mask, crop, fit_mode))
            for image, mask in images
        )
        fit_mode = "fill"
    return replace(webui_unit, images=images, fit=fit_mode, module=module, region_mask=region)


def build_unit(
    webui_unit: WebuiUnit,
    model_name: str,
    model: ControlModel,
    load_preprocessor: Loader,
    size: tuple[int, int],
    mask_blur: int = MASK_BLUR,
) -> BuiltUnit:
    """Make the maps of a resolved unit and return it for results of this height and width. Raises ValueError, TypeError
    or FileNotFoundError in one line, without the unit's name."""
    spec, parameters = webui_unit.module, _read_parameters(webui_unit)
    maps, mask = _make_maps(webui_unit, load_preprocessor, size)
    inpaint = None if mask is None else _resize_mask(mask, maps[0])
    map_image = fit(maps[0], *size, webui_unit.fit)
    # the host fits the maps, for each pass to its size
    hints: list[Any] = maps if spec is None else [ControlMap(pixels, spec.makes) for pixels in maps]
    if webui_unit.union_type is not None:
        model = _select_map_type(model, webui_unit.union_type, len(maps))
    mode, layers = webui_unit.mode, webui_unit.layer_scales
    weight = webui_unit.weight if webui_unit.weight_schedule is None else webui_unit.weight_schedule
    if layers is not None:  # they replace weight and soft weights, which ours multiply
        weight, (mode, layers) = webui_unit.weight_schedule or 1.0, _override_layer_scales(mode, layers)
    choices: Any = {"fit": webui_unit.fit, "mode": mode, "hires": webui_unit.hires}
    unit = Unit(
        model,
        tuple(hints) if len(hints) > 1 else hints[0],
        weight,
        webui_unit.window,
        layers=layers,
        region=webui_unit.region_mask,
        inpaint=inpaint,
        low_vram=webui_unit.low_vram,
        after=post_step_for(spec, parameters) if spec is not None and spec.traits.acts_after_step else None,
        **choices,
    )
    if spec is None or (webui_unit.weight == 0 and webui_unit.weight_schedule is None):
        return BuiltUnit(unit, map_image, model_name)
    finish = None
    if spec.traits.changes_finished_image:
        finish = postprocess_for(spec, maps[0], inpaint, webui_unit.fit, mask_blur)
    return BuiltUnit(unit, map_image, model_name, finish, map_image if spec.traits.starts_from_map else None)


def _fit_hires_map(built_unit: BuiltUnit, size: tuple[int, int]) -> BuiltUnit:
    image: Any = built_unit.unit.image[0] if isinstance(built_unit.unit.image, tuple) else built_unit.unit.image
    pixels = image.pixels if isinstance(image, ControlMap) else image
    return replace(built_unit, hires_map_image=fit(pixels, *size, built_unit.unit.fit))


def _is_inpaint(webui_unit: WebuiUnit) -> bool:
    return webui_unit.module is not None and webui_unit.module.takes_mask


def _crop(pixels: np.ndarray, crop: InpaintCrop, fit_mode: str) -> np.ndarray:
    return fit_and_crop(pixels, crop.height, crop.width, fit_mode, crop.box)


def _crop_region(mask: np.ndarray, crop: InpaintCrop, size: tuple[int, int]) -> np.ndarray:
    """The part of a mask (H, W, 3) that is stretched over the image, brought to `size` as the image is: inside of it,
    and continued around."""
    left, top, right, bottom = crop.box
    whole = cv2.resize(mask, (crop.width, crop.height), interpolation=cv2.INTER_LINEAR)
    part, (height, width) = whole[top:bottom, left:right], size
    scale = min(height / part.shape[0], width / part.shape[1])
    rows, columns = (max(1, round(side * scale)) for side in part.shape[:2])
    y, x = (height - rows) // 2, (width - columns) // 2
    part = cv2.resize(part, (columns, rows), interpolation=cv2.INTER_LINEAR)
    return np.pad(part, ((y, height - rows - y), (x, width - columns - x), (0, 0)), mode="edge")


def _read_parameters(webui_unit: WebuiUnit) -> dict[str, Any]:
    """Values of the preprocessor's parameters by name; "match" is the resolution of pixel perfect."""
    if webui_unit.module is None:
        return {}
    values = parameters_from_sliders(
        webui_unit.module, webui_unit.resolution, webui_unit.threshold_a, webui_unit.threshold_b
    )
    if webui_unit.pixel_perfect and "resolution" in values:
        values["resolution"] = "match"
    return values


def _make_maps(
    webui_unit: WebuiUnit, load_preprocessor: Loader, size: tuple[int, int]
) -> tuple[list[np.ndarray], np.ndarray | None]:
    """The maps (H, W, 3) of the unit's images, and the mask of the only one if the unit inpaints."""
    spec, is_inpaint = webui_unit.module, _is_inpaint(webui_unit)
    images = [_select_source(pair, is_inpaint) for pair in webui_unit.images]
    mask = webui_unit.images[0][1] if is_inpaint and len(images) == 1 else None
    if is_inpaint and webui_unit.fit == "fill" and len(images) == 1 and mask is None:
        mask = np.zeros_like(images[0])  # the border that is added around is repainted
    if spec is None:
        return images, mask
    parameters = _read_parameters(webui_unit)
    if mask is not None and spec.needs_mask:
        mask = _resize_mask(mask, images[0])
        images[0], mask = extend_for_outpainting(spec, images[0], mask, size, webui_unit.fit)
    run = load_preprocessor(spec.name)
    maps = (make_map(spec, run, image, mask, parameters, size, webui_unit.fit) for image in images)
    return [each.pixels for each in maps], mask


def _select_source(pair: ImageMaskPair, is_inpaint: bool) -> np.ndarray:
    """The image; a partly painted mask instead of it, unless the unit inpaints: a scribble on the canvas."""
    image, mask = pair
    if is_inpaint or mask is None or not (mask > 127).any() or (mask > 127).all():
        return image
    return mask


def _resize_mask(mask: np.ndarray, image: np.ndarray) -> np.ndarray:
    """The mask at the size of its image, black and white."""
    resized_mask = cv2.resize(mask, image.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    return np.where(resized_mask > 127, np.uint8(255), np.uint8(0))


def _select_map_type(model: ControlModel, kind: str, count: int) -> ControlModel:
    """A union that reads `count` maps of this kind; other models as they are."""

    return model.with_types(*[kind] * count) if isinstance(model, MapTypeSelection) else model


def _override_layer_scales(mode: str, factors: tuple[float, ...]) -> tuple[str, tuple[float, ...]]:
    """Mode and factors with which the scales of the layers are `factors`; "control" still acts on the prompt's rows
    only."""
    if mode != "control":
        return "balanced", factors
    adapter = len(factors) == 4
    outer, inner = layer_scales(1, mode, None, 0 if adapter else len(factors) - 1, 4 if adapter else 0)
    return mode, tuple(value / soft for value, soft in zip(factors, inner if adapter else outer, strict=True))
