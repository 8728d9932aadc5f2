"""Guidance for Stable Diffusion: maps become residuals, residuals enter a frozen UNet and leave no trace.

    unit = Unit(load("canny.safetensors"), "photo.jpg", preprocessor="canny", window=Window(0, 0.8))
    with guide(pipe, [unit]):
        image = pipe("a red house").images[0]

Importing this loads no torch: that happens where it is needed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

if not os.path.isdir(os.path.join(__path__[0], "preprocessors")):  # a checkout: they lie beside this folder
    __path__.append(os.path.dirname(__path__[0]))

from .guidance.contract import ControlModel, Residuals, Step
from .guidance.schedule import Span, Window
from .guidance.unit import PerSample, Unit
from .maps.control_map import ControlMap
from .preprocessors.registry import preprocess

if TYPE_CHECKING:
    import torch

__version__ = "0.1.0"  # pyproject.toml reads it from here
__all__ = [
    "ControlMap",
    "ControlModel",
    "PerSample",
    "Residuals",
    "Span",
    "Step",
    "Unit",
    "Window",
    "__version__",
    "crop_maps",
    "guide",
    "load",
    "preprocess",
]


def load(
    path_or_repo: str | os.PathLike[str], device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> ControlModel:
    """Load the control model in a file, a folder or a cached repository, or of the embedded model ("embedded/canny").

    The kind of model is recognized by the names of its tensors. `dtype` None keeps the file's. Raises ValueError or
    FileNotFoundError in one line that begins with the name.
    """
    from . import models
    from .embedded import resolve_embedded, restrict_map_kind

    if not isinstance(path_or_repo, str):
        return models.load(path_or_repo, device, dtype)
    return restrict_map_kind(models.load(resolve_embedded(path_or_repo), device, dtype), path_or_repo)


def crop_maps(
    boxes: tuple[int, int, int, int] | Sequence[tuple[int, int, int, int]], image_size: tuple[int, int]
) -> AbstractContextManager[None]:
    """Return a context manager in which guided calls show a part of an image, and have that part of the maps; see
    `controlnet_ext.hosts.session.crop_maps`."""
    from .hosts import session

    return session.crop_maps(boxes, image_size)


def guide(pipe: Any, units: Iterable[Unit]) -> AbstractContextManager[None]:
    """Return a context manager in which calls of a diffusers pipeline are guided by the units; see
    `controlnet_ext.hosts.diffusers.guide`."""
    from .hosts.diffusers import guide as diffusers

    return diffusers.guide(pipe, units)
