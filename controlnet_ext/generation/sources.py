"""Where a model lies, and the sha256 of the files it consists of."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..embedded import place
from ..files.disk import opened
from ..models.state_dict.location import config_of, locate

NOTHING = "none"  # the path of the model of a unit that has no network


@dataclass(frozen=True)
class Source:
    """A model that is named, not loaded: a file, folder or repository, and in hex the sha256 of its files by their
    names; empty where they are not known yet. It stands for a unit's model until all else is checked."""

    path: str
    sha256: Mapping[str, str] = field(default_factory=dict)

    def hint(self, image: Any) -> Any:
        raise ValueError(f"the model {self.path!r} is not loaded")


def control_files(path: str) -> dict[str, Path]:
    """The files of a control model: "weights", whatever the file is called, and its config. FileNotFoundError or
    ValueError when there is none."""
    weights = locate(place(path))
    config = {"config.json": weights.parent / "config.json"} if config_of(weights) else {}
    return {"weights": weights, **config}


def hashed(files: Mapping[str, Path]) -> dict[str, str]:
    """The sha256 of each file. One after the other (1.1 GB/s with SHA instructions), so that Ctrl-C stops it."""
    return {name: sha256(file) for name, file in files.items()}


def sha256(path: Path) -> str:
    """In hex. FileNotFoundError or ValueError when it cannot be read."""
    digest = hashlib.sha256()
    with opened(path) as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def verify(source: Source, found: Mapping[str, str], option: str) -> None:
    """ValueError unless the hashes found are those of the source; `option` is what names another place."""
    for name, digest in source.sha256.items():
        if name not in found:
            raise ValueError(f"the model {source.path!r} has no {name!r}; {wanted(source, option)}")
        if found[name] != digest:
            raise ValueError(
                f"{name!r} of the model {source.path!r} has sha256 {found[name]}, the recipe was made with {digest}; "
                f"name the right model with {option}"
            )
    if more := sorted(found.keys() - source.sha256.keys()):
        raise ValueError(f"the model {source.path!r} has {more[0]!r}, which the recipe's did not have")


def wanted(source: Source, option: str) -> str:
    """Which model a recipe was made with, by its most telling file, and how to give it."""
    name = min(source.sha256, key=lambda name: (name.endswith((".json", ".txt")), not name.startswith("unet/"), name))
    return f"the recipe was made with one whose {name!r} has sha256 {source.sha256[name]}: name it with {option}"
