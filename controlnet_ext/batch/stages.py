"""The stages of a job. Each takes a list of consecutive pictures and gives a list as long.

A picture on its way through a job.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import cv2
import numpy as np

from ..errors import one_line
from ..files.image_reader import read_image
from ..files.image_writer import encode_image
from ..maps.control_map import ControlMap
from ..preprocessors.poses.json import encode_poses
from ..preprocessors.poses.key_points import Poses
from ..preprocessors.registry import LoadedPreprocessor, find


@dataclass(frozen=True, eq=False)
class InputImage:
    """A picture of a source. `index` counts from 0 in the source, `key` names its results there, `name` stands in
    messages, `content` is what `read_image` takes, or the ValueError that says why there is none. So is `mask`, None
    where none is wanted or known."""

    index: int
    key: str
    name: str
    content: Any
    mask: Any = None


@dataclass(frozen=True, eq=False)
class WorkItem:
    """A picture with its maps, and what failed, a line each; both by the preprocessor's name, "" for the picture
    itself. `pixels` (H, W, 3) uint8 RGB, and `mask` likewise or what kept it from being read, only as long as networks
    wait for them."""

    image: InputImage
    pixels: np.ndarray | None = None
    mask: np.ndarray | ValueError | None = None
    maps: dict[str, ControlMap] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class ImageResult:
    """What a sink takes: the picture without its content, files by how they end (`canny.png`) unless they are stored
    already, and what failed, a line each."""

    image: InputImage
    files: dict[str, bytes]
    errors: tuple[str, ...]


IMAGE_ERRORS = (
    ValueError,
    OSError,
    RuntimeError,
    MemoryError,
    cv2.error,
)  # what a picture can do to a preprocessor; torch
# raises RuntimeError, also for want of memory
NAME_ERRNOS = {errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL, errno.EISDIR}  # other errors of writing stop the job


class ResultStore(Protocol):
    """Where files go, from several threads; gives those that are for the sink."""

    def __call__(self, image: InputImage, files: dict[str, bytes]) -> dict[str, bytes]: ...

    def fsync(self, images: Iterable[InputImage]) -> None:
        """Sees to it that what it has stored of these outlives a power cut."""


@dataclass(frozen=True)
class ReadStage:
    """Pictures with the maps that need no weights: `quick` are names and values of their preprocessors. `keep` their
    pixels where networks follow."""

    model_free: tuple[tuple[str, dict[str, Any]], ...]
    keep_pixels: bool

    def __call__(self, images: Sequence[InputImage]) -> list[WorkItem]:
        return [self._process(picture) for picture in images]

    def _process(self, image: InputImage) -> WorkItem:
        bare = replace(image, content=None, mask=None)
        pixels, mask = _read_or_error(image.content), None if image.mask is None else _read_or_error(image.mask)
        if isinstance(pixels, ValueError):
            return WorkItem(bare, errors={"": format_error(pixels, image.name)})
        sheet = WorkItem(bare, pixels, mask)
        for name, values in self.model_free:
            sheet = _add_map(sheet, find(name).load(), values)
        return sheet if self.keep_pixels else replace(sheet, pixels=None, mask=None)


def _read_or_error(content: Any) -> np.ndarray | ValueError:
    try:
        return content if isinstance(content, ValueError) else read_image(content)
    except IMAGE_ERRORS as error:
        return ValueError(one_line(error))


@dataclass(frozen=True)
class NetworkStage:
    """Adds the maps of preprocessors that are loaded, with their values, of all pictures at once, and one by one where
    that fails, so that the bad one is told."""

    preprocessors: tuple[tuple[LoadedPreprocessor, dict[str, Any]], ...]

    def __call__(self, items: Sequence[WorkItem]) -> list[WorkItem]:
        done = list(items)
        there = [i for i, sheet in enumerate(items) if sheet.pixels is not None]
        for make, values in self.preprocessors:
            try:
                maps = _compute_maps(make, [items[i] for i in there], values) if len(there) > 1 else []
            except IMAGE_ERRORS:
                maps = []
            for i, made in zip(there, maps, strict=False):
                done[i] = replace(done[i], maps={**done[i].maps, make.spec.name: made})
            for i in there[len(maps) :]:
                done[i] = _add_map(done[i], make, values)
        return [replace(sheet, pixels=None, mask=None) for sheet in done]


@dataclass(frozen=True)
class LazyNetworks:
    """Networks that are loaded where they are first needed."""

    load: Callable[[], NetworkStage | None]

    @cached_property
    def stage(self) -> NetworkStage | None:
        return self.load()

    def __call__(self, items: Sequence[WorkItem]) -> list[WorkItem]:
        return self.stage(items) if self.stage else list(items)


@dataclass(frozen=True)
class EncodeStage:
    """Encodes maps as PNG, those that are `fine` so with `sixteen_bit`, with `json` their key points too, in the order
    of `names`."""

    spec_names: tuple[str, ...]
    json: bool
    sixteen_bit: bool

    def __call__(self, items: Sequence[WorkItem]) -> list[ImageResult]:
        return [self._encode_item(sheet) for sheet in items]

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
    """Stores files. Raises OSError when nothing can be stored, as on a full disk."""

    store: ResultStore

    def __call__(self, results: Sequence[ImageResult]) -> list[ImageResult]:
        kept = [self._write_result(result) for result in results]
        pairs = zip(results, kept, strict=True)
        self.store.fsync([result.image for result, its in pairs if result.files and its.errors == result.errors])
        return kept

    def _write_result(self, result: ImageResult) -> ImageResult:
        try:
            return replace(result, files=self.store(result.image, result.files))
        except (ValueError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in NAME_ERRNOS:
                raise
            return replace(result, files={}, errors=(*result.errors, format_error(error, result.image.name)))


@dataclass(frozen=True)
class Chain:
    """One stage after another, as one."""

    first: Callable[[Any], Any]
    second: Callable[[Any], Any]

    def __call__(self, chunk: Any) -> Any:
        return self.second(self.first(chunk))


def list_file_endings(names: Sequence[str], with_json: bool) -> list[str]:
    """How the files of a picture end, in their order."""
    return [f"{name}.{suffix}" for name in names for suffix in (("json", "png") if with_json else ("png",))]


def encode_map(name: str, control_map: ControlMap, with_json: bool, sixteen_bit: bool) -> dict[str, bytes]:
    """The files of one map, by how they end."""
    texts = {f"{name}.json": encode_pose_json(control_map)} if with_json else {}
    return texts | {f"{name}.png": encode_image(f"{name}.png", select_output_pixels(control_map, sixteen_bit))}


def select_output_pixels(control_map: ControlMap, sixteen_bit: bool) -> np.ndarray:
    """What is written of a map: its pixels, or with `sixteen_bit` grey of 16 bits where it has that."""
    return control_map.pixels16 if sixteen_bit and control_map.pixels16 is not None else control_map.pixels


def encode_pose_json(control_map: ControlMap) -> bytes:
    """A map's key points as a JSON file. ValueError when it has none."""
    if not isinstance(control_map.values, Poses):
        raise ValueError(f"--json writes key points, which a map of {control_map.kind} has not")
    return json.dumps(encode_poses(control_map.values), allow_nan=False).encode() + b"\n"


def crashed_item(image: InputImage) -> WorkItem:
    """What stands for a picture that ended the process it was in."""
    reason = f"{image.name!r} ended the process that worked at it, for want of memory or by a fault in a decoder"
    return WorkItem(replace(image, content=None), errors={"": reason})


def format_error(error: BaseException, name: str) -> str:
    """One line that says what failed and names the picture."""
    reason = one_line(error)
    return reason if repr(name) in reason else f"{name!r}: {reason}"


def _add_map(item: WorkItem, preprocessor: LoadedPreprocessor, parameters: dict[str, Any]) -> WorkItem:
    name = preprocessor.spec.name
    try:
        return replace(item, maps={**item.maps, name: _compute_maps(preprocessor, [item], parameters)[0]})
    except IMAGE_ERRORS as error:
        return replace(item, errors={**item.errors, name: format_error(error, item.image.name)})


def _compute_maps(
    preprocessor: LoadedPreprocessor, items: Sequence[WorkItem], parameters: dict[str, Any]
) -> list[ControlMap]:
    """The maps of sheets that have their pixels. Raises what the first raises, or what is wrong with its mask."""
    pixels = [sheet.pixels for sheet in items]
    if not preprocessor.spec.needs_mask:
        return preprocessor.run_batch(pixels, **parameters)
    for sheet in items:
        if not isinstance(sheet.mask, np.ndarray):
            raise sheet.mask or ValueError(f"{preprocessor.spec.name} needs a mask, of which there is none")
    return preprocessor.run_batch(pixels, masks=[sheet.mask for sheet in items], **parameters)
