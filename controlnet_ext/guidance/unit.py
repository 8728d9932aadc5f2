"""A unit: a map, the control model that reads it, and how strongly, when and where it acts."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..errors import check_choice, error_prefix, quote_value
from ..files.image_reader import is_tensor, read_mask
from ..maps.control_map import ControlMap
from ..maps.resize import FIT_MODES
from ..preprocessors.registry import find
from .after_steps import PostStep, post_step_for
from .contract import AttentionModel, ControlModel
from .schedule import Window
from .weighting import WEIGHT_MODES, make_weight_schedule

if TYPE_CHECKING:
    from PIL.Image import Image

    ImageInput = str | os.PathLike[str] | bytes | np.ndarray | Image | ControlMap

MAX_LAYER_FACTOR = 10  # of the residuals of a layer, on top of a weight of up to 2
HIRES_PASSES = ("both", "low", "high")
COMPILE_ADVICE = "ControlNets that load() gave have net.compile(...), other kinds run as they are"


@dataclass(frozen=True, eq=False)
class PerSample:
    """One image for each image of the batch, in its order; for a video also one for each frame.

    A pipeline that makes several images of each prompt also takes one for each prompt.

    Raises TypeError or ValueError on an empty list or on what is no image.
    """

    images: Sequence[ImageInput]

    def __post_init__(self) -> None:
        if not isinstance(self.images, list | tuple):
            raise TypeError(f"PerSample of {type(self.images).__name__}, expected a list of images")
        object.__setattr__(self, "images", tuple(self.images))
        if not self.images:
            raise ValueError("PerSample of no images")
        for image in self.images:
            _check_image(image)


@dataclass(frozen=True, eq=False, kw_only=True)
class UnitSettings:
    """The fields of `Unit` that say how a unit acts, whatever its model and image; checked as there.

    Raises TypeError or ValueError, with the value, on what makes no sense."""

    weight: float | str | Callable[[float], float] = 1.0
    window: Window = field(default_factory=Window)
    mode: Literal["balanced", "prompt", "control"] = "balanced"
    layers: Sequence[float] | None = None
    region: np.ndarray | None = None
    fit: Literal["crop", "stretch", "fill"] = "crop"

    def __post_init__(self) -> None:
        make_weight_schedule(self.weight)
        if not isinstance(self.window, Window):
            raise TypeError(
                f"window {quote_value(self.window)} is {type(self.window).__name__}, expected Window(start, end)"
            )
        check_choice("mode", self.mode, WEIGHT_MODES)
        check_choice("fit", self.fit, FIT_MODES)
        if self.layers is not None:
            object.__setattr__(self, "layers", _parse_layers(self.layers))
        if self.region is not None:
            object.__setattr__(self, "region", _parse_region(self.region))


@dataclass(frozen=True, eq=False)
class Unit:
    """One ControlNet at work. TypeError or ValueError, with the value, on what makes no sense.

    `image`: path, bytes, PIL image, RGB array, tensor (3, H, W) or ControlMap; `PerSample([...])`; or a tuple of these,
    which act together, each with `weight` divided by their number.
    `weight`: -2..2; or text "0.2@0, 1@0.3", weights at fractions of the run with straight lines between them; or a
    function of the fraction at which a step begins. 0 switches the unit off.
    `mode`: "balanced"; "prompt", soft weights, which fall by 0.825 a layer outwards from the middle block; "control",
    soft weights on the prompt's rows only, so that guidance multiplies them.
    `layers`: factors for the skips and the middle block (SD1.5: 13, SDXL: 10), on top of weight and mode.
    `region`: (H, W) of bools or 0..1, or a mask as `read_mask` reads it, any size, stretched over the image: where the
    residuals act. It becomes an array (H, W) of float32.
    `inpaint`: a mask as `read_mask` reads it, as large as the image, white where to repaint; the hint is -1 there.
    `fit`: how the map comes to the output's size, "crop", "stretch" or "fill".
    `preprocessor` with `parameters` makes the map at `resolution`, the short side in pixels, which may also stand among
    the parameters; "match" makes it as fine as the image needs.
    `hires`: the runs of a host in which it acts: "low" (the first), "high" (all after it) or "both".
    `low_vram`: the model's weights stay on the CPU, and each layer's are copied to the device when it is called.
    `after`: what is done to the latents after each step, `InpaintRestore()` or `ColorFix(8)` of `after_steps`, which
    may be the model too; by default what the preprocessor is for: inpaint_only keeps the image where `inpaint` is
    black, tile_colorfix its colors. Weights count as 0..1 there; mode and layers do not.
    `reuse`: for how many steps the network's residuals serve, 1 for no reuse. `reuse_tolerance`: only while
    the latents have changed by no more than this part of their norm since. Faster, and less exact."""

    model: ControlModel
    image: ImageInput | PerSample | tuple[ImageInput | PerSample, ...]
    weight: float | str | Callable[[float], float] = 1.0
    window: Window = field(default_factory=Window)
    mode: Literal["balanced", "prompt", "control"] = "balanced"
    layers: Sequence[float] | None = None
    region: ImageInput | None = None
    inpaint: ImageInput | None = None
    fit: Literal["crop", "stretch", "fill"] = "crop"
    preprocessor: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    hires: Literal["both", "low", "high"] = "both"
    low_vram: bool = False
    after: PostStep | None = None
    reuse: int = 1
    reuse_tolerance: float | None = None
    resolution: int | Literal["match"] | None = None

    def __post_init__(self) -> None:
        _check_model(self.model)
        if isinstance(self.image, tuple) and not self.image:
            raise ValueError("image () is an empty tuple, expected images that act together")
        for image in self.images:
            if not isinstance(image, PerSample):
                _check_image(image)
        if self.inpaint is not None:
            _check_image(self.inpaint)
        settings = UnitSettings(**{each.name: getattr(self, each.name) for each in fields(UnitSettings)})
        object.__setattr__(self, "layers", settings.layers)
        object.__setattr__(self, "region", settings.region)
        check_choice("hires", self.hires, HIRES_PASSES)
        if not isinstance(self.low_vram, bool):
            raise TypeError(f"low_vram {self.low_vram!r} is {type(self.low_vram).__name__}, expected true or false")
        self._check_preprocessor()
        self._check_after()
        self._check_reuse()

    @property
    def images(self) -> tuple[ImageInput | PerSample, ...]:
        """The images that act together."""
        return self.image if isinstance(self.image, tuple) else (self.image,)

    def _check_preprocessor(self) -> None:
        if not isinstance(self.parameters, Mapping):
            raise TypeError(f"parameters {quote_value(self.parameters)} is no mapping of names to values")
        parameters = dict(self.parameters)
        if self.resolution is not None:
            if self.preprocessor is None:
                raise ValueError(f"resolution {quote_value(self.resolution)} without a preprocessor that works at it")
            if parameters.setdefault("resolution", self.resolution) != self.resolution:
                both = f"{quote_value(self.resolution)} and in parameters {quote_value(parameters['resolution'])}"
                raise ValueError(f"resolution is given twice, {both}")
        object.__setattr__(self, "parameters", parameters)
        if self.preprocessor is None:
            if self.parameters:
                raise ValueError(f"parameters {', '.join(map(str, self.parameters))} without a preprocessor")
            return
        values = {name: v for name, v in self.parameters.items() if (name, v) != ("resolution", "match")}
        find(self.preprocessor).check(values)
        for image in self.images:
            if any(isinstance(p, ControlMap) for p in (image.images if isinstance(image, PerSample) else (image,))):
                raise ValueError(f"preprocessor {self.preprocessor!r} on a ControlMap, which is a map already")

    def _check_after(self) -> None:
        if self.after is None and isinstance(self.model, PostStep):
            object.__setattr__(self, "after", self.model)
        elif self.after is None and self.preprocessor is not None:
            spec = find(self.preprocessor)
            if spec.traits.acts_after_step:
                object.__setattr__(self, "after", post_step_for(spec, self.parameters))
        if self.after is None:
            return
        if not isinstance(self.after, PostStep):
            raise TypeError(f"after {quote_value(self.after)} is {type(self.after).__name__}, expected a PostStep")
        if self.after.needs_mask and self.inpaint is None:
            raise ValueError(f"{self.after.architecture} changes what an inpaint mask covers, and the unit has none")
        if len(self.images) > 1:
            raise ValueError(f"{self.after.architecture} acts by one image, and the unit has {len(self.images)}")

    def _check_reuse(self) -> None:
        if type(self.reuse) is not int or not 1 <= self.reuse <= 1000:
            raise ValueError(f"reuse {quote_value(self.reuse)}, expected for how many steps, 1..1000")
        tolerance = self.reuse_tolerance
        if tolerance is not None and (not isinstance(tolerance, Real) or not 0 <= tolerance <= 2):  # also refuses NaN
            raise ValueError(f"reuse_tolerance {quote_value(tolerance)}, expected a part of the latents' norm, 0..2")
        if tolerance is not None and self.reuse == 1:
            raise ValueError(f"reuse_tolerance {tolerance} without reuse, the largest number of steps to reuse for")
        if self.reuse > 1 and isinstance(self.model, AttentionModel):
            raise ValueError(f"reuse {self.reuse} of {self.model.architecture}, which gives no residuals")


def _check_model(model: object) -> None:
    inner = getattr(model, "_orig_mod", model)  # of torch.compile(model)
    if isinstance(inner, ControlModel):
        if inner is not model or getattr(model, "_compiled_call_impl", None) is not None:  # of model.compile()
            raise ValueError(f"the {inner.architecture} is compiled around what a unit calls of it: {COMPILE_ADVICE}")
    else:
        raise TypeError(f"model {quote_value(model)} is no control model; load(path) gives one")


def _check_image(image: Any) -> None:
    if isinstance(image, list):
        raise TypeError(
            "a list of images: PerSample([...]) has one for each of the batch, a tuple has images that act together"
        )
    is_image = isinstance(image, str | os.PathLike | bytes | np.ndarray | ControlMap) or hasattr(image, "getbands")
    if is_tensor(image) and image.ndim == 4:
        raise TypeError(
            f"image is a batch of {len(image)} tensors: PerSample(list(batch)) has one for each of the batch"
        )
    if not is_image and not is_tensor(image):
        raise TypeError(
            f"image {quote_value(image)} is {type(image).__name__}, expected a path, an image or a ControlMap"
        )


def _parse_layers(layers: object) -> tuple[float, ...]:
    if isinstance(layers, str) or not isinstance(layers, Sequence | np.ndarray) or not len(layers):
        raise TypeError(f"layers {quote_value(layers)}, expected a list of numbers")
    for factor in layers:
        if not isinstance(factor, Real) or isinstance(factor, bool) or not math.isfinite(factor):
            raise ValueError(f"layers holds {quote_value(factor)}, expected numbers")
        if abs(float(factor)) > MAX_LAYER_FACTOR:
            raise ValueError(f"layers holds {quote_value(factor)}, outside -{MAX_LAYER_FACTOR}..{MAX_LAYER_FACTOR}")
    return tuple(map(float, layers))


def _parse_region(region: Any) -> np.ndarray:
    if isinstance(region, list | tuple):
        raise TypeError(f"region is {type(region).__name__}, expected an array (H, W) of 0..1, or a mask")
    is_array = isinstance(region, np.ndarray)
    if not is_array or region.ndim == 3 or (region.dtype == np.uint8 and region.max(initial=0) > 1):
        with error_prefix("region"):
            pixels = read_mask(region.pixels if isinstance(region, ControlMap) else region)
        return pixels[..., 0].astype(np.float32) / 255
    if region.ndim != 2 or 0 in region.shape or region.dtype.kind not in "bfiu":
        raise ValueError(f"region has shape {region.shape} and type {region.dtype}, expected (H, W) of 0..1")
    if not (region.min() >= 0 and region.max() <= 1):  # NaN neither
        raise ValueError(f"region holds values {region.min()}..{region.max()}, expected 0..1")
    floats: np.ndarray = region.astype(np.float32)
    return floats
