"""Models on the same weights that do something else with them."""

from __future__ import annotations

from copy import copy
from typing import Any

import torch
from torch import nn


class Around(nn.Module):
    """A model around a ControlNet, its `net`, which does nearly all of its work."""

    net: Any

    def on(self, device: torch.device) -> Any:
        """As `ControlNet.on`."""
        moved: Any = copy(self)
        moved.streams_to = device
        moved._modules = {**self._modules, "net": self.net.on(device)}
        return moved

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """As `ControlNet.compile`."""
        self.net.compile(*args, **kwargs)


def pooling(model: Any) -> Any:
    """The model with its residuals averaged over the picture."""
    pooled = copy(model)
    pooled.global_average_pooling = True
    return pooled
