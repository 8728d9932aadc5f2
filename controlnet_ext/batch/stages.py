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

from ..files.image_reader import read_image
from ..files.image_writer import encoded_image
from ..maps.control_map import ControlMap
from ..preprocessors.poses.json import poses_object
from ..preprocessors.poses.key_points import Poses
from ..preprocessors.registry import Ready, find


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture of a source. `index` counts from 0 in the source, `key` names its results there, `name` stands in
    messages, `content` is what `read_image` takes, or the ValueError that says why there is none. So is `mask`, None
    where none is wanted or known."""

    index: int
    key: str
    name: str
    content: Any
    mask: Any = None


@dataclass(frozen=True, eq=False)
class Sheet:
    """A picture with its maps, and what failed, a line each; both by the preprocessor's name, "" for the picture
    itself. `pixels` (H, W, 3) uint8 RGB, and `mask` likewise or what kept it from being read, only as long as networks
    wait for them."""

    picture: Picture
    pixels: np.ndarray | None = None
    mask: np.ndarray | ValueError | None = None
    maps: dict[str, ControlMap] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Result:
    """What a sink takes: the picture without its content, files by how they end (`canny.png`) unless they are stored
    already, and what failed, a line each."""

    picture: Picture
    files: dict[str, bytes]
    errors: tuple[str, ...]


BAD = (ValueError, OSError, RuntimeError, MemoryError, cv2.error)  # what a picture can do to a preprocessor; torch
# raises RuntimeError, also for want of memory
OF_ONE_NAME = {errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL, errno.EISDIR}  # other errors of writing stop the job


class Store(Protocol):
    """Where files go, from several threads; gives those that are for the sink."""

    def __call__(self, picture: Picture, files: dict[str, bytes]) -> dict[str, bytes]: ...

    def settle(self, pictures: Iterable[Picture]) -> None:
        """Sees to it that what it has stored of these outlives a power cut."""


@dataclass(frozen=True)
class Read:
    """Pictures with the maps that need no weights: `quick` are names and values of their preprocessors. `keep` their
    pixels where networks follow."""

    quick: tuple[tuple[str, dict[str, Any]], ...]
    keep: bool

    def __call__(self, pictures: Sequence[Picture]) -> list[Sheet]:
        return [self._sheet(picture) for picture in pictures]

    def _sheet(self, picture: Picture) -> Sheet:
        bare = replace(picture, content=None, mask=None)
        pixels, mask = _read(picture.content), None if picture.mask is None else _read(picture.mask)
        if isinstance(pixels, ValueError):
            return Sheet(bare, errors={"": line(pixels, picture.name)})
        sheet = Sheet(bare, pixels, mask)
        for name, values in self.quick:
            sheet = _with(sheet, find(name).ready(), values)
        return sheet if self.keep else replace(sheet, pixels=None, mask=None)


def _read(content: Any) -> np.ndarray | ValueError:
    try:
        return content if isinstance(content, ValueError) else read_image(content)
    except BAD as error:
        return ValueError(" ".join(str(error).split()) or type(error).__name__)


@dataclass(frozen=True)
class Networks:
    """Adds the maps of preprocessors that are loaded, with their values, of all pictures at once, and one by one where
    that fails, so that the bad one is told."""

    ready: tuple[tuple[Ready, dict[str, Any]], ...]

    def __call__(self, sheets: Sequence[Sheet]) -> list[Sheet]:
        done = list(sheets)
        there = [i for i, sheet in enumerate(sheets) if sheet.pixels is not None]
        for make, values in self.ready:
            try:
                maps = _made(make, [sheets[i] for i in there], values) if len(there) > 1 else []
            except BAD:
                maps = []
            for i, made in zip(there, maps, strict=False):
                done[i] = replace(done[i], maps={**done[i].maps, make.entry.name: made})
            for i in there[len(maps) :]:
                done[i] = _with(done[i], make, values)
        return [replace(sheet, pixels=None, mask=None) for sheet in done]


@dataclass(frozen=True)
class Loading:
    """Networks that are loaded where they are first needed."""

    load: Callable[[], Networks | None]

    @cached_property
    def networks(self) -> Networks | None:
        return self.load()

    def __call__(self, sheets: Sequence[Sheet]) -> list[Sheet]:
        return self.networks(sheets) if self.networks else list(sheets)


@dataclass(frozen=True)
class Encode:
    """Encodes maps as PNG, those that are `fine` so with `sixteen_bit`, with `json` their key points too, in the order
    of `names`."""

    names: tuple[str, ...]
    json: bool
    sixteen_bit: bool

    def __call__(self, sheets: Sequence[Sheet]) -> list[Result]:
        return [self._result(sheet) for sheet in sheets]

    def _result(self, sheet: Sheet) -> Result:
        files: dict[str, bytes] = {}
        errors = dict(sheet.errors)
        for name in (name for name in self.names if name in sheet.maps):
            try:
                files |= encoded(name, sheet.maps[name], self.json, self.sixteen_bit)
            except ValueError as error:
                errors[name] = line(error, sheet.picture.name)
        return Result(sheet.picture, files, tuple(errors[name] for name in ("", *self.names) if name in errors))


@dataclass(frozen=True)
class Keep:
    """Stores files. Raises OSError when nothing can be stored, as on a full disk."""

    store: Store

    def __call__(self, results: Sequence[Result]) -> list[Result]:
        kept = [self._kept(result) for result in results]
        pairs = zip(results, kept, strict=True)
        self.store.settle([result.picture for result, its in pairs if result.files and its.errors == result.errors])
        return kept

    def _kept(self, result: Result) -> Result:
        try:
            return replace(result, files=self.store(result.picture, result.files))
        except (ValueError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in OF_ONE_NAME:
                raise
            return replace(result, files={}, errors=(*result.errors, line(error, result.picture.name)))


@dataclass(frozen=True)
class After:
    """One stage after another, as one."""

    first: Callable[[Any], Any]
    second: Callable[[Any], Any]

    def __call__(self, lot: Any) -> Any:
        return self.second(self.first(lot))


def endings(names: Sequence[str], with_json: bool) -> list[str]:
    """How the files of a picture end, in their order."""
    return [f"{name}.{suffix}" for name in names for suffix in (("json", "png") if with_json else ("png",))]


def encoded(name: str, made: ControlMap, with_json: bool, sixteen_bit: bool) -> dict[str, bytes]:
    """The files of one map, by how they end."""
    texts = {f"{name}.json": pose_text(made)} if with_json else {}
    return texts | {f"{name}.png": encoded_image(f"{name}.png", picture(made, sixteen_bit))}


def picture(made: ControlMap, sixteen_bit: bool) -> np.ndarray:
    """What is written of a map: its pixels, or with `sixteen_bit` grey of 16 bits where it has that."""
    return made.fine if sixteen_bit and made.fine is not None else made.pixels


def pose_text(made: ControlMap) -> bytes:
    """A map's key points as a JSON file. ValueError when it has none."""
    if not isinstance(made.values, Poses):
        raise ValueError(f"--json writes key points, which a map of {made.kind} has not")
    return json.dumps(poses_object(made.values), allow_nan=False).encode() + b"\n"


def lost(picture: Picture) -> Sheet:
    """What stands for a picture that ended the process it was in."""
    reason = f"{picture.name!r} ended the process that worked at it, for want of memory or by a fault in a decoder"
    return Sheet(replace(picture, content=None), errors={"": reason})


def line(error: BaseException, name: str) -> str:
    """One line that says what failed and names the picture."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return reason if repr(name) in reason else f"{name!r}: {reason}"


def _with(sheet: Sheet, make: Ready, values: dict[str, Any]) -> Sheet:
    name = make.entry.name
    try:
        return replace(sheet, maps={**sheet.maps, name: _made(make, [sheet], values)[0]})
    except BAD as error:
        return replace(sheet, errors={**sheet.errors, name: line(error, sheet.picture.name)})


def _made(make: Ready, sheets: Sequence[Sheet], values: dict[str, Any]) -> list[ControlMap]:
    """The maps of sheets that have their pixels. Raises what the first raises, or what is wrong with its mask."""
    pixels = [sheet.pixels for sheet in sheets]
    if not make.entry.masked:
        return make.batch(pixels, **values)
    for sheet in sheets:
        if not isinstance(sheet.mask, np.ndarray):
            raise sheet.mask or ValueError(f"{make.entry.name} needs a mask, of which there is none")
    return make.batch(pixels, masks=[sheet.mask for sheet in sheets], **values)
