"""A picture for each image of a folder, or from the picture before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..batch.inputs import SUFFIXES
from ..files.image_in import read_image
from ..sdwebui.units import WebuiUnit


@dataclass
class Batch:
    """The images of units that have a folder, and which units loop, by place."""

    files: dict[int, list[Path]] = field(default_factory=dict)
    loops: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, said: Mapping[int, Mapping[str, Any]]) -> Batch:
        """Of what the panel says; a request's JSON has no say in which folders are read. ValueError on a folder without
        images."""
        on = {place: unit for place, unit in said.items() if "batch_folder" in unit and unit["enabled"]}
        folders = {place: str(unit["batch_folder"] or "").strip() for place, unit in on.items()}
        files = {place: _images(Path(folder), place) for place, folder in folders.items() if folder}
        return cls(files, {place for place, unit in on.items() if unit.get("loopback")})

    @property
    def count(self) -> int:
        """How many pictures, 0 without a folder: as many as the shortest has images."""
        return min(map(len, self.files.values()), default=0)

    @property
    def changes(self) -> bool:
        """Whether the images differ from picture to picture."""
        return bool(self.files or self.loops)

    def unit(self, place: int, unit: WebuiUnit, iteration: int, last: np.ndarray | None) -> WebuiUnit:
        """The unit with the image of this iteration, from 0; `last` is the picture before."""
        if place in self.loops and last is not None:
            return replace(unit, images=((last, None),))
        if place in self.files:
            return replace(unit, images=((read_image(self.files[place][iteration]), None),))
        return unit


def _images(folder: Path, place: int) -> list[Path]:
    if not folder.is_dir():
        raise ValueError(f"unit {place}: the batch folder {str(folder)!r} does not exist")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not found:
        raise ValueError(f"unit {place}: the batch folder {str(folder)!r} holds no images")
    return found
