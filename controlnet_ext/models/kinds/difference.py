"""ControlNets kept as what is added to the UNet that they were made from."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch

from .. import base_unet as source

DIFFERENCE = "difference"  # a tensor that marks such files (sd-webui-controlnet @ 56cec5b, extract_controlnet_diff.py)


class Difference:
    """What is still to be done to a ControlNet whose weights are a difference: be added to a UNet's, once."""

    def __init__(self) -> None:
        self._unet: Callable[[], Any] | None = None

    def check(self) -> None:
        """ValueError as long as the UNet's weights were not added."""
        if self._unet is None:
            raise ValueError("holds a ControlNet minus a UNet; the weights of the UNet it was made from are missing")

    @torch.no_grad()
    def settle(self, net: Any, unet: Any) -> None:
        """Add the UNet's weights to all of the network's that have their names, in float32. ValueError when that was
        done with another UNet."""
        first = source.layer(unet, "conv_in")  # tells UNets apart, whatever shows them
        if self._unet is not None:
            if self._unet() is not first:
                raise ValueError("a difference that was added to another model's weights; load it once more for this")
            return
        self._unet = lambda: None  # what is interrupted here has to be loaded once more
        own = dict(net.named_parameters())
        for name, tensor in source.encoder(unet).items():
            if name in own:
                if name == "conv_in.weight":
                    tensor = tensor[:, : net.plan.channels]  # of an inpainting UNet
                own[name].data = (own[name].float() + tensor.to(own[name].device).float()).to(own[name].dtype)
        self._unet = weakref.ref(first)
