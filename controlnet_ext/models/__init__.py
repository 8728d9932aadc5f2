"""Control models. Each kind is one file of this package; a file added here is found by that alone. It has

    detect(names) -> bool                   whether tensors of these names are of its kind
    load(tensors, config) -> ControlModel   the model, which shares the tensors; ValueError on missing or unknown ones

and where its files are written in more than one layout, also `layout(names) -> str`, which of them tensors of these
names are in. Such a model is a torch module with `LAYOUTS`, by layout what turns its state dict into a file's tensors;
`config()`, what diffusers' config.json says of it (ValueError where diffusers has no such network); and `unseen()`,
what its tensors do not show, in diffusers' words. Any model may have `details() -> dict`, for `controlnet-ext inspect`.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files.disk import parse_object
from .state_dict.foreign import describe_foreign
from .state_dict.location import locate_weights, read_config

if TYPE_CHECKING:
    import torch

    from ..files.weights import Weights
    from ..guidance.contract import ControlModel

CONFIG_METADATA_KEY = "controlnet_ext.config"  # where safetensors' metadata hold a config in diffusers' words


@dataclass(frozen=True, eq=False)
class ControlFile:
    """A file of weights that was read, the kind of control model it holds (a module of this package; None: it is none)
    and what a config beside or inside it states."""

    path: Path
    weights: Weights
    kind: Any
    config: dict[str, Any]

    @classmethod
    def read(cls, path_or_repo: str | os.PathLike[str], with_values: bool = True) -> ControlFile:
        """ValueError or FileNotFoundError is one line that begins with the file. Without `values` the model that is
        loaded of it is on torch's meta device."""
        from ..files.weights import read_weights  # until here nothing needs an image library

        path = locate_weights(path_or_repo)
        weights = read_weights(path, with_values)
        name = repr(str(path))
        stated = parse_object(
            weights.metadata.get(CONFIG_METADATA_KEY, "{}").encode(), f"{name}: {CONFIG_METADATA_KEY}"
        )
        kinds = [kind for kind in iter_kinds() if kind.detect(weights.tensors)]
        if len(kinds) > 1:
            both = " and ".join(kind.__name__ for kind in kinds)
            raise ValueError(f"{name} is claimed by two kinds of control model: {both}")
        return cls(path, weights, kinds[0] if kinds else None, {**stated, **read_config(path)})

    def load(self) -> ControlModel:
        """The model, on the CPU, in the file's dtype, which shares the tensors of `weights`."""
        name = repr(str(self.path))
        if self.kind is None:
            raise ValueError(f"{name} is not a control model but {describe_foreign(self.weights.tensors)}")
        try:
            return self.kind.load(self.weights.tensors, self.config)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error


def load(
    path_or_repo: str | os.PathLike[str], device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> ControlModel:
    """The control model in a file, a folder, or a repository that is in the local Hugging Face cache.

    Its kind is told by the names of its tensors, never by the file's. `dtype` None keeps the file's. Settings that
    tensors do not show come from the config.json that belongs to the file, else from its safetensors metadata.
    FileNotFoundError or ValueError is one line that begins with the file and says what it is instead, or what is
    missing.
    """
    net: Any = ControlFile.read(path_or_repo).load()
    return net.to(device=device, dtype=dtype)


def iter_kinds() -> list[Any]:
    """The modules of all kinds."""
    from . import kinds

    modules = (
        importlib.import_module(f"{kinds.__name__}.{file.name}") for file in pkgutil.iter_modules(kinds.__path__)
    )
    return [module for module in modules if hasattr(module, "detect")]
