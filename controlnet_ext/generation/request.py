"""The request for an image: every front end builds one, and `render` runs it. No files, no HTTP, no networks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..guidance.unit import Unit
from .inpainting import InpaintArea, Postprocess

LATENT_UPSCALERS = {  # name in the webui: torch's interpolation mode of the latents, and antialias
    "Latent": ("bilinear", False),
    "Latent (antialiased)": ("bilinear", True),
    "Latent (bicubic)": ("bicubic", False),
    "Latent (bicubic antialiased)": ("bicubic", True),
    "Latent (nearest)": ("nearest", False),
    "Latent (nearest-exact)": ("nearest-exact", False),
}
PIXEL_UPSCALERS = {"None": "lanczos", "Lanczos": "lanczos", "Nearest": "nearest"}  # interpolation of the image
UPSCALERS = (*LATENT_UPSCALERS, *PIXEL_UPSCALERS)


@dataclass(frozen=True)
class HiresFix:
    """A second pass over an enlarged first image, as the webui's hires fix.

    The image of the first pass is enlarged to `canvas_size`, (height, width) in pixels that cover `size`, cut to `size`
    about its middle, and denoised again in `steps` at `strength`, 0..1. `upscaler` is one of `UPSCALERS`."""

    size: tuple[int, int]
    canvas_size: tuple[int, int]
    upscaler: str
    steps: int
    strength: float


@dataclass(frozen=True, eq=False, kw_only=True)
class GenerationRequest:
    """Text, numbers and initial images of one generation, for any Stable Diffusion pipeline of diffusers.

    `prompt` is a text, or a tuple of texts: then all images come out of one batch and begin with the same noise, each
    prompt `images_per_prompt` times in a row. `width` and `height` are in pixels, multiples of 8. `clip_skip` is the
    number of last text encoder layers to skip. With `init_image`, (H, W, 3) uint8 RGB of that size, the run is
    image-to-image at `strength`, 0..1; with `inpaint_area` it repaints the area's masked part; `hires_fix` adds a
    second pass to text-to-image.

    A recipe in a PNG (`GenerationRecipe`) and a webui client's request (`WebuiRequest`) extend it by what they store
    beside it."""

    prompt: str | tuple[str, ...]
    negative_prompt: str
    seed: int
    steps: int
    width: int
    height: int
    guidance_scale: float
    images_per_prompt: int = 1
    clip_skip: int = 0
    init_image: np.ndarray | None = None
    strength: float = 1.0
    inpaint_area: InpaintArea | None = None
    hires_fix: HiresFix | None = None

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompt of each image, in the order of the images."""
        texts = (self.prompt,) if isinstance(self.prompt, str) else self.prompt
        return tuple(text for text in texts for _ in range(self.images_per_prompt))

    @property
    def denoising_strength(self) -> float | None:
        """The strength of the pass that begins with an image, or None."""
        return self.hires_fix.strength if self.hires_fix else None if self.init_image is None else self.strength


@dataclass(frozen=True, eq=False)
class GuidanceSetup:
    """Units with loaded models, and what their preprocessors do before and after the run.

    `postprocess` is applied to each image in order. `initial_noise_image`, (H, W, 3) uint8 RGB, is mixed into the
    noise that a text-to-image run begins with (inpaint_only+lama)."""

    units: tuple[Unit, ...] = ()
    postprocess: tuple[Postprocess, ...] = ()
    initial_noise_image: np.ndarray | None = None
