"""ControlNet: a copy of the UNet's encoder, or one that a file holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ...models.kinds.controlnet import ControlNet
from . import TargetSettings, TrainingTarget

if TYPE_CHECKING:
    from ...guidance.contract import UNet


class ControlNetTarget(TrainingTarget):
    """A ControlNet. A fresh one acts as nothing; beside an inpainting UNet it reads the latents alone."""

    kind = "controlnet"
    diffusers_class = "ControlNetModel"

    def create_fresh(self, unet: UNet, settings: TargetSettings) -> ControlNet:
        """Return a copy of the UNet's encoder with zero convolutions, in float32."""
        return ControlNet.from_unet(unet, torch.float32, unet.config["out_channels"])


TARGET = ControlNetTarget()
