"""On which device a control model is while it works."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def is_streamed(model: Any) -> bool:
    """Whether the model computes elsewhere than its weights are (`on`)."""
    return getattr(model, "stream_device", None) is not None


@contextmanager
def on_device(model: Any, device: torch.device) -> Iterator[None]:
    """The model on this device, and afterwards back where it was. One stays that accelerate moves, that has no weights,
    or that computes elsewhere than they are."""
    first = None
    if isinstance(model, torch.nn.Module) and not hasattr(model, "_hf_hook") and not is_streamed(model):
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
