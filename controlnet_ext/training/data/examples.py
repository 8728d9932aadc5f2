"""Examples of a training: an image with its caption and its map, wherever their bytes lie, and how they are read."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from ...embedded.scenes import draw_scene
from ...errors import error_prefix
from ...files.disk import open_regular_file
from ...files.image_formats import check_pixels, is_complete, sniff_format
from ...files.image_reader import IMAGE_FILE_LIMIT, open_image_header, read_image, read_upright_size
from ...maps.mirror import Mirroring, get_mirroring_of_kind, mirror_map
from ...maps.resize import FitGeometry, fit, fit_map_of_image

MapFunction = Callable[[np.ndarray], np.ndarray]  # (H, W, 3) uint8 RGB of an image and of its map
SIDED_WORDS = re.compile(r"\b(left|right)\b", re.IGNORECASE)


class PackedFile(ABC):
    """A file inside another one, such as a member of a tar. Values are small and can be sent to other processes."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Its name, for messages."""

    @property
    def place(self) -> str:
        """Its place, for files whose hash is not that of all of their bytes; empty for others."""
        return ""

    @abstractmethod
    def read(self) -> bytes:
        """Return its bytes. Raises FileNotFoundError or ValueError in one line."""


ImageFile = Path | PackedFile


def read_source(source: ImageFile) -> bytes:
    """Return the bytes of a file, at most 1 GiB. Raises FileNotFoundError or ValueError in one line."""
    if isinstance(source, PackedFile):
        return source.read()
    with open_regular_file(source) as file:
        content = file.read(IMAGE_FILE_LIMIT + 1)
    if len(content) > IMAGE_FILE_LIMIT:
        raise ValueError(f"{str(source)!r} is over 1 GiB, too large for an image")
    return content


def name_source(source: ImageFile) -> str:
    """Return the name of a file for messages, quoted."""
    return repr(source.name if isinstance(source, PackedFile) else str(source))


def decode_source(source: ImageFile) -> np.ndarray:
    """Return the pixels (H, W, 3) uint8 RGB of an image. Raises FileNotFoundError or ValueError, with its name."""
    if isinstance(source, Path):
        return read_image(source)
    with error_prefix(name_source(source)):
        return read_image(source.read())


def measure_image(content: bytes, name: str) -> tuple[int, int]:
    """Return (height, width) of an image, upright, without decoding it.

    Raises ValueError, beginning with `name`: no image, cut short, too large.
    """
    format = sniff_format(content[:16])
    if format is None or not is_complete(content, format):
        raise ValueError(f"{name} is {'no image' if format is None else f'a {format} that is cut short or damaged'}")
    return measure_header(content, format, name)


def measure_header(content: bytes, format: str, name: str) -> tuple[int, int]:
    """Return (height, width) of an image, upright, by its header alone.

    Raises ValueError, beginning with `name`: damaged, too large.
    """
    image = open_image_header(content, format, name)
    check_pixels(image.height, image.width, name)
    return read_upright_size(image)


@dataclass(frozen=True)
class View:
    """The part of an image that is learnt from.

    place: of the part that a crop keeps, 0 (left or top) to 1.
    is_mirrored: mirrored from left to right, unless the caption says left or right.
    """

    place: float = 0.5
    is_mirrored: bool = False


CENTER = View()


@dataclass(frozen=True, eq=False)
class DecodedExample:
    """An example at the size of its batch: `pixels` and `map` (H, W, 3) uint8 RGB; pixels are None where not asked for.

    `sizes` are SDXL's six numbers: height and width of the image, top and left of the crop in the scaled image, height
    and width of the crop.
    """

    name: str
    caption: str
    map: np.ndarray
    sizes: tuple[int, int, int, int, int, int]
    pixels: np.ndarray | None = None


class UnloadableMaps(ABC):
    """A `MapFunction` with networks that can be dropped."""

    @abstractmethod
    def unload(self) -> None:
        """Drop networks that are loaded; the next call loads them again."""

    @abstractmethod
    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Return the pixels (h, w, 3) uint8 of the map of an image (H, W, 3) uint8 RGB."""


class MapMaker:
    """The maps of examples that have none: made by `make` of the cropped image.

    make: None where all examples have a map.
    mirroring: how given maps are mirrored; that of most maps by default.
    """

    def __init__(self, make: MapFunction | None, mirroring: Mirroring = "plain"):
        self.make, self.mirroring = make, mirroring

    def make_map(self, pixels: Callable[[], np.ndarray], key: str, height: int, width: int, view: View) -> np.ndarray:
        """Return the map (height, width, 3) uint8 of what `pixels()` returns, the view of an image with this key.

        Raises ValueError without a preprocessor.
        """
        if self.make is None:
            raise ValueError("it has no map: list one, or name a preprocessor with --map")
        return fit(self.make(pixels()), height, width, "stretch")

    def unload(self) -> None:
        """Drop networks that are loaded; they are loaded again when they are needed."""
        if isinstance(self.make, UnloadableMaps):
            self.make.unload()


class Sample(Protocol):
    """An example of any kind."""

    @property
    def name(self) -> str:
        """Its name, for messages."""

    @property
    def key(self) -> str:
        """Text that is equal for equal images."""

    @property
    def map_key(self) -> str:
        """Text that is equal for equal given maps, empty where the map is made."""

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of the image in pixels, None where nobody has looked."""

    def resolve_view(self, view: View) -> View:
        """Return the view that `decode` gives for this one, where that is known before decoding."""

    def decode(self, height: int, width: int, view: View, maps: MapMaker, needs_pixels: bool = True) -> DecodedExample:
        """Return the example at this size. Raises ValueError or FileNotFoundError, with the name of its file."""


@dataclass(frozen=True)
class Example:
    """The file of an image, its caption, and the file of its map where one is given, with the hash of each.

    `size` is the image's height and width, None where nobody has looked.
    """

    image: ImageFile
    caption: str
    map: ImageFile | None
    sha256: str
    size: tuple[int, int] | None = None
    map_sha256: str = ""

    @property
    def name(self) -> str:
        """The name of the image's file, quoted."""
        return name_source(self.image)

    @property
    def key(self) -> str:
        """SHA-256 of the image, with its place where that is not of all of its bytes."""
        return self.sha256 + (self.image.place if isinstance(self.image, PackedFile) else "")

    @property
    def map_key(self) -> str:
        """SHA-256 of the map, or its name where nobody has looked; empty without one."""
        return "" if self.map is None else self.map_sha256 or name_source(self.map)

    def resolve_view(self, view: View) -> View:
        """Return the view, not mirrored where the caption says left or right."""
        return replace(view, is_mirrored=False) if SIDED_WORDS.search(self.caption) else view

    def decode(self, height: int, width: int, view: View, maps: MapMaker, needs_pixels: bool = True) -> DecodedExample:
        """Return the example at this size: image and map cropped alike.

        A map that is not given is made of the cropped, mirrored image. Raises ValueError or FileNotFoundError, with
        the name of the file.
        """
        view = self.resolve_view(view)
        is_mirrored = view.is_mirrored
        photo = None if self.size is not None and not needs_pixels else decode_source(self.image)
        size = self.size if photo is None else photo.shape[:2]
        assert size is not None

        def crop() -> np.ndarray:
            whole = decode_source(self.image) if photo is None else photo
            pixels = fit(whole, height, width, "crop", view.place)
            return np.ascontiguousarray(pixels[:, ::-1]) if is_mirrored else pixels

        pixels = crop() if needs_pixels else None
        if self.map is not None:
            whole_map = decode_source(self.map)
            with error_prefix(name_source(self.map)):
                control = fit_map_of_image(whole_map, (size[0], size[1]), height, width, "crop", view.place)
                control = mirror_map(control, maps.mirroring) if is_mirrored else control
        else:
            with error_prefix(self.name):
                control = maps.make_map(lambda: crop() if pixels is None else pixels, self.key, height, width, view)
        geometry = FitGeometry.compute(size[0], size[1], height, width, "crop", view.place)
        sizes = size[0], size[1], -geometry.top, -geometry.left, height, width
        return DecodedExample(self.name, self.caption, control, sizes, pixels)


@dataclass(frozen=True)
class SceneSample:
    """A drawn scene of the embedded model."""

    seed: int
    size: tuple[int, int] | None = None
    map_key: str = ""

    @property
    def name(self) -> str:
        """The word scene and the seed."""
        return f"scene {self.seed}"

    @property
    def key(self) -> str:
        """The name."""
        return self.name

    def resolve_view(self, view: View) -> View:
        """Return the view: the caption is not known before the scene is drawn."""
        return view

    def decode(self, height: int, width: int, view: View, maps: MapMaker, needs_pixels: bool = True) -> DecodedExample:
        """Return the scene at this size. Raises ValueError unless it is square."""
        if height != width:
            raise ValueError(f"scenes are square, not {width}x{height}")
        scene = draw_scene(self.seed, height)
        is_mirrored = view.is_mirrored and not SIDED_WORDS.search(scene.caption)
        pixels = np.ascontiguousarray(scene.pixels[:, ::-1]) if is_mirrored else scene.pixels
        control = maps.make_map(lambda: pixels, self.key, height, width, View(view.place, is_mirrored))
        return DecodedExample(self.name, scene.caption, control, (height, width, 0, 0, height, width), pixels)


def make_map_maker(maker: MapFunction | MapMaker | None, kind: str = "other") -> MapMaker:
    """Return the maker itself, or one around a function."""
    return maker if isinstance(maker, MapMaker) else MapMaker(maker, get_mirroring_of_kind(kind))
