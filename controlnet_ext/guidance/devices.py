"""On which device a control model is while it works."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .contract import ControlModel


@contextmanager
def on_device(model: ControlModel, device: torch.device) -> Iterator[None]:
    """The model on this device, and afterwards back where it was. One stays that accelerate moves, that has no weights,
    or that computes elsewhere than they are."""
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
