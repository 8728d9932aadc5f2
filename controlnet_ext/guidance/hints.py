"""A unit's maps: its images read once, and fitted to whatever size a run has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..files.image_reader import read_image
from ..maps.control_map import ControlMap
from ..maps.resize import around, fit, pixel_perfect
from ..preprocessors.registry import RESOLUTION, Ready, find
from .after_steps import painted
from .contract import Host
from .unit import PerSample, Unit

if TYPE_CHECKING:
    from torch import Tensor


class Maps:
    """The maps of one unit. Images are read, and preprocessed where the size does not matter, at once; then errors come
    before anything runs."""

    def __init__(self, unit: Unit):
        self._unit, self._fit = unit, unit.fit
        self._match = unit.parameters.get("resolution") == "match"
        self._parameters = {name: v for name, v in unit.parameters.items() if name != "resolution" or not self._match}
        self._make = find(unit.preprocessor).ready() if unit.preprocessor else None
        self._images = [
            [self._read(image) for image in (a.images if isinstance(a, PerSample) else (a,))] for a in unit.alternatives
        ]
        self.kinds = tuple(_kind(a, unit) for a in unit.alternatives)  # of maps, None where nobody says it
        self._mask = None if unit.inpaint is None else self._checked(self._read(unit.inpaint))
        # what is added around is painted too, so that LaMa has to see it
        self._around = (
            self._make is not None and self._make.entry.masked and unit.fit == "fill" and self._mask is not None
        )
        if self._make and not self._match and not self._around:
            self._images = [[self._made(self._make, p, **self._parameters) for p in some] for some in self._images]

    def reader(self, model: Any) -> Any:
        """The model as it reads maps of these kinds. ValueError when it does not."""
        return model.reads(self.kinds) if hasattr(model, "reads") else model

    def at(self, height: int, width: int) -> list[np.ndarray]:
        """For each image that acts the map for all pictures, `(1, H, W, 3)`, or one for each, `(n, H, W, 3)`: RGB
        uint8; with an inpainting mask floats `(…, 3, H, W)` in 0..1, -1 where to repaint."""
        return [np.stack([self._hint(pixels, height, width) for pixels in some]) for some in self._images]

    def picture(self, height: int, width: int) -> tuple[np.ndarray, np.ndarray | None]:
        """The first image's map, and the inpainting mask beside it, both (H, W, 3) uint8."""
        found = self._fitted(self._images[0][0], height, width)
        return np.ascontiguousarray(found[..., :3]), None if self._mask is None else found[..., 3:].repeat(3, axis=2)

    def latents(self, host: Host) -> tuple[Tensor, Tensor | None]:
        """What the VAE makes of the first image's maps, `(1, C, h, w)` or one for each picture, in float32; and where
        their inpainting mask is white, as `painted` has it."""
        import torch

        fitted = np.stack([self._fitted(pixels, *host.pixel_size) for pixels in self._images[0]])
        latents = host.encode(np.ascontiguousarray(fitted[..., :3])).float()
        if self._mask is None:
            return latents, None
        white = torch.from_numpy(fitted[0, ..., 3] > 127).to(latents.device)
        return latents, painted(white, fitted.shape[1] // latents.shape[2])

    def values(self) -> list[np.ndarray]:
        """For each image that acts `ControlMap.values` as float32, with a first axis as in `at`. ValueError where an
        image has none."""
        found = []
        for image in self._unit.alternatives:
            maps = image.images if isinstance(image, PerSample) else (image,)
            arrays = [_values(each) for each in maps]
            if len({array.shape for array in arrays}) > 1:
                raise ValueError(f"values of {len(arrays)} maps differ in shape: {arrays[0].shape}, …")
            found.append(np.stack(arrays))
        return found

    def _read(self, image: Any) -> np.ndarray:
        return image.pixels if isinstance(image, ControlMap) else read_image(image)

    def _checked(self, mask: np.ndarray) -> np.ndarray:
        for pixels in (pixels for some in self._images for pixels in some):
            if pixels.shape != mask.shape:
                sizes = [f"{columns}x{rows}" for rows, columns, _ in (mask.shape, pixels.shape)]
                raise ValueError(f"inpaint mask of {sizes[0]} pixels, but the image is {sizes[1]}")
        return mask

    def _made(self, make: Ready, pixels: np.ndarray, **parameters: Any) -> np.ndarray:
        return make(pixels, self._mask if make.entry.masked else None, **parameters).pixels

    def _fitted(self, pixels: np.ndarray, height: int, width: int) -> np.ndarray:
        """A map at that size, the mask as its fourth channel if there is one."""
        if self._around and self._make is not None and self._mask is not None:
            pixels, mask = around(pixels, self._mask, height, width)
            made = self._make(pixels, mask, **self._parameters).pixels
            return np.concatenate([made, mask[..., :1]], axis=2)
        if self._match and self._make:
            resolution = pixel_perfect(pixels.shape[0], pixels.shape[1], height, width, self._fit)
            assert RESOLUTION.range is not None
            resolution = int(min(max(resolution, RESOLUTION.range.low), RESOLUTION.range.high))
            pixels = self._made(self._make, pixels, **self._parameters, resolution=resolution)
        if self._mask is None:
            return fit(pixels, height, width, self._fit)
        mask = fit(self._mask, pixels.shape[0], pixels.shape[1], "stretch")[..., :1]
        return fit(np.concatenate([pixels, mask], axis=2), height, width, self._fit)

    def _hint(self, pixels: np.ndarray, height: int, width: int) -> np.ndarray:
        fitted = self._fitted(pixels, height, width)
        if self._mask is None:
            return fitted
        hint = fitted[..., :3].astype(np.float32) / 255
        hint[fitted[..., 3] > 127] = -1
        return hint.transpose(2, 0, 1)


def _kind(image: Any, unit: Unit) -> str | None:
    if unit.preprocessor:
        return find(unit.preprocessor).makes
    images = image.images if isinstance(image, PerSample) else (image,)
    kinds = {picture.kind if isinstance(picture, ControlMap) else None for picture in images}
    stated = kinds.pop() if len(kinds) == 1 else None
    return stated or ("inpaint" if unit.inpaint is not None else None)


def _values(image: Any) -> np.ndarray:
    values = image.values if isinstance(image, ControlMap) else None
    if values is None:
        raise ValueError("this model reads an embedding: give the unit a ControlMap with its values")
    array = values.detach().cpu().float().numpy() if hasattr(values, "detach") else np.asarray(values)
    if array.dtype.kind != "f" or not np.isfinite(array).all():
        raise ValueError(f"values of a map are {array.dtype}, or not finite: expected finite floats")
    return array.astype(np.float32)
