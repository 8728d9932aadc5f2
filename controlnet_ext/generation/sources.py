"""Where a model lies, and the sha256 of the files it consists of."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..embedded import resolve_embedded
from ..files.disk import open_regular_file
from ..guidance.contract import ControlModel
from ..models.state_dict.location import locate_weights, read_config

NO_MODEL = "none"  # the path of the model of a unit that has no network


@dataclass(frozen=True)
class ModelRef(ControlModel):
    """A model that is named, not loaded: a file, folder or repository, and in hex the sha256 of its files by their
    names; empty where they are not known yet. It stands for a unit's model until all else is checked."""

    path: str
    sha256: Mapping[str, str] = field(default_factory=dict)

    def hint(self, image: Any) -> Any:
        raise ValueError(f"the model {self.path!r} is not loaded")


def find_control_files(path: str) -> dict[str, Path]:
    """The files of a control model: "weights", whatever the file is called, and its config. FileNotFoundError or
    ValueError when there is none."""
    weights = locate_weights(resolve_embedded(path))
    config = {"config.json": weights.parent / "config.json"} if read_config(weights) else {}
    return {"weights": weights, **config}


def hash_files(files: Mapping[str, Path]) -> dict[str, str]:
    """The sha256 of each file. One after the other (1.1 GB/s with SHA instructions), so that Ctrl-C stops it."""
    return {name: hash_file(file) for name, file in files.items()}


def hash_file(path: Path) -> str:
    """In hex. FileNotFoundError or ValueError when it cannot be read."""
    digest = hashlib.sha256()
    with open_regular_file(path) as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def verify_hashes(ref: ModelRef, hashes: Mapping[str, str], option: str) -> None:
    """ValueError unless the hashes found are those of the source; `option` is what names another place."""
    for name, digest in ref.sha256.items():
        if name not in hashes:
            raise ValueError(f"the model {ref.path!r} has no {name!r}; {describe_expected_model(ref, option)}")
        if hashes[name] != digest:
            raise ValueError(
                f"{name!r} of the model {ref.path!r} has sha256 {hashes[name]}, the recipe was made with {digest}; "
                f"name the right model with {option}"
            )
    if more := sorted(hashes.keys() - ref.sha256.keys()):
        raise ValueError(f"the model {ref.path!r} has {more[0]!r}, which the recipe's did not have")


def describe_expected_model(ref: ModelRef, option: str) -> str:
    """Which model a recipe was made with, by its most telling file, and how to give it."""
    name = min(ref.sha256, key=lambda name: (name.endswith((".json", ".txt")), not name.startswith("unet/"), name))
    return f"the recipe was made with one whose {name!r} has sha256 {ref.sha256[name]}: name it with {option}"
