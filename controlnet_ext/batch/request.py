"""Requested maps and the paths of their files, checked before any work."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..files.disk import STDOUT, check_stdout, check_target_folder, is_folder_name
from ..preprocessors.registry import Preprocessor
from .inputs import InputFile


@dataclass(frozen=True)
class MapRequest:
    """Maps of all `specs` with their `parameters`, written to `out`.

    json: write key points beside each map.
    sixteen_bit: write gray images of 16 bits.
    overwrite: replace existing files.
    """

    specs: tuple[Preprocessor, ...]
    parameters: tuple[dict[str, Any], ...]
    json: bool
    sixteen_bit: bool
    out: str
    overwrite: bool

    def __post_init__(self) -> None:
        if not self.out:
            raise ValueError("OUT is empty, expected a file, a folder or -")
        if self.sixteen_bit and (other := [spec.name for spec in self.specs if not spec.makes_depth]):
            raise ValueError(f"--sixteen-bit is for depth, which {other[0]} does not make")

    @property
    def needs_networks(self) -> bool:
        """True if a preprocessor has something to load."""
        return any(isinstance(spec.factory, type) for spec in self.specs)

    @property
    def needs_mask(self) -> bool:
        """True if a preprocessor needs a mask."""
        return any(spec.needs_mask for spec in self.specs)

    @property
    def min_side(self) -> int | None:
        """Short side in pixels that images must be read with, None where a preprocessor works at their own size."""
        sides: list[Any] = [values.get("resolution") for values in self.parameters]
        return None if None in sides else max(sides)

    def resolve_single_output(self, result_count: int) -> str | None:
        """Return the file, or STDOUT, for OUT; None where OUT is a folder for the results.

        Raises ValueError where it can be neither.
        """
        if self.out == STDOUT:
            if result_count > 1:
                raise ValueError(f"{result_count} results do not go to stdout: name a folder")
            check_stdout()
            if self.json:
                raise ValueError("--json writes a file beside the map, which goes to stdout: name a file or folder")
            return STDOUT
        folder = Path(self.out)
        if result_count == 1 and not is_folder_name(self.out):
            check_target_folder(folder.parent)
            if self.sixteen_bit and folder.suffix.lower() not in (".png", ""):
                raise ValueError(f"--sixteen-bit is for PNG, not for {self.out!r}")
            return str(folder)
        if os.path.lexists(folder) and not folder.is_dir():
            raise ValueError(f"{self.out!r} is a file, expected a folder for {result_count} results")
        check_target_folder(folder)
        return None


def result_path(folder: str, key: str, ending: str) -> str:
    """Return `<folder>/<key>_<ending>`."""
    return os.path.join(folder, f"{key}_{ending}")


def check_targets(targets: Iterable[tuple[str, Sequence[str], bool]], may_replace_source: bool) -> None:
    """Check (source, results, may exist) of all images.

    With `may_replace_source` a result may replace the image it is made of. Raises ValueError when two results have one
    name, or one would replace the image of another; FileExistsError when one exists that may not.
    """
    targets = list(targets)
    place = _make_path_normalizer()
    images = {place(image): image for image, *_ in targets}
    makers: dict[str, str] = {}
    for image, paths, may_exist in targets:
        for path in paths:
            here = place(path)
            if here in makers:
                raise ValueError(f"{path!r} would be made twice, of {makers[here]!r} and {image!r}")
            if here in images and not (may_replace_source and images[here] == image):
                raise ValueError(f"{path!r} would replace an image that is still to be read")
            if not may_exist and os.path.lexists(path):
                raise FileExistsError(f"{path!r} exists; --overwrite replaces it")
            makers[here] = image


def exclude_results(files: Sequence[InputFile], endings: Sequence[str], folder: str) -> list[InputFile]:
    """Return the files that are not results of others: results of an earlier run may lie among the inputs."""
    place = _make_path_normalizer()
    results = {place(result_path(folder, file.key, end)) for file in files for end in endings}
    return [file for file in files if place(file.path) not in results]


def _make_path_normalizer() -> Callable[[str], str]:
    """Return a function that maps all names of a file to one path.

    It resolves each folder once, which makes a million files a matter of seconds.
    """
    real = cache(os.path.realpath)

    def place(path: str) -> str:
        folder, name = os.path.split(path)
        here = os.path.join(real(folder), name)
        return os.path.normcase(os.path.realpath(here) if os.path.islink(here) else here)

    return place
