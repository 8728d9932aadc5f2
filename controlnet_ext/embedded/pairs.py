"""Pictures with and without guidance from the same noise, in one run of the pipeline: as many UNet calls as for one
picture, each with all of them in its batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..guidance.contract import ControlModel, Residuals, Step
from ..guidance.unit import Unit
from ..guidance.weighting import scatter_rows, select_rows
from ..hosts.diffusers.guide import guide
from ..maps.control_map import ControlMap


class _EveryOtherImage(ControlModel):
    """A control model that acts on the second picture of each pair only."""

    def __init__(self, model: Any):
        self._model = model
        self.architecture, self.family = model.architecture, model.family

    def bind(self, unet: Any) -> None:
        self._model.bind(unet)

    def hint(self, image: Any) -> Any:
        return self._model.hint(image)

    def __call__(self, step: Step, hint: Tensor) -> Residuals:
        assert step.samples is not None
        rows = (step.samples % 2).nonzero()[:, 0]
        return scatter_rows(self._model(select_rows(step, rows), hint[rows]), rows, len(step.x))


def generate_pairs(
    pipe: Any,
    model: ControlModel,
    control_map: ControlMap,
    prompts: Sequence[str],
    steps: int,
    guidance: float,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Unguided and guided pictures, each (N, H, W, 3) RGB uint8 of the map's size, one for each prompt. All begin with
    the noise that `controlnet-ext generate` draws from that seed."""
    height, width, _ = control_map.pixels.shape
    size = height // pipe.vae_scale_factor, width // pipe.vae_scale_factor
    noise = torch.randn((1, pipe.unet.config["in_channels"], *size), generator=torch.Generator().manual_seed(seed))
    with guide(pipe, [Unit(_EveryOtherImage(model), control_map)]):
        pictures = pipe(
            list(prompts),
            num_images_per_prompt=2,
            num_inference_steps=steps,
            guidance_scale=guidance,
            latents=noise.repeat(2 * len(prompts), 1, 1, 1),
            output_type="np",
        ).images
    pixels = (pictures * 255).round().astype(np.uint8)
    return pixels[::2], pixels[1::2]
