"""ControlNet: a copy of the UNet's encoder, or one that a file holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ...models import load
from ...models.kinds.controlnet import ControlNet
from . import TargetSettings, TrainingTarget

if TYPE_CHECKING:
    from ...guidance.contract import UNet


class ControlNetTarget(TrainingTarget):
    """A ControlNet. A fresh one acts as nothing."""

    architecture = "controlnet"
    diffusers_class = "ControlNetModel"

    def create(self, unet: UNet, settings: TargetSettings) -> ControlNet:
        """Return the network, in float32, bound to a UNet with weights, all of it to be trained.

        Raises ValueError where the file is another kind, or does not fit the UNet.
        """
        control = settings.control
        net = ControlNet.from_unet(unet, torch.float32) if control is None else load(control, dtype=torch.float32)
        if not isinstance(net, ControlNet):
            raise ValueError(f"{str(control)!r} is a {net.architecture}, expected a ControlNet")
        net.bind(unet)
        return net


TARGET = ControlNetTarget()
