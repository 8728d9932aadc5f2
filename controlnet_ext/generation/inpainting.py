"""Before and after a run that repaints part of a picture: noise that begins with a filled picture, and the picture's
own pixels back where nothing was repainted. Formulas of sd-webui-controlnet (@ 56cec5b).

What is done to a picture after its run, as sd-webui-controlnet (@ 56cec5b) does it: inpaint_only puts the original's
own pixels back, recolor the lightness of its map.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from ..files.image_reader import read_image
from ..guidance.after_steps import NoiseLevel
from ..maps.resize import fit as fitted

if TYPE_CHECKING:
    import torch

    from ..preprocessors.registry import Preprocessor


MASK_BLUR = 7  # pixels, its setting's default


def make_initial_latents(
    pipe: Any, image: Any, height: int, width: int, generator: torch.Generator | None = None, fit: str = "crop"
) -> torch.Tensor:
    """Latents `(1, C, h, w)` for `pipe(..., latents=…)` of a diffusers text pipeline: the noise that it would draw from
    this generator, with as much of the picture in it as training has at its last timestep. `filled` is what
    inpaint_only+lama gives, any picture that `read_image` takes; it comes to the size as `Unit.fit` says."""
    import torch

    from ..hosts.diffusers.host import encode_vae_image

    alphas = getattr(pipe.scheduler, "alphas_cumprod", None)
    if alphas is None:
        raise ValueError(f"{type(pipe.scheduler).__name__} has no cumulated alphas, which say how much is noise")
    picture = encode_vae_image(pipe.vae, fitted(read_image(image), height, width, fit), pipe._execution_device)
    device = torch.device("cpu") if generator is None else generator.device
    gauss = torch.randn(picture.shape, generator=generator, dtype=pipe.unet.dtype, device=device).to(picture.device)
    signal = float(alphas[-1]) ** 0.5
    return NoiseLevel("epsilon", signal, (1 - signal**2) ** 0.5).add_noise(picture.to(gauss), gauss)


def composite(image: Any, original: Any, mask: Any, blur: int = MASK_BLUR, fit: str = "crop") -> np.ndarray:
    """The picture, (H, W, 3) uint8 RGB, with the original's own pixels where the mask is black, mixed over a border of
    `blur` pixels outside of the mask's edge, 0 for none. Original and mask, which are of one size, come to the
    picture's as `Unit.fit` says. All three are what `read_image` takes. ValueError on other sizes and blurs."""
    if not isinstance(blur, int) or not 0 <= blur <= 64:
        raise ValueError(f"blur {blur!r}, expected a whole number 0..64")
    made, own, white = read_image(image), read_image(original), read_image(mask)
    if own.shape != white.shape:
        sizes = [f"{width}x{height}" for height, width, _ in (white.shape, own.shape)]
        raise ValueError(f"the mask is {sizes[0]} pixels, but the image {sizes[1]}")
    height, width, _ = made.shape
    both = fitted(np.dstack([own, white[..., 0]]), height, width, fit)
    share: np.ndarray = (both[..., 3] > 127).astype(np.float32)
    if blur:
        share = cv2.blur(cv2.dilate(share, np.ones((blur, blur), np.uint8)), (blur, blur))
    mixed = share[..., None] * made + (1 - share[..., None]) * both[..., :3]
    return np.rint(mixed).clip(0, 255).astype(np.uint8)


Postprocess = Callable[[np.ndarray], np.ndarray]  # of a picture (H, W, 3) uint8 RGB
RECOLOR_CHANNELS = {  # by `Traits.recolors`: conversion from RGB, conversion back, index of the channel
    "lightness": (cv2.COLOR_RGB2LAB, cv2.COLOR_LAB2RGB, 0),
    "value": (cv2.COLOR_RGB2HSV, cv2.COLOR_HSV2RGB, 2),
}


def postprocess_for(
    spec: Preprocessor | None, pixels: np.ndarray, mask: np.ndarray | None, fit: str, blur: int = MASK_BLUR
) -> Postprocess | None:
    """Return what units of this preprocessor do to the finished image by its traits, None for most. `pixels` is the map
    and `mask` is white where to repaint, both (H, W, 3) uint8; they come to the image's size by `fit`. `blur` is
    `composite`'s."""
    if spec is None:
        return None
    if spec.traits.restores_unmasked and mask is not None:
        return partial(composite, original=pixels, mask=mask, blur=blur, fit=fit)
    if spec.traits.recolors is not None:
        return partial(replace_lightness, gray=pixels, channel=spec.traits.recolors, fit=fit)
    return None


def replace_lightness(image: np.ndarray, gray: np.ndarray, channel: str, fit: str = "crop") -> np.ndarray:
    """Replace the image's "lightness" (L of CIE Lab) or "value" (V of HSV) with a map. Both are (H, W, 3) uint8 RGB;
    the map comes to the image's size by `fit`."""
    to, back, place = RECOLOR_CHANNELS[channel]
    changed = cv2.cvtColor(image, to)
    changed[..., place] = fitted(gray, image.shape[0], image.shape[1], fit)[..., 0]
    return cv2.cvtColor(changed, back)
