"""Control models: loading by the content of a file. Each kind is one module of `kinds/`, found by being there.

A module of a kind defines `detect(names) -> bool`, True if tensors of these names are of its kind; `load(tensors,
config) -> ControlModel`, which shares the tensors and raises ValueError on missing or unknown ones; and, if files come
in more than one layout, `layout(names) -> str`. The members of a model are those of
`controlnet_ext.guidance.contract.ControlModel`.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
from collections.abc import Collection, Iterable, Sequence
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


@dataclass(frozen=True)
class KeyMarkers:
    """Names of tensors by which files of a kind are recognized, as regular expressions for whole names.

    A file is of the kind if each pattern of one tuple of `any_of` matches some of its names, and `none_of` matches
    none."""

    any_of: tuple[tuple[str, ...], ...]
    none_of: str | None = None

    @classmethod
    def from_prefixes(cls, any_of: Iterable[Sequence[str]], none_of: str | None = None) -> KeyMarkers:
        """Return markers that are beginnings of names, instead of patterns; `none_of` is a whole name."""
        patterns = tuple(tuple(f"{re.escape(prefix)}.*" for prefix in prefixes) for prefixes in any_of)
        return cls(patterns, None if none_of is None else re.escape(none_of))

    def __call__(self, names: Collection[str]) -> bool:
        """Return True if a file with tensors of these names is of the kind."""

        def is_present(pattern: str) -> bool:
            return any(map(re.compile(pattern, re.DOTALL).fullmatch, names))

        if not any(all(map(is_present, patterns)) for patterns in self.any_of):
            return False
        return self.none_of is None or not is_present(self.none_of)


@dataclass(frozen=True, eq=False)
class ControlFile:
    """A file of weights, with the kind of control model that it holds and the config beside or inside it.

    `kind` is a module of `kinds/`, None if the file holds no control model.
    """

    path: Path
    weights: Weights
    kind: Any
    config: dict[str, Any]

    @classmethod
    def read(
        cls, path_or_repo: str | os.PathLike[str], with_values: bool = True, with_sha256: bool = False
    ) -> ControlFile:
        """Read a file, a folder or a cached repository.

        With `with_values` False the model that is loaded of it is on torch's meta device. `with_sha256` hashes the file
        while it is read. Raises ValueError or FileNotFoundError in one line that begins with the file.
        """
        from ..files.weights import read_weights  # until here nothing needs an image library

        path = locate_weights(path_or_repo)
        weights = read_weights(path, with_values, with_sha256)
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
        """Return the model, on the CPU, in the dtype of the file, sharing the tensors of `weights`.

        Raises ValueError if the file holds no control model, or its tensors do not fit the kind.
        """
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
    """Load the control model in a file, a folder, or a repository that is in the local Hugging Face cache.

    The kind is recognized by the names of the tensors, never by that of the file. `dtype` None keeps the file's.
    Settings that tensors do not show come from the config.json that belongs to the file, else from its safetensors
    metadata. Raises FileNotFoundError or ValueError in one line that begins with the file and states what it is
    instead, or what is missing.
    """
    net: Any = ControlFile.read(path_or_repo).load()
    return net.to(device=device, dtype=dtype)


def iter_kinds() -> list[Any]:
    """Return the modules of all kinds."""
    from . import kinds

    modules = (
        importlib.import_module(f"{kinds.__name__}.{file.name}") for file in pkgutil.iter_modules(kinds.__path__)
    )
    return [module for module in modules if hasattr(module, "detect")]
