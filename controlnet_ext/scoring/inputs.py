"""The images to score and the units that guided them: folders of pairs, lists, and units that are stated or that a PNG
holds."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import cv2
import numpy as np

from ..batch.formats.lists import MAP_COLUMNS, MASK_COLUMN, PATH_COLUMNS, iter_list_rows
from ..batch.inputs import LIST_SUFFIXES, find_inputs, is_container
from ..errors import check_choice, error_prefix, suggest_names
from ..files.disk import open_regular_file
from ..files.image_reader import read_image, read_mask
from ..files.image_writer import read_png_text
from ..generation.options import UNIT_SETTINGS, parse_settings, split_unit_text
from ..generation.recipe import GenerationRecipe
from ..generation.recipe_png import PNG_KEYWORD, read_recipe
from ..guidance.hints import make_map
from ..maps.control_map import ControlMap
from ..maps.resize import FIT_MODES, fit
from ..preprocessors.poses.json import read_poses
from ..preprocessors.poses.key_points import Poses
from ..preprocessors.registry import (
    NO_PREPROCESSOR,
    RESOLUTION_PARAMETER,
    LoadedPreprocessor,
    Preprocessor,
    find_unless_none,
)
from .scores import UnitTarget, find_default_preprocessor, find_unit_spec, make_target, read_scores

PAIR_FOLDERS = ("images", "maps")  # of a folder of pairs, whose files have equal stems
SOURCE_FOLDER, UNGUIDED_FOLDER = "sources", "unguided"  # which it may hold too
SOURCE_COLUMN, UNGUIDED_COLUMN, PROMPT_COLUMN = "source", "unguided", "text"  # of a list
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
INFOTEXT_KEYWORD = "parameters"  # of the text that the webui writes
STATED_UNIT_KEYS = ("map", "image", "fit", "region", "kind")
POSE_SUFFIX, POSE_KINDS = ".json", ("pose", "face")  # of key points, and the kinds of maps that have them


@dataclass(frozen=True, eq=False)
class StatedUnit:
    """A unit as `score --control` describes it, the same for all images.

    `spec` finds maps with `parameters`; maps and sources come to an image's size by `fit`. `map` is the path of the map
    or of a folder of maps, `source` that of the image of which it was made or a folder of these, None where none is
    named. `region` (H, W), 0..1, is where the unit acts."""

    spec: Preprocessor
    parameters: Mapping[str, Any] = field(default_factory=dict)
    fit: str = "crop"
    map: str | None = None
    source: str | None = None
    region: np.ndarray | None = None


@dataclass(frozen=True)
class ScoreInput:
    """An image to score. `key` is its path in the input without suffix. `maps` are paths by the name of a preprocessor,
    "" for a map of any; `source` and `unguided` are paths of its source and of an unguided image, None where the input
    has none, `prompt` its words."""

    path: str
    key: str
    maps: Mapping[str, str] = field(default_factory=dict)
    source: str | None = None
    unguided: str | None = None
    prompt: str | None = None


def parse_stated_unit(text: str) -> StatedUnit:
    """Return the unit that a text such as `canny,low=50,map=canny.png` describes: a preprocessor, its parameters and
    `STATED_UNIT_KEYS`; `none,kind=depth` for a map of which only the kind is known. What `generate` reads beside
    these, model and `UNIT_SETTINGS`, is checked and means nothing here.

    Raises ValueError or TypeError in one line: an unknown preprocessor or key with the nearest names, an invalid
    value."""
    name, values = split_unit_text(text)
    spec = find_unless_none(name)
    kind = values.pop("kind", None)
    if spec is None:
        if kind is None:
            raise ValueError(f"{NO_PREPROCESSOR} names no preprocessor: add the map's kind, kind=KIND")
        spec = find_default_preprocessor(kind)
    elif kind is not None:
        raise ValueError(f"kind {kind!r:.40} of a map that {spec.name} makes, whose maps are {spec.makes!r}")
    names = [parameter.name for parameter in (*spec.parameters, RESOLUTION_PARAMETER)]
    parse_settings(values)  # of how the unit guided, which the text may say too
    for key in values:
        if key not in (*STATED_UNIT_KEYS, *UNIT_SETTINGS, "model", *names):
            raise ValueError(suggest_names(f"{key!r:.80} is unknown to {spec.name}", key, [*STATED_UNIT_KEYS, *names]))
    fit_mode = values.get("fit", "crop")
    check_choice("fit", fit_mode, FIT_MODES)
    is_match = values.get("resolution") == "match"
    texts = {key: value for key, value in values.items() if key in names and not (is_match and key == "resolution")}
    region = read_mask(values["region"])[..., 0].astype(np.float32) / 255 if "region" in values else None
    parameters = {**spec.parse(texts), **({"resolution": "match"} if is_match else {})}
    return StatedUnit(spec, parameters, fit_mode, values.get("map"), values.get("image"), region)


def find_score_inputs(patterns: Sequence[str], recursive: bool) -> list[ScoreInput]:
    """Find the images to score.

    A pattern is an image, a folder of images or a glob, as `find_inputs` has them; a folder of pairs, with
    `PAIR_FOLDERS`; or a list (.jsonl) with columns of images and maps. Raises FileNotFoundError or ValueError in one
    line for a pattern without images and for a file that holds several."""
    return [each for pattern in patterns for each in _expand_pattern(pattern, recursive)]


def _expand_pattern(pattern: str, recursive: bool) -> Iterator[ScoreInput]:
    images, maps = (os.path.join(pattern, name) for name in PAIR_FOLDERS)
    if os.path.isdir(images) and os.path.isdir(maps):
        yield from _list_pairs(pattern, images, maps)
        return
    for file in find_inputs([pattern], recursive):
        if file.path.lower().endswith(LIST_SUFFIXES):
            yield from _read_score_list(file.path)
        elif is_container(file.path):
            raise ValueError(f"{file.path!r} holds several images: expected an image, a folder or a list (.jsonl)")
        else:
            yield ScoreInput(file.path, file.key)


def _list_pairs(folder: str, images: str, maps: str) -> Iterator[ScoreInput]:
    others = [os.path.join(folder, name) for name in (SOURCE_FOLDER, UNGUIDED_FOLDER)]
    indexes = [FolderIndex(path) if os.path.isdir(path) else None for path in others]
    for file in find_inputs([images], recursive=True):
        source, unguided_path = (None if index is None else index.find(file.key) for index in indexes)
        yield ScoreInput(file.path, file.key, {"": maps}, source, unguided_path)


def _read_score_list(path: str) -> Iterator[ScoreInput]:
    folder = os.path.dirname(path)
    for number, row in enumerate(iter_list_rows(path), 1):
        paths = {key: os.path.join(folder, value) for key, value in row.items() if isinstance(value, str) and value}
        image = next((paths[name] for name in PATH_COLUMNS if name in paths), None)
        if image is None:
            raise ValueError(f"line {number} of {path!r} names no image, expected one of {', '.join(PATH_COLUMNS)}")
        key = os.path.splitext(os.path.relpath(image, folder or "."))[0]
        first = next((paths[name] for name in MAP_COLUMNS if name in paths), None)
        maps = {name: value for name, value in paths.items() if name not in (*PATH_COLUMNS, *MAP_COLUMNS, MASK_COLUMN)}
        maps |= {} if first is None else {"": first}
        yield ScoreInput(image, key, maps, paths.get(SOURCE_COLUMN), paths.get(UNGUIDED_COLUMN), row.get(PROMPT_COLUMN))


class FolderIndex:
    """The images of a folder and of those in it by key: their path without suffix."""

    def __init__(self, folder: str):
        self._folder = folder

    @cached_property
    def _paths(self) -> dict[str, str]:
        paths: dict[str, str] = {}
        for path, key, _ in find_inputs([self._folder], recursive=True):
            if paths.setdefault(key, path) != path:
                raise ValueError(f"{paths[key]!r} and {path!r} have one stem: remove one")
        return paths

    def find(self, key: str, *suffixes: str) -> str | None:
        """Return the path of an image of this key, or of the key with one of the suffixes, as `preprocess` names
        maps; None where there is none. Raises ValueError for two images of one key."""
        names = (key, *(f"{key}_{suffix}" for suffix in suffixes))
        return next((self._paths[name] for name in names if name in self._paths), None)


InfotextReader = Callable[[str], Sequence[StatedUnit]]


@dataclass(frozen=True, eq=False)
class ImageTargets:
    """One image (H, W, 3) uint8 RGB and what units ask of it: `targets` of units, and by their number the reasons why
    others have none; an unguided image, None where it has to be drawn of `recipe`, which is None for images without;
    the prompt, None where nobody says it."""

    image: np.ndarray
    targets: tuple[UnitTarget, ...]
    unscored: Mapping[int, str]
    unguided: np.ndarray | None
    recipe: GenerationRecipe | None
    prompt: str | None = None


class TargetReader:
    """Reads images and what units ask of them.

    Units that are `stated` hold for all images; without any, each PNG has its own, of its recipe or of the webui's
    text, which `read_infotext` reads. `load` loads preprocessors. `maps` are the paths of the maps of its units, in
    their order, `source` and `unguided` those of the source and of an unguided image; each is a file or a folder with
    files of the images' keys. With `needs_recipe` each image has a recipe, or an unguided image beside it."""

    def __init__(
        self,
        units: Sequence[StatedUnit],
        load: Callable[[Preprocessor], LoadedPreprocessor],
        read_infotext: InfotextReader,
        maps: Sequence[str] = (),
        source: str | None = None,
        unguided_path: str | None = None,
        needs_recipe: bool = False,
    ):
        self._stated, self._load, self._read_infotext = tuple(units), load, read_infotext
        self._maps, self._source, self._unguided, self._needs_recipe = maps, source, unguided_path, needs_recipe
        self._folders: dict[str, FolderIndex] = {}

    def read(self, score_input: ScoreInput) -> ImageTargets:
        """Return what units ask of an image. Raises FileNotFoundError, ValueError or TypeError in one line where it,
        its map or its source cannot be read, or nobody says what its units are."""
        image = read_image(score_input.path)
        height, width, _ = image.shape
        texts = _read_texts(score_input.path)
        recipe = self._read_recipe(score_input, texts, (height, width))
        prompt = _find_prompt(score_input, recipe, texts)
        path = self._find_file(self._unguided, score_input.key, "unguided image") or score_input.unguided
        unguided_image = None if path is None else fit(read_image(path), height, width)
        source_path = self._find_file(self._source, score_input.key, "source") or score_input.source
        if recipe is not None and not self._stated:
            if self._maps:
                raise ValueError(
                    "its recipe holds its maps: for others say what they are, --kind KIND or --control NAME"
                )
            source = None if source_path is None else read_image(source_path)
            return replace(self._read_units(image, recipe, source, texts, unguided_image), prompt=prompt)
        units = self._stated or self._read_stated_infotext(texts)
        if len(self._maps) > len(units):
            raise ValueError(f"{len(self._maps)} maps (--map) of {len(units)} units")
        units_with_maps = [replace(unit, map=path) for unit, path in zip(units, self._maps, strict=False)]
        units = [*units_with_maps, *units[len(units_with_maps) :]]
        targets = []
        for number, unit in enumerate(units, 1):
            with error_prefix(f"unit {number}"):
                targets.append(self._make_target(number, unit, score_input, source_path, (height, width)))
        return ImageTargets(image, tuple(targets), {}, unguided_image, recipe, prompt)

    def _read_recipe(
        self, score_input: ScoreInput, texts: Mapping[str, str], size: tuple[int, int]
    ) -> GenerationRecipe | None:
        if PNG_KEYWORD not in texts or (self._stated and not self._needs_recipe):
            if self._needs_recipe and score_input.unguided is None and self._unguided is None:
                raise ValueError("it holds no recipe, of which an unguided image could be drawn: name one (--unguided)")
            return None
        recipe = read_recipe(score_input.path)
        if (recipe.height, recipe.width) != size:
            sizes = f"{size[1]}x{size[0]} pixels and its recipe's {recipe.width}x{recipe.height}"
            raise ValueError(f"the image is {sizes}: it was changed since")
        return recipe

    def _read_units(
        self,
        image: np.ndarray,
        recipe: GenerationRecipe,
        source: np.ndarray | None,
        texts: Mapping[str, str],
        unguided_image: np.ndarray | None,
    ) -> ImageTargets:
        targets, reasons = [], {}
        old_scores = read_scores(texts)
        for number, unit in enumerate(recipe.units, 1):
            try:
                targets.append(make_target(number, unit, find_unit_spec(unit), source, old_scores))
            except ValueError as error:
                reasons[number] = str(error)
        if not recipe.units:
            raise ValueError("its recipe has no units")
        return ImageTargets(image, tuple(targets), reasons, unguided_image, recipe)

    def _read_stated_infotext(self, texts: Mapping[str, str]) -> Sequence[StatedUnit]:
        advice = "say what its map is: --map MAP with --kind KIND or --control NAME"
        if INFOTEXT_KEYWORD not in texts:
            raise ValueError(f"it holds no recipe; {advice}")
        units = self._read_infotext(texts[INFOTEXT_KEYWORD])
        if not units:
            raise ValueError(f"the webui's text in it names no unit of ControlNet; {advice}")
        return units

    def _make_target(
        self, number: int, unit: StatedUnit, score_input: ScoreInput, source_path: str | None, size: tuple[int, int]
    ) -> UnitTarget:
        source_path = self._find_file(unit.source, score_input.key, "source") or source_path
        source = None if source_path is None else read_image(source_path, _get_resolution(unit.parameters))
        pixels = None if source is None else fit(source, *size, unit.fit)
        map_path = self._find_map(unit, score_input)
        if map_path is not None:
            control_map = read_control_map(map_path, unit.spec.makes)
        elif source is None:
            raise ValueError(
                f"no map of {unit.spec.name} to compare with: name it with --map, or with --image the image of which "
                "it was made"
            )
        else:
            run = self._load(unit.spec)
            control_map = make_map(unit.spec, run, source, None, unit.parameters, size, unit.fit)
        region = unit.region
        if region is not None:  # then maps are cut to it, at the size of the image
            region = cv2.resize(region, size[::-1], interpolation=cv2.INTER_LINEAR)
            control_map = replace(control_map, pixels=fit(control_map.pixels, *size, unit.fit), pixels16=None)
        return UnitTarget(number, control_map, unit.spec, unit.parameters, region, unit.fit, pixels)

    def _find_map(self, unit: StatedUnit, score_input: ScoreInput) -> str | None:
        path = unit.map or score_input.maps.get(unit.spec.name) or score_input.maps.get("")
        return self._find_file(path, score_input.key, "map", unit.spec.name)

    def _find_file(self, path: str | None, key: str, what: str, *suffixes: str) -> str | None:
        """Return the path itself, or that of the image of this key in the folder `path`. Raises FileNotFoundError where
        the folder has none."""
        if path is None or not os.path.isdir(path):
            return path
        match = self._folders.setdefault(path, FolderIndex(path)).find(key, *suffixes)
        if match is None:
            raise FileNotFoundError(f"{path!r} holds no {what} called {key!r:.80}")
        return match


def _read_texts(path: str) -> dict[str, str]:
    """Return the texts of a PNG, whatever it is called; none of other images."""
    with open_regular_file(path) as file:
        is_png = file.read(len(PNG_SIGNATURE)) == PNG_SIGNATURE
    return read_png_text(path) if is_png else {}


def _find_prompt(score_input: ScoreInput, recipe: GenerationRecipe | None, texts: Mapping[str, str]) -> str | None:
    """Return the words of which an image was made: of a list, of a recipe, or the first lines of the webui's text."""
    if score_input.prompt is not None or recipe is not None:
        return score_input.prompt if recipe is None else recipe.prompts[0]
    if INFOTEXT_KEYWORD not in texts:
        return None
    return re.split(r"\n(?=Negative prompt: |Steps: )", texts[INFOTEXT_KEYWORD])[0].strip()


def _get_resolution(parameters: Mapping[str, Any]) -> int | None:
    resolution = parameters.get(RESOLUTION_PARAMETER.name)
    return resolution if isinstance(resolution, int) else None


def read_control_map(path: str, kind: str) -> ControlMap:
    """Return the map in an image, with its key points where `preprocess --json` wrote them beside it; or the map of key
    points in a file (.json). Raises FileNotFoundError or ValueError in one line."""
    stem, suffix = os.path.splitext(path)
    if suffix.lower() == POSE_SUFFIX:
        from ..preprocessors.poses.drawing import render_pose

        poses = _read_pose(path)
        return ControlMap(render_pose(poses, poses.height, poses.width), kind, poses)
    pixels, beside = read_image(path), f"{stem}{POSE_SUFFIX}"
    return ControlMap(pixels, kind, _read_pose(beside) if kind in POSE_KINDS and os.path.exists(beside) else None)


def _read_pose(path: str) -> Poses:
    poses = read_poses(path)
    if len(poses) != 1:
        raise ValueError(f"{path!r} holds the poses of {len(poses)} images, expected those of one")
    return poses[0]
