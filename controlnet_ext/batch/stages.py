"""The stages of a job, each from a list of consecutive images to a list of the same length."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Protocol

import cv2
import numpy as np

from ..errors import one_line
from ..files.image_formats import MAX_PIXELS, set_pixel_limit
from ..files.image_reader import read_image, read_mask
from ..files.image_writer import encode_image
from ..maps.control_map import ControlMap
from ..preprocessors.poses.json import encode_poses
from ..preprocessors.poses.key_points import Poses
from ..preprocessors.registry import LoadedPreprocessor, find, register_file


@dataclass(frozen=True, eq=False)
class InputImage:
    """An image of a source.

    index: position in the source, from 0.
    key: path of its results.
    name: name in messages.
    content: anything that `read_image` takes, or a ValueError that explains why there is none.
    mask: the same for its mask, None where none is needed.
    stamp: size and modification time of its files before they were read, see `results.stamp_files`.
    """

    index: int
    key: str
    name: str
    content: Any
    mask: Any = None
    stamp: list[int] | None = None


@dataclass(frozen=True, eq=False)
class WorkItem:
    """An image with its maps, and its failures, one line each, by the name of the preprocessor ("" for the image
    itself).

    pixels: (H, W, 3) uint8 RGB, only as long as networks need them.
    mask: (H, W, 3) uint8, or the error of reading it.
    """

    image: InputImage
    pixels: np.ndarray | None = None
    mask: np.ndarray | ValueError | None = None
    maps: dict[str, ControlMap] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class ImageResult:
    """A result for a sink: the image without its content, files by ending (`canny.png`), and failures, one line each.

    `files` is empty where the store has written them already.
    """

    image: InputImage
    files: dict[str, bytes]
    errors: tuple[str, ...]


IMAGE_ERRORS = (
    ValueError,
    OSError,
    RuntimeError,
    MemoryError,
    cv2.error,
)  # what an image can do to a preprocessor; torch
# raises RuntimeError, also for want of memory
NAME_ERRNOS = {errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL, errno.EISDIR}  # other errors of writing stop the job


class ResultStore(Protocol):
    """A store that writes files from several threads, and returns those that the sink is to write."""

    def __call__(self, image: InputImage, files: dict[str, bytes]) -> dict[str, bytes]: ...

    def fsync(self, images: Iterable[InputImage]) -> None:
        """Flush the stored files of these images to the disk."""


@dataclass(frozen=True)
class ReadStage:
    """Read images and compute the maps that need no weights.

    model_free: names of preprocessors with their parameters.
    keep_pixels: keep the pixels for networks.
    max_pixels: of an image.
    min_side: see `MapRequest.min_side`.
    load: Python files with preprocessors of the user's own, which a process runs before its first image.
    """

    model_free: tuple[tuple[str, dict[str, Any]], ...]
    keep_pixels: bool
    load: tuple[str, ...] = ()
    max_pixels: int = MAX_PIXELS
    min_side: int | None = None

    def __call__(self, images: Sequence[InputImage]) -> list[WorkItem]:
        set_pixel_limit(self.max_pixels)
        for file in self.load:
            register_file(file)
        return [self._process(image) for image in images]

    def _process(self, image: InputImage) -> WorkItem:
        bare = replace(image, content=None, mask=None)
        pixels = _read_or_error(image.content, partial(read_image, min_side=self.min_side))
        mask = None if image.mask is None else _read_or_error(image.mask, read_mask)
        if isinstance(pixels, ValueError):
            return WorkItem(bare, errors={"": format_error(pixels, image.name)})
        item = WorkItem(bare, pixels, mask)
        for name, values in self.model_free:
            item = _add_map(item, find(name).load(), values)
        return item if self.keep_pixels else replace(item, pixels=None, mask=None)


def _read_or_error(content: object, read: Callable[[Any], np.ndarray]) -> np.ndarray | ValueError:
    try:
        return content if isinstance(content, ValueError) else read(content)
    except IMAGE_ERRORS as error:
        return ValueError(one_line(error))


@dataclass(frozen=True)
class NetworkStage:
    """Add the maps of loaded preprocessors with their parameters.

    All images are computed at once, and one by one where that fails, so that the failing one is reported.
    """

    preprocessors: tuple[tuple[LoadedPreprocessor, dict[str, Any]], ...]

    def __call__(self, items: Sequence[WorkItem]) -> list[WorkItem]:
        results = list(items)
        there = [i for i, item in enumerate(items) if item.pixels is not None]
        for make, values in self.preprocessors:
            try:
                maps = _compute_maps(make, [items[i] for i in there], values) if len(there) > 1 else []
            except Exception:
                maps = []
            for i, result in zip(there, maps, strict=False):
                results[i] = replace(results[i], maps={**results[i].maps, make.spec.name: result})
            for i in there[len(maps) :]:
                results[i] = _add_map(results[i], make, values)
        return [replace(item, pixels=None, mask=None) for item in results]


@dataclass(frozen=True)
class LazyNetworks:
    """Networks that are loaded in the process where they are first needed."""

    load: Callable[[], NetworkStage | None]

    @cached_property
    def stage(self) -> NetworkStage | None:
        """The stage, None without networks."""
        return self.load()

    def __call__(self, items: Sequence[WorkItem]) -> list[WorkItem]:
        return self.stage(items) if self.stage else list(items)


@dataclass(frozen=True)
class EncodeStage:
    """Encode maps as PNG in the order of `spec_names`, with `json` their key points too.

    With `sixteen_bit`, maps that have 16 bits are encoded with them.
    """

    spec_names: tuple[str, ...]
    json: bool
    sixteen_bit: bool

    def __call__(self, items: Sequence[WorkItem]) -> list[ImageResult]:
        return [self._encode_item(item) for item in items]

    def _encode_item(self, item: WorkItem) -> ImageResult:
        files: dict[str, bytes] = {}
        errors = dict(item.errors)
        for name in (name for name in self.spec_names if name in item.maps):
            try:
                files |= encode_map(name, item.maps[name], self.json, self.sixteen_bit)
            except ValueError as error:
                errors[name] = format_error(error, item.image.name)
        return ImageResult(item.image, files, tuple(errors[name] for name in ("", *self.spec_names) if name in errors))


@dataclass(frozen=True)
class WriteStage:
    """Store files. Raises OSError when nothing can be stored, as on a full disk."""

    store: ResultStore

    def __call__(self, results: Sequence[ImageResult]) -> list[ImageResult]:
        paths = [self._write_result(result) for result in results]
        pairs = zip(results, paths, strict=True)
        self.store.fsync([result.image for result, its in pairs if result.files and its.errors == result.errors])
        return paths

    def _write_result(self, result: ImageResult) -> ImageResult:
        try:
            return replace(result, files=self.store(result.image, result.files))
        except (ValueError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in NAME_ERRNOS:
                raise
            return replace(result, files={}, errors=(*result.errors, format_error(error, result.image.name)))


@dataclass(frozen=True)
class Chain:
    """Two stages as one."""

    first: Callable[[Any], Any]
    second: Callable[[Any], Any]

    def __call__(self, chunk: object) -> Any:
        return self.second(self.first(chunk))


def list_file_endings(names: Sequence[str], with_json: bool) -> list[str]:
    """Return the endings of the files of an image, in their order."""
    return [f"{name}.{suffix}" for name in names for suffix in (("json", "png") if with_json else ("png",))]


def encode_map(name: str, control_map: ControlMap, with_json: bool, sixteen_bit: bool) -> dict[str, bytes]:
    """Return the files of one map by their endings. Raises ValueError where it has no key points to write."""
    texts = {f"{name}.json": encode_pose_json(control_map)} if with_json else {}
    return texts | {f"{name}.png": encode_image(f"{name}.png", select_output_pixels(control_map, sixteen_bit))}


def select_output_pixels(control_map: ControlMap, sixteen_bit: bool) -> np.ndarray:
    """Return the pixels to write: (H, W, 3) uint8, or with `sixteen_bit` (H, W) uint16 where the map has them."""
    return control_map.pixels16 if sixteen_bit and control_map.pixels16 is not None else control_map.pixels


def encode_pose_json(control_map: ControlMap) -> bytes:
    """Return the key points of a map as a JSON file. Raises ValueError when it has none."""
    if not isinstance(control_map.values, Poses):
        raise ValueError(f"--json writes key points, which a map of {control_map.kind} has not")
    return json.dumps(encode_poses(control_map.values), allow_nan=False).encode() + b"\n"


def crashed_item(image: InputImage) -> WorkItem:
    """Return the item for an image that ended the process it was in."""
    reason = f"{image.name!r} ended the process that worked at it, for want of memory or by a fault in a decoder"
    return WorkItem(replace(image, content=None), errors={"": reason})


def format_error(error: BaseException, name: str) -> str:
    """Return one line with the reason of the failure and the name of the image."""
    reason = one_line(error) if isinstance(error, IMAGE_ERRORS) else f"{type(error).__name__}: {one_line(error)}"
    return reason if repr(name) in reason else f"{name!r}: {reason}"


def _add_map(item: WorkItem, preprocessor: LoadedPreprocessor, parameters: dict[str, Any]) -> WorkItem:
    name = preprocessor.spec.name
    try:
        return replace(item, maps={**item.maps, name: _compute_maps(preprocessor, [item], parameters)[0]})
    except Exception as error:  # of a preprocessor of the user's own it may be anything
        return replace(item, errors={**item.errors, name: format_error(error, item.image.name)})


def _compute_maps(
    preprocessor: LoadedPreprocessor, items: Sequence[WorkItem], parameters: dict[str, Any]
) -> list[ControlMap]:
    """Return the maps of items that have pixels. Raises what the first raises, or the error of its mask."""
    pixels = [item.pixels for item in items]
    if not preprocessor.spec.needs_mask:
        return preprocessor.run_batch(pixels, **parameters)
    for item in items:
        if not isinstance(item.mask, np.ndarray):
            raise item.mask or ValueError(f"{preprocessor.spec.name} needs a mask, of which there is none")
    return preprocessor.run_batch(pixels, masks=[item.mask for item in items], **parameters)
