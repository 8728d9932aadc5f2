"""Images with and without guidance from the same noise, in one run of the pipeline: as many UNet calls as for one
image, each with all of them in its batch."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ..guidance.contract import ControlModel, Residuals, Step, UNet
from ..guidance.unit import Unit
from ..guidance.weighting import scatter_rows, select_rows
from ..maps.control_map import ControlMap
from .recipe import GenerationRequest, GuidanceSetup
from .render import render

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline


class _EveryOtherImage(ControlModel):
    """A control model that acts on the second image of each pair only."""

    def __init__(self, model: ControlModel):
        self._model = model
        self.architecture, self.family = model.architecture, model.family

    def bind(self, unet: UNet) -> None:
        self._model.bind(unet)

    def hint(self, image: np.ndarray | Tensor) -> Any:
        return self._model.hint(image)

    def __call__(self, step: Step, hint: Tensor) -> Residuals:
        assert step.samples is not None
        rows = (step.samples % 2).nonzero()[:, 0]
        return scatter_rows(self._model(select_rows(step, rows), hint[rows]), rows, len(step.x))


def generate_pairs(
    pipe: DiffusionPipeline, model: ControlModel, control_map: ControlMap, request: GenerationRequest
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return unguided and guided images, each (H, W, 3) uint8 RGB, one of each for every prompt of `request`.

    All begin with the noise that `controlnet-ext generate` draws from the request's seed. `control_map` has the size of
    the images. Raises as `render` does."""
    request = replace(request, images_per_prompt=2)
    images = render(pipe, request, GuidanceSetup((Unit(_EveryOtherImage(model), control_map),)))
    return images[::2], images[1::2]
