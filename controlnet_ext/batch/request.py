"""What is wanted of every picture, and where it goes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..preprocessors.registry import Preprocessor

STDOUT = "-"


@dataclass(frozen=True)
class Order:
    """Maps of all `entries` with their `values`, with `json` their key points too, with `sixteen_bit` grey of 16 bits,
    to `out`. What is there is only replaced with `overwrite`."""

    entries: tuple[Preprocessor, ...]
    values: tuple[dict[str, Any], ...]
    json: bool
    sixteen_bit: bool
    out: str
    overwrite: bool

    def __post_init__(self) -> None:
        if not self.out:
            raise ValueError("OUT is empty, expected a file, a folder or -")
        if self.sixteen_bit and (other := [entry.name for entry in self.entries if entry.makes != "depth"]):
            raise ValueError(f"--sixteen-bit is for depth, which {other[0]} does not make")

    @property
    def networks(self) -> bool:
        """Whether any of the preprocessors has something to load."""
        return any(isinstance(entry.make, type) for entry in self.entries)

    @property
    def masked(self) -> bool:
        """Whether any of the preprocessors wants masks."""
        return any(entry.masked for entry in self.entries)

    def single(self, results: int) -> str | None:
        """The file, or STDOUT, that OUT stands for; None where it is a folder for the results. ValueError or
        FileNotFoundError where it cannot be either."""
        if self.out == STDOUT:
            if results > 1:
                raise ValueError(f"{results} results do not go to stdout: name a folder")
            if self.json:
                raise ValueError("--json writes a file beside the map, which goes to stdout: name a file or folder")
            return STDOUT
        folder = Path(self.out)
        if results == 1 and not self.out.endswith(("/", os.sep)) and not folder.is_dir():
            if not folder.parent.is_dir():
                raise FileNotFoundError(f"the folder {str(folder.parent)!r} does not exist")
            if self.sixteen_bit and folder.suffix.lower() not in (".png", ""):
                raise ValueError(f"--sixteen-bit is for PNG, not for {self.out!r}")
            return str(folder)
        if os.path.lexists(folder) and not folder.is_dir():
            raise ValueError(f"{self.out!r} is a file, expected a folder for {results} results")
        return None
