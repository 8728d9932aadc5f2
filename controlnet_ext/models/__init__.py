"""Control models. Each kind is one file of this package with `detect(names) -> bool`, whether tensors of these names
are of its kind, and `load(tensors, config) -> ControlModel`; a file added here is found by that alone."""

from __future__ import annotations

import importlib
import os
import pkgutil
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from preprocessors.disk import parse_object

from .location import config_of, locate

if TYPE_CHECKING:
    import torch

    from ..control import ControlModel

CONFIG = "controlnet_ext.config"  # where safetensors' metadata hold a config in diffusers' words

# What a file that is no control model may be: the first of these that has a mark in any of its names.
OTHERS = {
    "a Stable Diffusion checkpoint": ("model.diffusion_model.",),
    "a LoRA": (".lora_", "lora_unet_", "lora_te"),
    "a VAE": ("decoder.",),
    "a UNet": ("up_blocks.", "output_blocks."),
    "a text encoder": ("text_model.",),
}


def load(
    path_or_repo: str | os.PathLike[str], device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> ControlModel:
    """The control model in a file, a folder, or a repository that is in the local Hugging Face cache.

    Its kind is told by the names of its tensors, never by the file's. `dtype` None keeps the file's. Settings that
    tensors do not show come from the config.json that belongs to the file, else from its safetensors metadata.
    FileNotFoundError or ValueError is one line that begins with the file and says what it is instead, or what is
    missing.
    """
    from preprocessors.files import read_weights  # until here nothing needs an image library

    path = locate(path_or_repo)
    weights = read_weights(path)
    name = repr(str(path))
    stated = parse_object(weights.metadata.get(CONFIG, "{}").encode(), f"{name}: {CONFIG}")
    kinds = [kind for kind in found() if kind.detect(weights.tensors)]
    if len(kinds) > 1:
        raise ValueError(f"{name} is claimed by two kinds of control model: {' and '.join(k.__name__ for k in kinds)}")
    if not kinds:
        raise ValueError(f"{name} is not a control model but {_seen(weights.tensors)}")
    try:
        net = kinds[0].load(weights.tensors, {**stated, **config_of(path)})
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return net.to(device=device, dtype=dtype)


def found() -> list[Any]:
    """The modules of all kinds."""
    modules = (importlib.import_module(f"{__name__}.{file.name}") for file in pkgutil.iter_modules(__path__))
    return [module for module in modules if hasattr(module, "detect")]


def _seen(names: Iterable[str]) -> str:
    for words, marks in OTHERS.items():
        if any(mark in name for name in names for mark in marks):
            return words
    some = sorted(names)[:3]
    return f"something unknown, with tensors {', '.join(some)} …" if some else "empty"
