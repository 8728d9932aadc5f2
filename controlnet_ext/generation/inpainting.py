"""Inpainting: initial latents, the area that is repainted, and the original's own pixels around it.

`make_initial_latents`, `composite` and `replace_lightness` have the formulas of sd-webui-controlnet (@ 56cec5b);
`InpaintArea` has the sizes, borders and fill of AUTOMATIC1111 1.10.1 (modules/processing.py, modules/masking.py)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import cv2
import numpy as np

from ..files.image_reader import ImageLike, read_image, read_mask
from ..guidance.after_steps import NoiseLevel
from ..maps.resize import fit as fit_image

if TYPE_CHECKING:
    import torch

    from ..hosts.diffusers.host import Pipeline
    from ..preprocessors.registry import Preprocessor


MASK_BLUR = 7  # pixels: default of sd-webui-controlnet's setting for the border of inpaint_only
FILL_BLOCK_SIZES = (1024, 256, 64, 16, 4, 2)  # pixels of the averages that `fill_from_surroundings` takes in turn
Postprocess = Callable[[np.ndarray], np.ndarray]  # of an image (H, W, 3) uint8 RGB
CropBox = tuple[int, int, int, int]  # left, top, right, bottom


def make_initial_latents(
    pipe: Pipeline,
    image: ImageLike,
    height: int,
    width: int,
    generator: torch.Generator | None = None,
    fit: str = "crop",
) -> torch.Tensor:
    """Return latents (1, C, h, w) for `pipe(..., latents=…)` of a diffusers text-to-image pipeline: noise from the
    generator, mixed with as much of the image as training has at its last timestep.

    `image` is anything that `read_image` takes, usually the map of inpaint_only+lama; it comes to `height` x `width`
    pixels by `fit`, as in `Unit`. Raises ValueError where the scheduler has no cumulated alphas."""
    import torch

    from ..hosts.diffusers.host import encode_vae_image

    alphas = getattr(pipe.scheduler, "alphas_cumprod", None)
    if alphas is None:
        raise ValueError(f"{type(pipe.scheduler).__name__} has no cumulated alphas, which say how much is noise")
    latents = encode_vae_image(pipe.vae, fit_image(read_image(image), height, width, fit), pipe._execution_device)
    device = torch.device("cpu") if generator is None else generator.device
    gauss = torch.randn(latents.shape, generator=generator, dtype=pipe.unet.dtype, device=device).to(latents.device)
    signal = float(alphas[-1]) ** 0.5
    return NoiseLevel("epsilon", signal, (1 - signal**2) ** 0.5).add_noise(latents.to(gauss), gauss)


def composite(
    image: ImageLike, original: ImageLike, mask: ImageLike, blur: int = MASK_BLUR, fit: str = "crop"
) -> np.ndarray:
    """Return the image (H, W, 3) uint8 RGB with the original's pixels where the mask is black.

    The two are mixed over a border of `blur` pixels, 0..64, outside the mask's edge. Original and mask have one size
    and come to the image's by `fit`, as in `Unit`. Images are anything that `read_image` takes, the mask anything that
    `read_mask` takes. Raises ValueError on other sizes and blurs."""
    if not isinstance(blur, int) or not 0 <= blur <= 64:
        raise ValueError(f"blur {blur!r}, expected a whole number 0..64")
    pixels, own, white = read_image(image), read_image(original), read_mask(mask)
    if own.shape != white.shape:
        sizes = [f"{width}x{height}" for height, width, _ in (white.shape, own.shape)]
        raise ValueError(f"the mask is {sizes[0]} pixels, but the image {sizes[1]}")
    height, width, _ = pixels.shape
    both = fit_image(np.dstack([own, white[..., 0]]), height, width, fit)
    share: np.ndarray = (both[..., 3] > 127).astype(np.float32)
    if blur:
        share = cv2.blur(cv2.dilate(share, np.ones((blur, blur), np.uint8)), (blur, blur))
    blend = share[..., None] * pixels + (1 - share[..., None]) * both[..., :3]
    return np.rint(blend).clip(0, 255).astype(np.uint8)


RECOLOR_CHANNELS = {  # by `Traits.recolors`: conversion from RGB, conversion back, index of the channel
    "lightness": (cv2.COLOR_RGB2LAB, cv2.COLOR_LAB2RGB, 0),
    "value": (cv2.COLOR_RGB2HSV, cv2.COLOR_HSV2RGB, 2),
}


def postprocess_for(
    spec: Preprocessor, pixels: np.ndarray, mask: np.ndarray | None, fit: str, blur: int = MASK_BLUR
) -> Postprocess | None:
    """Return what units of this preprocessor do to the finished image by its traits, None for most. `pixels` is the map
    and `mask` is white where to repaint, both (H, W, 3) uint8; they come to the image's size by `fit`. `blur` is
    `composite`'s."""
    if spec.traits.restores_unmasked and mask is not None:
        return partial(composite, original=pixels, mask=mask, blur=blur, fit=fit)
    if spec.traits.recolors is not None:
        return partial(replace_lightness, gray=pixels, channel=spec.traits.recolors, fit=fit)
    return None


def replace_lightness(image: np.ndarray, gray: np.ndarray, channel: str, fit: str = "crop") -> np.ndarray:
    """Replace the image's "lightness" (L of CIE Lab) or "value" (V of HSV) with a map. Both are (H, W, 3) uint8 RGB;
    the map comes to the image's size by `fit`."""
    to, back, place = RECOLOR_CHANNELS[channel]
    channels = cv2.cvtColor(image, to)
    channels[..., place] = fit_image(gray, image.shape[0], image.shape[1], fit)[..., 0]
    return cv2.cvtColor(channels, back)


@dataclass(frozen=True, eq=False)
class InpaintArea:
    """The part of an image that img2img repaints, at the size of the run and in the whole image.

    `image` (h, w, 3) uint8 RGB and `mask` (h, w) uint8, white where to repaint, have the size of the run; in the masked
    part the image holds what the run begins with, which `masked_content` names: "fill", "original", "noise" or
    "nothing". The result goes into `canvas` (H, W, 3) at `crop_box` as far as `blend_mask` (H, W) is white.
    `only_masked`: the box surrounds the mask with `padding` pixels; otherwise it is the whole canvas. `mask_blur` and
    `is_inverted` say how the mask was made."""

    image: np.ndarray
    mask: np.ndarray
    masked_content: str
    canvas: np.ndarray
    blend_mask: np.ndarray
    crop_box: CropBox
    only_masked: bool
    mask_blur: float
    padding: int
    is_inverted: bool

    def paste_into_canvas(self, pixels: np.ndarray) -> np.ndarray:
        """Return the canvas (H, W, 3) uint8 with the generated image (h, w, 3) uint8 in its box."""
        left, top, right, bottom = self.crop_box
        result = self.canvas.copy()
        result[top:bottom, left:right] = fit_image(pixels, bottom - top, right - left, "crop")
        share = self.blend_mask[..., None].astype(np.float32) / 255
        return np.rint(result * share + self.canvas * (1 - share)).astype(np.uint8)


def make_inpaint_area(
    image: np.ndarray,
    mask: np.ndarray,
    size: tuple[int, int],
    fit: str,
    *,
    blur: tuple[float, float] = (4, 4),
    padding: int = 0,
    masked_content: str = "fill",
    only_masked: bool = True,
    is_inverted: bool = False,
) -> InpaintArea | None:
    """Return the area of `image` (H, W, 3) uint8 RGB to repaint where `mask` (H, W, 3) is white, for a run of `size`
    (height, width) in pixels. None where only the masked part is wanted and the mask is black.

    The image comes to the size by `fit` unless `only_masked`. `blur` are the standard deviations, in pixels along x and
    y, of the Gaussian that softens the mask."""
    height, width = size
    soft = _blur_mask(mask[..., 0], *blur)
    if only_masked:
        if not soft.any():
            return None
        canvas, blend_mask, box = image, soft, _find_crop_box(soft, padding, height, width)
        left, top, right, bottom = box
        crop = fit_image(np.ascontiguousarray(image[top:bottom, left:right]), height, width, "fill")
        soft = fit_image(cv2.merge([soft[top:bottom, left:right]] * 3), height, width, "fill")[..., 0]
    else:
        canvas = crop = fit_image(image, height, width, fit)
        soft = fit_image(cv2.merge([soft] * 3), height, width, fit)[..., 0]
        blend_mask, box = np.minimum(soft.astype(np.uint16) * 2, 255).astype(np.uint8), (0, 0, width, height)
    initial = crop if masked_content == "original" else fill_from_surroundings(crop, soft)
    return InpaintArea(
        initial, soft, masked_content, canvas, blend_mask, box, only_masked, max(blur), padding, is_inverted
    )


def fill_from_surroundings(pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the image (H, W, 3) uint8 with the masked part in the colors around it, nearer ones more."""
    weights = 1 - mask[..., None].astype(np.float32) / 255
    own = pixels * weights
    result = np.full_like(own, 127)
    for size in FILL_BLOCK_SIZES:
        coverage = np.atleast_3d(_average_blocks(weights, size))
        near = _average_blocks(own, size) / np.maximum(coverage, 1e-6)
        result += np.minimum(4 * coverage, 1) * (near - result)
    return np.rint(result * (1 - weights) + own).clip(0, 255).astype(np.uint8)


def _average_blocks(x: np.ndarray, block_size: int) -> np.ndarray:
    height, width = x.shape[:2]
    small = cv2.resize(x, (max(width // block_size, 1), max(height // block_size, 1)), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)


def _blur_mask(mask: np.ndarray, sigma_x: float, sigma_y: float) -> np.ndarray:
    for sigma, across in ((sigma_x, True), (sigma_y, False)):
        if sigma:
            side = 2 * int(2.5 * sigma + 0.5) + 1
            mask = cv2.GaussianBlur(mask, (side, 1) if across else (1, side), sigma)
    return mask


def _find_crop_box(mask: np.ndarray, padding: int, height: int, width: int) -> CropBox:
    """Return the box around the non-black pixels of `mask` (H, W), `padding` pixels larger, with the aspect ratio of
    (height, width) as far as the mask has room."""
    spans = []
    for axis, limit in ((0, mask.shape[1]), (1, mask.shape[0])):
        (places,) = np.nonzero(mask.any(axis=axis))
        spans.append((max(int(places[0]) - padding, 0), min(int(places[-1]) + 1 + padding, limit)))
    (left, right), (top, bottom) = spans
    left, right = _grow_interval(left, right, int((bottom - top) * width / height), mask.shape[1])
    top, bottom = _grow_interval(top, bottom, int((right - left) * height / width), mask.shape[0])
    return left, top, right, bottom


def _grow_interval(start: int, stop: int, length: int, limit: int) -> tuple[int, int]:
    """Return an interval of at least `length` about the same middle, moved into 0..`limit` or cut to it."""
    more = max(length - (stop - start), 0)
    start, stop = start - more // 2, stop + more - more // 2
    move = max(-start, 0) - max(stop - limit, 0) if stop - start <= limit else -start
    return max(start + move, 0), min(stop + move, limit)
