"""The control maps of a unit: images read and preprocessed once, then fitted to the size of each run."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..files.image_reader import read_image, read_mask
from ..maps.control_map import ControlMap, describe_misfit
from ..maps.resize import compute_fit_resolution, crop_map, fit, fit_for_outpainting
from ..preprocessors.registry import RESOLUTION_PARAMETER, Preprocessor, find
from .after_steps import downscale_mask
from .contract import ControlModel, Crop, Host
from .unit import PerSample

if TYPE_CHECKING:
    from torch import Tensor


class PreprocessorCall(Protocol):
    """A loaded preprocessor, or a cache around one."""

    def __call__(self, image: np.ndarray, mask: np.ndarray | None = None, /, **parameters: Any) -> ControlMap:
        """Return the map of an image (H, W, 3) uint8 RGB; `mask` has its shape and is white where to repaint."""


def make_map(
    spec: Preprocessor,
    run: PreprocessorCall,
    image: np.ndarray,
    mask: np.ndarray | None,
    parameters: Mapping[str, Any],
    size: tuple[int, int] | None = None,
    fit_mode: str = "crop",
) -> ControlMap:
    """Return the map that `run`, the preprocessor of `spec`, makes of an image (H, W, 3) uint8 RGB.

    A `resolution` of "match" becomes that at which the map neither grows nor shrinks when `fit_mode` fits it to `size`
    (height, width). `mask` is passed on if the preprocessor needs one. Raises what the preprocessor raises."""
    values = dict(parameters)
    if values.get("resolution") == "match":
        assert size is not None and RESOLUTION_PARAMETER.range is not None
        resolution = compute_fit_resolution(image.shape[0], image.shape[1], *size, fit_mode)
        bounds = RESOLUTION_PARAMETER.range
        values["resolution"] = int(min(max(resolution, bounds.low), bounds.high))
    return run(image, mask if spec.needs_mask else None, **values)


def extend_for_outpainting(
    spec: Preprocessor, image: np.ndarray, mask: np.ndarray, size: tuple[int, int], fit_mode: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return the image and its mask, both (H, W, 3), as a preprocessor that repaints must see them: with "fill" at
    `size`, the added border white in the mask; otherwise unchanged."""
    if fit_mode != "fill" or not spec.needs_mask:
        return image, mask
    return fit_for_outpainting(image, mask, *size)


def fit_and_crop(
    pixels: np.ndarray, height: int, width: int, fit_mode: str, box: tuple[int, int, int, int]
) -> np.ndarray:
    """Fit an image (H, W, 3) to this size and return what lies in `box` (left, top, right, bottom)."""
    left, top, right, bottom = box
    return np.ascontiguousarray(fit(pixels, height, width, fit_mode)[top:bottom, left:right])


def warn_of_misfit(pixels: np.ndarray, kind: str) -> None:
    """Warn if pixels (H, W, 3) uint8 that are taken for a map of this kind plainly are none."""
    if has := describe_misfit(pixels, kind):
        warnings.warn(describe_unprocessed(has, kind), UserWarning, stacklevel=2)


def describe_unprocessed(has: str, kind: str) -> str:
    """Return the sentence for an image with what maps of this kind have not."""
    return (
        f"the image that is taken for a map has {has}, which maps of {kind} have not: name the preprocessor that makes "
        "its map, or give a ControlMap"
    )


class HintSource(Protocol):
    """The images of a unit and what makes maps of them: the fields of `Unit` that `HintImages` reads."""

    @property
    def images(self) -> tuple[Any, ...]:
        """Images that act together: paths, images or maps."""

    @property
    def inpaint(self) -> Any:
        """Mask, white where to repaint, or None."""

    @property
    def fit(self) -> str:
        """Resize mode of maps: "crop", "stretch" or "fill"."""

    @property
    def preprocessor(self) -> str | None:
        """Name of the preprocessor, None for images that are maps."""

    @property
    def parameters(self) -> Mapping[str, Any]:
        """Values of the preprocessor's parameters by name."""


class HintImages:
    """The maps of one unit. Images are read, and preprocessed where the size does not matter, at once; then errors come
    before anything runs."""

    def __init__(self, unit: HintSource):
        self._unit, self._fit_mode = unit, unit.fit
        self._is_pixel_perfect = unit.parameters.get("resolution") == "match"
        self._parameters = {
            name: v for name, v in unit.parameters.items() if name != "resolution" or not self._is_pixel_perfect
        }
        self._preprocessor = find(unit.preprocessor).load() if unit.preprocessor else None
        self._images = [
            [self._read_image(image) for image in (a.images if isinstance(a, PerSample) else (a,))] for a in unit.images
        ]
        self.kinds = tuple(_infer_kind(a, unit) for a in unit.images)  # of maps, None where nobody says it
        self._mask = None if unit.inpaint is None else self._check_mask(_read_mask(unit.inpaint))
        # what is added around is painted too, so that LaMa has to see it
        self._is_outpainting = (
            self._preprocessor is not None
            and self._preprocessor.spec.needs_mask
            and unit.fit == "fill"
            and self._mask is not None
        )
        self._whole_maps: tuple[tuple[int, int], dict[int, np.ndarray]] = (0, 0), {}  # of parts: size, fitted by id
        if self._preprocessor and not self._is_pixel_perfect and not self._is_outpainting:
            self._images = [[self._make_map(pixels, self._mask, None) for pixels in some] for some in self._images]

    def configure_model(self, model: ControlModel) -> ControlModel:
        """Return the model that reads maps of these kinds. Raises ValueError if it does not.

        Warns where an image that is taken for a map as it stands plainly is none of the model's kind.
        """
        if model.refuses_other_maps:
            for kind in self.kinds:
                if kind not in (None, "other", model.map_type):
                    raise ValueError(
                        f"a map of {kind} for a control model that reads maps of {model.map_type} only: name the "
                        "control model of the map, or a preprocessor that makes such maps"
                    )
        if self._preprocessor is None and model.map_type is not None:
            for entry, arrays in zip(self._unit.images, self._images, strict=True):
                images = entry.images if isinstance(entry, PerSample) else (entry,)
                for image, pixels in zip(images, arrays, strict=True):
                    if not isinstance(image, ControlMap):
                        warn_of_misfit(pixels, model.map_type)
        return model.for_map_types(self.kinds)

    def fit_to_size(self, height: int, width: int, crop: Crop | None = None) -> list[np.ndarray]:
        """For each image that acts the map for the whole batch, `(1, H, W, 3)`, or one for each of its images: RGB
        uint8; with an inpainting mask floats `(…, 3, H, W)` in 0..1, -1 where to repaint. With `crop`, whose size this
        is, the part of the maps that the UNet call shows."""
        return [
            np.stack([self._build_hint(pixels) for pixels in some])
            for some in ([self._fit_part(pixels, height, width, crop) for pixels in some] for some in self._images)
        ]

    def fit_first_map(self, height: int, width: int) -> tuple[np.ndarray, np.ndarray | None]:
        """The first image's map, and the inpainting mask beside it, both (H, W, 3) uint8."""
        pixels = self._fit_map(self._images[0][0], height, width)
        return np.ascontiguousarray(pixels[..., :3]), None if self._mask is None else pixels[..., 3:].repeat(3, axis=2)

    def encode_latents(self, host: Host, crop: Crop | None = None) -> tuple[Tensor, Tensor | None]:
        """Return the VAE latents of the first image's maps, and its inpaint mask at their size; with `crop` of the part
        of them that the UNet call shows.

        Latents are float32 `(1, C, h, w)`, or one for each image; the mask is `(1, 1, h, w)`, 1 where to repaint, or
        None.
        """
        import torch

        maps = np.stack([self._fit_part(pixels, *host.pixel_size, crop) for pixels in self._images[0]])
        latents = host.encode(np.ascontiguousarray(maps[..., :3])).float()
        if self._mask is None:
            return latents, None
        white = torch.from_numpy(maps[0, ..., 3] > 127).to(latents.device)
        return latents, downscale_mask(white, maps.shape[1] // latents.shape[2])

    def stack_values(self) -> list[np.ndarray]:
        """Return `ControlMap.values` of each image of the unit as float32 `(1, ...)`, or `(n, ...)` of a `PerSample`.

        Raises ValueError if an image has no values, or the values differ in shape.
        """
        result = []
        for image in self._unit.images:
            maps = image.images if isinstance(image, PerSample) else (image,)
            arrays = [_read_values(each) for each in maps]
            if len({array.shape for array in arrays}) > 1:
                raise ValueError(f"values of {len(arrays)} maps differ in shape: {arrays[0].shape}, …")
            result.append(np.stack(arrays))
        return result

    def _read_image(self, image: Any) -> np.ndarray:
        resolution = self._parameters.get("resolution")  # a number here: a larger JPEG may be decoded at a fraction
        return image.pixels if isinstance(image, ControlMap) else read_image(image, resolution)

    def _check_mask(self, mask: np.ndarray) -> np.ndarray:
        for pixels in (pixels for some in self._images for pixels in some):
            if pixels.shape != mask.shape:
                sizes = [f"{columns}x{rows}" for rows, columns, _ in (mask.shape, pixels.shape)]
                raise ValueError(f"inpaint mask of {sizes[0]} pixels, but the image is {sizes[1]}")
        return mask

    def _make_map(self, pixels: np.ndarray, mask: np.ndarray | None, size: tuple[int, int] | None) -> np.ndarray:
        assert self._preprocessor is not None
        parameters = self._parameters if self._is_outpainting else self._unit.parameters
        result = make_map(self._preprocessor.spec, self._preprocessor, pixels, mask, parameters, size, self._fit_mode)
        return result.pixels

    def _fit_part(self, pixels: np.ndarray, height: int, width: int, crop: Crop | None) -> np.ndarray:
        """A map at that size, or the part of it that a UNet call of that size shows; the mask as in `_fit_map`."""
        if crop is None:
            return self._fit_map(pixels, height, width)
        if self._whole_maps[0] != crop.image_size:
            self._whole_maps = crop.image_size, {}
        whole = self._whole_maps[1]
        if id(pixels) not in whole:  # once for all parts
            whole[id(pixels)] = self._fit_map(pixels, *crop.image_size)
        return crop_map(whole[id(pixels)], crop.box, *crop.size, crop.placement)

    def _fit_map(self, pixels: np.ndarray, height: int, width: int) -> np.ndarray:
        """A map at that size, the mask as its fourth channel if there is one."""
        if self._is_outpainting and self._preprocessor is not None and self._mask is not None:
            spec = self._preprocessor.spec
            pixels, mask = extend_for_outpainting(spec, pixels, self._mask, (height, width), self._fit_mode)
            return np.concatenate([self._make_map(pixels, mask, (height, width)), mask[..., :1]], axis=2)
        if self._is_pixel_perfect and self._preprocessor:
            pixels = self._make_map(pixels, self._mask, (height, width))
        if self._mask is None:
            return fit(pixels, height, width, self._fit_mode)
        mask = fit(self._mask, pixels.shape[0], pixels.shape[1], "stretch")[..., :1]
        return fit(np.concatenate([pixels, mask], axis=2), height, width, self._fit_mode)

    def _build_hint(self, pixels: np.ndarray) -> np.ndarray:
        if self._mask is None:
            return pixels
        hint = pixels[..., :3].astype(np.float32) / 255
        hint[pixels[..., 3] > 127] = -1
        return hint.transpose(2, 0, 1)


def _read_mask(mask: Any) -> np.ndarray:
    return read_mask(mask.pixels if isinstance(mask, ControlMap) else mask)


def _infer_kind(image: Any, unit: HintSource) -> str | None:
    if unit.preprocessor:
        return find(unit.preprocessor).makes
    images = image.images if isinstance(image, PerSample) else (image,)
    kinds = {image.kind if isinstance(image, ControlMap) else None for image in images}
    kind = kinds.pop() if len(kinds) == 1 else None
    return kind or ("inpaint" if unit.inpaint is not None else None)


def _read_values(image: Any) -> np.ndarray:
    values = image.values if isinstance(image, ControlMap) else None
    if values is None:
        raise ValueError("this model reads an embedding: give the unit a ControlMap with its values")
    array = values.detach().cpu().float().numpy() if hasattr(values, "detach") else np.asarray(values)
    if array.dtype.kind != "f" or not np.isfinite(array).all():
        raise ValueError(f"values of a map are {array.dtype}, or not finite: expected finite floats")
    return array.astype(np.float32)
