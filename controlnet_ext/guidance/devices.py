"""Placing a control model on a device while it works."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .contract import ControlModel


@contextmanager
def on_device(model: ControlModel, device: torch.device) -> Iterator[None]:
    """Move the model to `device`, and back on leaving.

    Models stay where they are if accelerate moves them, if they have no weights, or if they stream their weights.
    """
    first = None
    if isinstance(model, torch.nn.Module) and not hasattr(model, "_hf_hook") and model.stream_device is None:
        first = next(model.parameters(), None)
    if first is None or first.device == device:
        yield
        return
    home = first.device
    model.to(device)
    try:
        yield
    finally:
        model.to(home)
