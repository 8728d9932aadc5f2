"""Maps that a preprocessor makes of training images, on disk under the hash of all that they depend on."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ... import __version__
from ...files.disk import list_temporary_files, write_atomically
from ...files.image_reader import read_image
from ...files.image_writer import encode_image
from ...maps.control_map import ControlMap
from ...maps.mirror import Mirroring
from ...preprocessors.registry import LoadedPreprocessor, find, get_loaded_files, register_file
from .examples import MapFunction, MapMaker, UnloadableMaps, View

STALE_SECONDS = 3600  # after which a temporary file is nobody's


class PreprocessorMaps(UnloadableMaps):
    """A preprocessor with its parameters as a function of pixels, which can be sent to another process.

    It is loaded there again on first use, from the same files. Raises what `Preprocessor.load` raises.
    """

    def __init__(self, name: str, parameters: Mapping[str, Any]):
        self._name, self._parameters = name, dict(parameters)
        self._files = get_loaded_files()
        self._loaded: LoadedPreprocessor | None = find(name).load()

    @property
    def identity(self) -> str:
        """Text that is equal for equal preprocessors with equal parameters, of equal versions."""
        sources = sorted(self._files.values())
        return json.dumps([self._name, sorted(self._parameters.items()), __version__, sources], default=str)

    def preprocess(self, pixels: np.ndarray) -> ControlMap:
        """Return the map of an image (H, W, 3) uint8 RGB."""
        if self._loaded is None:
            for path in self._files:
                register_file(path)
            self._loaded = find(self._name).load()
        return self._loaded(pixels, **self._parameters)

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Return the pixels (h, w, 3) uint8 of that map."""
        return self.preprocess(pixels).pixels

    def unload(self) -> None:
        """Drop the loaded preprocessor."""
        self._loaded = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore_unloaded, (self._name, self._parameters, self._files)


def _restore_unloaded(name: str, parameters: dict[str, Any], files: dict[str, str]) -> PreprocessorMaps:
    """Return a preprocessor in another process, which it is sent to."""
    maps = object.__new__(PreprocessorMaps)
    maps._name, maps._parameters, maps._files, maps._loaded = name, parameters, files, None
    return maps


class CachedMapMaker(MapMaker):
    """A `MapMaker` whose maps stay in a folder: PNGs, whole or absent, that may be removed at any time.

    The name of a file is the hash of the image's, the size, the part that was cropped, and `identity`, which says what
    `make` does. A file that is damaged is made again. Where the disk is full, maps are made each time.
    """

    def __init__(self, make: MapFunction, mirroring: Mirroring, identity: str, folder: Path):
        super().__init__(make, mirroring)
        self._identity, self._folder = identity, folder

    def make_map(self, pixels: Callable[[], np.ndarray], key: str, height: int, width: int, view: View) -> np.ndarray:
        """Return the map (height, width, 3) uint8 of what `pixels()` returns, the view of an image with this key."""
        what = json.dumps([key, height, width, view.place, view.is_mirrored, self._identity])
        path = self._folder / f"{hashlib.sha256(what.encode()).hexdigest()}.png"
        with suppress(FileNotFoundError, ValueError):
            cached_map = read_image(path)
            if cached_map.shape == (height, width, 3):
                return cached_map
        control = super().make_map(pixels, key, height, width, view)
        with suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, encode_image(path.name, control), overwrite=True, sync_folder=False)
        return control


def remove_stale_files(folder: Path) -> None:
    """Remove temporary files that a killed training left in a folder over an hour ago."""
    for path in list_temporary_files(folder):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                path.unlink()
