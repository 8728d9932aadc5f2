"""Models on the same weights that do something else with them."""

from __future__ import annotations

from copy import copy
from typing import Any

import torch


def streamed(model: Any, device: torch.device) -> Any:
    """A model of another kind, on the same weights, whose network `net` computes on `device` as `ControlNet.on` has
    it."""
    moved = copy(model)
    moved.streams_to = device
    moved._modules = {**model._modules, "net": model.net.on(device)}
    return moved


def pooling(model: Any) -> Any:
    """The model with its residuals averaged over the picture."""
    pooled = copy(model)
    pooled.global_average_pooling = True
    return pooled
