"""References to models: their files and the sha256 of these."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..embedded import resolve_embedded
from ..files.disk import open_regular_file
from ..models.state_dict.location import locate_weights, read_config

NO_MODEL = "none"  # the path of the model of a unit that has no network


@dataclass(frozen=True)
class ModelRef:
    """The name of a model that is not loaded: a file, folder or repository, and the sha256 of its files in hex by their
    names, empty where they are not known yet."""

    path: str
    sha256: Mapping[str, str] = field(default_factory=dict)


def find_control_files(path: str) -> dict[str, Path]:
    """Return the files of a control model by name: "weights", whatever the file is called, and its "config.json".
    Raises FileNotFoundError or ValueError when there is none."""
    weights = locate_weights(resolve_embedded(path))
    config = {"config.json": weights.parent / "config.json"} if read_config(weights) else {}
    return {"weights": weights, **config}


def hash_files(files: Mapping[str, Path]) -> dict[str, str]:
    """Return the sha256 of each file in hex by name.

    One after the other (1.1 GB/s with SHA instructions), so that Ctrl-C stops it."""
    return {name: hash_file(file) for name, file in files.items()}


def hash_file(path: Path) -> str:
    """Return the sha256 of a file in hex. Raises FileNotFoundError or ValueError when it cannot be read."""
    digest = hashlib.sha256()
    with open_regular_file(path) as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def verify_hashes(ref: ModelRef, hashes: Mapping[str, str], option: str) -> None:
    """Raise ValueError unless `hashes`, those found here, are those of `ref` or it has none. `option` is the flag that
    names another place."""
    if not ref.sha256:
        return
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
    """Return a sentence on the model that a recipe was made with, by its most telling file, and the flag to give it."""
    name = min(ref.sha256, key=lambda name: (name.endswith((".json", ".txt")), not name.startswith("unet/"), name))
    return f"the recipe was made with one whose {name!r} has sha256 {ref.sha256[name]}: name it with {option}"
