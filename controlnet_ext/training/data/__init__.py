"""Training data of a ControlNet: images with captions and maps, from a folder or drawn."""

from __future__ import annotations

import codecs
import hashlib
import json
import posixpath
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ...batch.formats.lists import MAP_COLUMNS, PATH_COLUMNS
from ...batch.inputs import IMAGE_SUFFIXES, InputFile
from ...batch.results import exclude_recorded_maps, list_record_files, read_rows
from ...embedded.scenes import draw_scene
from ...errors import error_prefix
from ...files import image_reader
from ...files.disk import open_regular_file, parse_object
from ...files.image_formats import check_pixels, is_complete, sniff_format
from ...files.image_reader import IMAGE_FILE_LIMIT, read_image
from ...generation.recipe import hash_file
from ...maps.resize import check_same_aspect, fit, fit_map_of_image

LIST_SUFFIX = ".jsonl"
METADATA_FILES = ("metadata.jsonl", "captions.jsonl")
CAPTION_LIMIT = 2**16  # bytes
MapFunction = Callable[[np.ndarray], np.ndarray]  # (H, W, 3) uint8 RGB of an image and of its map


@dataclass(frozen=True)
class Example:
    """The file of an image, its caption, and the file of its map where one is given; `sha256` is that of the image."""

    image: Path
    caption: str
    map: Path | None
    sha256: str


class ControlDataset(Protocol):
    """Examples in a fixed order."""

    def __len__(self) -> int: ...

    @property
    def identity(self) -> str:
        """Text that is equal for equal images, captions and given maps."""

    def read(self, i: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray, str]:
        """Return example i: image and map, (height, width, 3) uint8 RGB, and caption."""


@dataclass(frozen=True, eq=False)
class FolderDataset:
    """Images of a folder, cropped to the size.

    Without `make_map` all examples have a map. With it, the maps that are not given are made from the cropped images.
    """

    examples: tuple[Example, ...]
    make_map: MapFunction | None

    def __post_init__(self) -> None:
        without = next((each for each in self.examples if each.map is None), None)
        if self.make_map is None and without:
            raise ValueError(f"{str(without.image)!r} has no map: list one, or name a preprocessor with --map")

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def identity(self) -> str:
        """SHA-256 of the hashes and captions."""
        rows = [(e.sha256, e.caption, e.map and hash_file(e.map)) for e in self.examples]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    def read(self, i: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray, str]:
        """Return example i: image and map, (height, width, 3) uint8 RGB, and caption."""
        example = self.examples[i]
        photo = read_image(example.image)
        pixels = fit(photo, height, width, "crop")
        if example.map is not None:
            control = fit_map_of_image(read_image(example.map), photo.shape[:2], height, width)
        else:
            assert self.make_map is not None
            control = fit(self.make_map(pixels), height, width, "stretch")
        return pixels, control, example.caption


@dataclass(frozen=True, eq=False)
class SceneDataset:
    """The drawn scenes of the embedded model with these seeds."""

    seeds: range
    make_map: MapFunction

    def __len__(self) -> int:
        return len(self.seeds)

    @property
    def identity(self) -> str:
        """The range of seeds."""
        return f"scenes {self.seeds.start}..{self.seeds.stop}"

    def read(self, i: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray, str]:
        """Return example i: image and map, (height, width, 3) uint8 RGB, and caption. ValueError unless square."""
        if height != width:
            raise ValueError(f"scenes are square, not {width}x{height}")
        scene = draw_scene(self.seeds[i], height)
        return scene.pixels, fit(self.make_map(scene.pixels), height, width), scene.caption


def check_data_folder(folder: Path) -> None:
    """Raise FileNotFoundError unless it is a folder, or a list."""
    if not folder.is_dir() and not (folder.suffix == LIST_SUFFIX and folder.is_file()):
        raise FileNotFoundError(
            f"{str(folder)!r} is not a folder; expected one with images, a list (.jsonl), or the word scenes"
        )


def read_examples(folder: Path, map_column: str | None = None) -> tuple[Example, ...]:
    """Read the examples of a folder, or of a list.

    They are the lines of its metadata.jsonl or captions.jsonl, `{"file_name": .., "text": .., "map": ..}` (the map is
    optional, its column one of `MAP_COLUMNS`, else `map_column`), or all images with the caption `<stem>.txt` beside
    each. Files are read and hashed; their pixels are not decoded. Raises FileNotFoundError or ValueError in one line:
    no images, no captions, a file that is no complete image, a map that `check_same_aspect` refuses.
    """
    check_data_folder(folder)
    is_list = folder.suffix == LIST_SUFFIX and folder.is_file()
    lists = [folder] if is_list else [folder / name for name in METADATA_FILES if (folder / name).exists()]
    if len(lists) > 1:
        raise ValueError(f"{str(folder)!r} holds both {' and '.join(METADATA_FILES)}: remove one")
    rows = _read_metadata(lists[0], map_column) if lists else _list_captioned_images(folder)
    if not rows:
        raise ValueError(f"{str(lists[0] if lists else folder)!r} holds no images")
    found = []
    for image, caption, control in rows:
        sha256, size = _hash_and_measure(image)
        if control is not None:
            map_size = _hash_and_measure(control)[1]
            with error_prefix(repr(str(control))):
                check_same_aspect(map_size, size)
        found.append(Example(image, caption, control, sha256))
    return tuple(found)


def split_examples(examples: tuple[Example, ...], share: float) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Return the training set and the held-out set.

    The latter has `share` of the different images, at least one, those with the lowest hashes, so that copies of an
    image are on one side. Raises ValueError when one side would be empty.
    """
    different = sorted({example.sha256 for example in examples})
    count = max(1, round(share * len(different)))
    if not 0 < share < 1 or count >= len(different):
        raise ValueError(f"validation {share:g} of {len(different)} different images leaves none on one side")
    held = set(different[:count])
    return tuple(e for e in examples if e.sha256 not in held), tuple(e for e in examples if e.sha256 in held)


def check_disjoint(train_set: tuple[Example, ...], held_out: tuple[Example, ...]) -> None:
    """Raise ValueError when an image of the held-out set is also in the training set."""
    known = {example.sha256: example for example in train_set}
    for example in held_out:
        if example.sha256 in known:
            twin = known[example.sha256].image
            raise ValueError(f"{str(example.image)!r} is held out and also to be learnt, as {str(twin)!r}: remove one")


def _hash_and_measure(path: Path) -> tuple[str, tuple[int, int]]:
    """Return the sha256 of the file of an image, and its height and width."""
    name = repr(str(path))
    with open_regular_file(path) as file:
        content = file.read(IMAGE_FILE_LIMIT + 1)
    if len(content) > IMAGE_FILE_LIMIT:
        raise ValueError(f"{name} is over 1 GiB, too large for an image")
    format = sniff_format(content[:16])
    if format is None or not is_complete(content, format):
        raise ValueError(f"{name} is {'no image' if format is None else f'a {format} that is cut short or damaged'}")
    image = image_reader.open_image_header(content, format, name)
    check_pixels(image.height, image.width, name)
    return hashlib.sha256(content).hexdigest(), image_reader.read_upright_size(image)


def _list_captioned_images(folder: Path) -> list[tuple[Path, str, Path | None]]:
    paths = [p for p in sorted(folder.iterdir()) if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")]
    images = [Path(f.path) for f in exclude_recorded_maps([InputFile(str(p), p.stem) for p in paths], str(folder))]
    without = [image for image in images if not image.with_suffix(".txt").exists()]
    if without:
        raise ValueError(
            f"{len(without)} of {len(images)} images have no caption, such as {str(without[0])!r}: write one to "
            f"{without[0].with_suffix('.txt').name!r} beside it, or list all in {METADATA_FILES[0]}"
        )
    return [(image, _read_caption(image.with_suffix(".txt")), None) for image in images]


def _read_caption(path: Path) -> str:
    with open_regular_file(path) as file:
        content = file.read(CAPTION_LIMIT + 1)
    if len(content) > CAPTION_LIMIT:
        raise ValueError(f"{str(path)!r} is over {CAPTION_LIMIT} bytes, too long for a caption")
    is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # as PowerShell writes text
    try:
        return content.decode("utf-16" if is_utf16 else "utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(path)!r} is not UTF-8 text: {error}") from error


def _read_metadata(path: Path, map_column: str | None) -> list[tuple[Path, str, Path | None]]:
    rows = []
    sources = {str(row.get("source")) for row in read_rows(list_record_files(str(path.parent))).values()}
    with open_regular_file(path) as file:
        for n, line in enumerate(file, 1):
            if not line.strip():
                continue
            where = f"{str(path)!r}, line {n}"
            row = parse_object(line, where)
            image = next((row[name] for name in PATH_COLUMNS if row.get(name) is not None), None)
            if not isinstance(image, str) or not isinstance(row.get("text"), str):
                raise ValueError(f'{where}: expected {{"file_name": "a.png", "text": "a caption"}}')
            control = _find_map(row, where)
            if control is None and map_column is not None:
                control = row.get(map_column)
            inside = None if control is None else _resolve_inside(path.parent, control, where)
            is_source = posixpath.normpath(image) in sources
            rows.append(
                (path.parent / image if is_source else _resolve_inside(path.parent, image, where), row["text"], inside)
            )
    return rows


def _find_map(row: dict[str, Any], where: str) -> object:
    """Return the file of the map that a row names, None if it names none."""
    given = {name: row[name] for name in MAP_COLUMNS if row.get(name) is not None}
    if not given:
        return None
    first, *others = given
    if any(given[other] != given[first] for other in others):
        raise ValueError(f"{where}: {first} and {others[0]} name different maps: remove one")
    return given[first]


def _resolve_inside(folder: Path, name: object, where: str) -> Path:
    """Return the path of a file in a list. The list may be downloaded, so it may name none outside its folder; but for
    images that the record of a `preprocess` in that folder has."""
    if not isinstance(name, str) or Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"{where}: {name!r:.80} is not a file in the list's folder")
    return folder / name
