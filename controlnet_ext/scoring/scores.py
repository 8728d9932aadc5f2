"""Scores of one image by the units that guided it, the best of several images, and the text that stores scores in a
PNG."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from ..errors import error_prefix, one_line
from ..files.disk import parse_object, parse_whole_number
from ..files.image_reader import read_image
from ..files.image_writer import read_png_text
from ..generation.recipe import MAX_UNITS, GenerationRecipe, RecipeUnit, limit_threads
from ..generation.render import deterministic_torch
from ..maps.control_map import ControlMap
from ..maps.fidelity import Measure, require_measure
from ..maps.resize import fit
from ..preprocessors.registry import LoadedPreprocessor, Preprocessor, find_default_preprocessor, find_or_none

SCORE_KEYWORD = "controlnet-ext score"  # of the text in a PNG
SCORE_FORMAT = 1
DECIMALS = 6  # of figures that are stored; the last bits differ between machines
REGION_THRESHOLD = 0.5  # of a unit's region: where it acts at less, the image is not its own

Figures = Mapping[str, float]


@dataclass(frozen=True)
class UnitScore:
    """The figures of an image against the map of one unit.

    `number` counts units from 1; `preprocessor` is the name of the one that found the map again, `kind` that of the
    map, `measure` that of the measure, `figure` that of the score in `figures`. A figure is NaN where it is not
    defined, as for a map without edges. `floor` has the figures of an unguided image, `ceiling` those of the image of
    which the map was made, None where unknown; `share` is how far the score has come from one to the other, by
    `share_figure` where that is another figure than the score's.
    """

    number: int
    preprocessor: str
    kind: str
    measure: str
    figure: str
    is_better_higher: bool
    figures: Figures
    floor: Figures | None = None
    ceiling: Figures | None = None
    share: float | None = None
    share_figure: str | None = None

    @property
    def score(self) -> float:
        """The figure by which images are compared."""
        return self.figures[self.figure]

    @property
    def gain(self) -> float:
        """The score, negative where a lower one is better."""
        return self.score if self.is_better_higher else -self.score


@dataclass(frozen=True, eq=False)
class UnitTarget:
    """The map that one unit asks of an image, and how the image's own map is found.

    `control_map` comes to the image's size by `fit`, as in `Unit`; `spec` finds the map again, with `parameters`.
    `region` (H, W), 0..1, of the image's size, is where the unit acts. `source` (H, W, 3) uint8 RGB is the image of
    which the map was made, fitted to the image's size, None where it is not at hand; `recorded_ceiling` are figures
    of it from when it was.
    """

    number: int
    control_map: ControlMap
    spec: Preprocessor
    parameters: Mapping[str, Any] = field(default_factory=dict)
    region: np.ndarray | None = None
    fit: str = "crop"
    source: np.ndarray | None = None
    recorded_ceiling: Figures | None = None


class UnitScorer:
    """Scores images by one unit. The figures of its source are computed once.

    Raises ValueError with the reason where the unit's maps have no measure."""

    def __init__(self, target: UnitTarget, run: LoadedPreprocessor):
        self.target, self._run = target, run
        self._parameters = {k: v for k, v in target.parameters.items() if (k, v) != ("resolution", "match")}
        self._fidelity = require_measure(target.spec.fidelity)

    @cached_property
    def measure(self) -> Measure:
        """The measure of this map. Raises ValueError where it needs values that the map has not."""
        return self._fidelity.for_map(self.expected)

    @cached_property
    def expected(self) -> ControlMap:
        """The map that guided; an image of a map has the values of its source, such as key points."""
        own = self.target.control_map
        if own.values is not None or self._source_map is None or not self._fidelity.needs_values:
            return own
        return replace(self._source_map, pixels=own.pixels) if self._source_map.size == own.size else self._source_map

    @cached_property
    def ceiling(self) -> Figures | None:
        """The figures of the image of which the map was made; None where neither it nor they are known."""
        if self.target.source is None or self._source_map is None:
            return self.target.recorded_ceiling
        return self._compare(self._source_map, self.target.source)

    @cached_property
    def _source_map(self) -> ControlMap | None:
        return None if self.target.source is None else self.detect(self.target.source)

    def detect(self, image: np.ndarray) -> ControlMap:
        """Return the map of an image (H, W, 3) uint8 RGB, made as the unit's was. Raises what the preprocessor
        raises."""
        return self._run(image, **self._parameters)

    def score(self, image: np.ndarray, unguided_image: np.ndarray | None = None) -> UnitScore:
        """Return the score of an image (H, W, 3) uint8 RGB; the figures of `unguided_image`, of its size, are the
        floor. Raises ValueError where the two cannot be compared, and what the preprocessor raises."""
        return self.score_map(self.detect(image), image, unguided_image)

    def score_map(self, actual: ControlMap, image: np.ndarray, unguided_image: np.ndarray | None = None) -> UnitScore:
        """Return the score of an image (H, W, 3) uint8 RGB whose map, as `detect` finds it, is `actual`. Raises as
        `score`."""
        target, figures = self.target, self._compare(actual, image)
        floor = None if unguided_image is None else self._compare(self.detect(unguided_image), unguided_image)
        return UnitScore(
            target.number,
            target.spec.name,
            target.spec.makes,
            self.measure.name,
            self.measure.score,
            self.measure.is_better_higher,
            figures,
            floor,
            self.ceiling,
            self.measure.compute_share(figures, floor, self.ceiling) if floor and self.ceiling else None,
            self.measure.share_figure,
        )

    def _compare(self, actual: ControlMap, image: np.ndarray) -> dict[str, float]:
        expected, region = self.expected, self.target.region
        if region is not None:
            expected, actual = (_cut_to_region(each, region) for each in (expected, actual))
        figures = self.measure.compare(
            expected, actual, None if region is not None else image.shape[:2], self.target.fit
        )
        return {name: round(float(value), DECIMALS) for name, value in figures.items()}


def _cut_to_region(control_map: ControlMap, region: np.ndarray) -> ControlMap:
    """Return the part of a map in the bounding box of a region (H, W), black where the unit does not act. Values that
    are no pixels, such as key points, are not cut."""
    inside, values = region > REGION_THRESHOLD, control_map.values
    is_array = isinstance(values, np.ndarray) and values.shape[:2] == control_map.pixels.shape[:2]
    if not inside.any() or (values is not None and not is_array):
        return control_map
    height, width = inside.shape
    pixels = fit(control_map.pixels, height, width, "stretch")
    rows, columns = (np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    cut = np.ascontiguousarray(np.where(inside[..., None], pixels, np.uint8(0))[box])
    return ControlMap(cut, control_map.kind, values[box] if is_array and values.shape[:2] == inside.shape else None)


def find_unit_spec(unit: RecipeUnit) -> Preprocessor:
    """Return the preprocessor that finds the map of a unit again: its own, or the default one for the kind of a map
    that came as an image. Raises ValueError where there is none."""
    spec = find_or_none(unit.preprocessor)
    if spec is not None:
        return spec
    if unit.preprocessor is not None:
        raise ValueError(f"its preprocessor {unit.preprocessor!r:.80} is not here: load its file with --load")
    if unit.control_map.kind == "other":
        raise ValueError("its map came as an image of no stated kind")
    return find_default_preprocessor(unit.control_map.kind)


def make_target(
    number: int,
    unit: RecipeUnit,
    spec: Preprocessor,
    source: np.ndarray | None = None,
    old_scores: Sequence[UnitScore] = (),
) -> UnitTarget:
    """Return what a recipe's unit asks.

    `source` (H, W, 3) uint8 RGB, of any size, is the image of a unit that holds none; `old_scores` are scores of the
    same maps, whose ceilings hold. Raises FileNotFoundError or ValueError where the unit's image cannot be read."""
    height, width = unit.control_map.pixels.shape[:2]
    if unit.source is not None:
        source = read_image(unit.source, max(height, width))  # a larger JPEG at a fraction
    pixels = None if source is None else fit(source, height, width, unit.fit)
    parameters = unit.parameters if unit.preprocessor else {}
    same = (score.ceiling for score in old_scores if (score.number, score.preprocessor) == (number, spec.name))
    return UnitTarget(number, unit.control_map, spec, parameters, unit.region, unit.fit, pixels, next(same, None))


@dataclass(frozen=True, eq=False)
class ScoredImage:
    """An image (H, W, 3) uint8 RGB and the scores that its PNG holds, none for a PNG without."""

    pixels: np.ndarray
    scores: tuple[UnitScore, ...]

    @classmethod
    def read(cls, path: str) -> ScoredImage:
        """Return the image in a PNG with its scores. Raises FileNotFoundError, or ValueError in one line."""
        with error_prefix(repr(path)):
            return cls(read_image(path), read_scores(read_png_text(path)))


class RecipeScorer:
    """Scores images of one recipe by each of its units.

    `scored_image` is an image of the same maps with its scores, if there is one: they hold for equal pixels, and their
    ceilings for all images of its size. Preprocessors are loaded when the first image is scored, and nothing is
    downloaded."""

    def __init__(self, recipe: GenerationRecipe, scored_image: ScoredImage | None = None):
        self._recipe, self._recorded = recipe, scored_image
        self._unscored: dict[int, str] = {}  # reasons by the number of the unit

    def score(self, image: np.ndarray) -> tuple[UnitScore, ...]:
        """Return the scores of an image (H, W, 3) uint8 RGB by the units that can be scored; `describe` tells why
        others cannot."""
        if self._recorded and self._recorded.scores and np.array_equal(image, self._recorded.pixels):
            return self._recorded.scores
        scores = []
        with deterministic_torch(limit_threads(self._recipe.threads), self._recipe.device):
            for scorer in self._scorers:
                try:
                    scores.append(scorer.score(image))
                except Exception as error:  # no image is lost because its score cannot be found
                    self._unscored[scorer.target.number] = one_line(error, 200)
        return tuple(scores)

    def check_ranks(self) -> None:
        """Raise ValueError unless a unit that acts can be scored, so that images can be compared."""
        if not any(map(self._acts, (scorer.target.number for scorer in self._scorers))):
            reasons = "; ".join(self.describe(())) if self._unscored else "no unit acts"
            raise ValueError(f"no image is better than another: {reasons}")

    def choose_best(self, scores: Sequence[Sequence[UnitScore]]) -> tuple[int, str]:
        """Return the index of the image that obeys the units that act best, the first of equals, and by how much in
        words; `scores` are those of each image. Raises RuntimeError where no image has a score."""
        acting = [[score for score in some if self._acts(score.number)] for some in scores]
        if not all(acting):
            raise RuntimeError("; ".join(["an image has no score", *self.describe(())]))
        ranks = rank_scores(acting)
        best = ranks.index(max(ranks))
        firsts = {score.number: score.score for score in acting[0]}
        words = [
            f"unit {each.number}: {each.figure} {each.score:.3f}, the first has {firsts[each.number]:.3f}"
            for each in acting[best]
            if each.number in firsts
        ]
        return best, "; ".join(words)

    def describe(self, scores: Sequence[UnitScore]) -> list[str]:
        """Return in words the scores of an image by unit, and why others have none."""
        words = {score.number: format_score(score) for score in scores}
        words |= {number: f"no score, {reason}" for number, reason in self._unscored.items()}
        words = dict.fromkeys(range(1, len(self._recipe.units) + 1), "no score") | words
        return [f"unit {number}: {words[number]}" for number in sorted(words)]

    def _acts(self, number: int) -> bool:
        return self._recipe.units[number - 1].weight != 0

    @cached_property
    def _scorers(self) -> tuple[UnitScorer, ...]:
        scored_image = self._recorded
        size = self._recipe.height, self._recipe.width
        ceilings = scored_image.scores if scored_image is not None and scored_image.pixels.shape[:2] == size else ()
        scorers = []
        for number, unit in enumerate(self._recipe.units, 1):
            try:
                spec = find_unit_spec(unit)
                fidelity = require_measure(spec.fidelity)
                if unit.preprocessor is None and spec.weights:
                    raise ValueError(f"its map came as an image, and {spec.name}, which finds it again, has weights")
                if spec.weights and not fidelity.needs_values:  # another run of the network would only give the ceiling
                    unit = replace(unit, source=None)
                scorers.append(UnitScorer(make_target(number, unit, spec, None, ceilings), _load_offline(spec)))
            except (ValueError, OSError) as error:
                self._unscored[number] = one_line(error, 200)
        return tuple(scorers)


def _load_offline(spec: Preprocessor) -> LoadedPreprocessor:
    if not spec.weights:
        return spec.load()
    from ..preprocessors.library import Library

    return spec.load("cpu", Library(download=False))


def rank_scores(scores: Sequence[Sequence[UnitScore]]) -> list[float]:
    """Return a number for each image, 0..1, the higher the better; `scores` are those of its units.

    It is the mean over units of the share of the way from the worst of these images to the ceiling that an image has
    come; where no ceiling is known, to the best of them. Units without a score on one of the images do not count."""
    totals, count = [0.0] * len(scores), 0
    for number in sorted(set[int].intersection(*({score.number for score in some} for some in scores))):
        of_unit = [next(score for score in some if score.number == number) for some in scores]
        gains, first = [score.gain for score in of_unit], of_unit[0]
        if not all(map(math.isfinite, gains)):
            continue
        worst, top, count = min(gains), max(gains), count + 1
        if first.ceiling is not None and math.isfinite(first.ceiling[first.figure]):
            top = max(top, first.ceiling[first.figure] * (1 if first.is_better_higher else -1))
        for i, gain in enumerate(gains):
            totals[i] += (gain - worst) / (top - worst) if top > worst else 1.0
    return [total / count if count else 0.0 for total in totals]


def encode_scores(scores: Sequence[UnitScore]) -> dict[str, str]:
    """Return the text of a PNG, by keyword, that holds the scores of its image; none for no scores."""
    if not scores:
        return {}
    return {SCORE_KEYWORD: json.dumps({"format": SCORE_FORMAT, "units": [describe_score(each) for each in scores]})}


def describe_score(score: UnitScore) -> dict[str, Any]:
    """Return a score as a JSON object; null stands for NaN and for what is unknown."""
    description: dict[str, Any] = {"unit": score.number, "preprocessor": score.preprocessor, "kind": score.kind}
    description |= {"measure": score.measure, "score": score.figure, "better": _DIRECTIONS[score.is_better_higher]}
    for name in ("figures", "floor", "ceiling"):
        figures = getattr(score, name)
        description[name] = figures and {key: _to_json(value) for key, value in figures.items()}
    return {**description, "share": None if score.share is None else _to_json(score.share)}


_DIRECTIONS = {True: "higher", False: "lower"}


def _to_json(value: float) -> float | None:
    return round(value, DECIMALS) if math.isfinite(value) else None


def read_scores(texts: Mapping[str, str]) -> tuple[UnitScore, ...]:
    """Return the scores in the texts of a PNG, none where it holds none. Raises ValueError in one line for what
    `encode_scores` would not write."""
    if SCORE_KEYWORD not in texts:
        return ()
    fields = parse_object(texts[SCORE_KEYWORD].encode(), "its score")
    units = fields.get("units")
    if fields.get("format") != SCORE_FORMAT or not isinstance(units, list) or len(units) > MAX_UNITS:
        raise ValueError(f"its score: expected format {SCORE_FORMAT} and up to {MAX_UNITS} units")
    return tuple(_read_score(each, f"its score {i}") for i, each in enumerate(units, 1))


def _read_score(fields: Any, name: str) -> UnitScore:
    words = ("preprocessor", "kind", "measure", "score", "better")
    if not isinstance(fields, dict) or not all(isinstance(fields.get(word), str) for word in words):
        raise ValueError(f"{name} lacks one of {', '.join(words)}, or it is no text")
    number, figures = parse_whole_number(fields.get("unit")), _read_figures(fields.get("figures"), name)
    is_known = fields["better"] in _DIRECTIONS.values()
    if number is None or figures is None or fields["score"] not in figures or not is_known:
        raise ValueError(f"{name} has no number of a unit, no figure of its score, or no direction")
    floor, ceiling = (_read_figures(fields.get(key), name) for key in ("floor", "ceiling"))
    for each in (floor, ceiling):
        if each is not None and each.keys() != figures.keys():
            raise ValueError(f"{name}: the figures of floor or ceiling are not those of the image")
    share = fields.get("share")
    return UnitScore(
        number,
        fields["preprocessor"],
        fields["kind"],
        fields["measure"],
        fields["score"],
        fields["better"] == _DIRECTIONS[True],
        figures,
        floor,
        ceiling,
        None if share is None else _read_number(share, name),
    )


def _read_figures(fields: Any, name: str) -> dict[str, float] | None:
    if fields is None:
        return None
    if not isinstance(fields, dict):
        raise ValueError(f"{name}: figures are {type(fields).__name__}, expected an object")
    return {key: math.nan if value is None else _read_number(value, name) for key, value in fields.items()}


def _read_number(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name}: {value!r:.40} is no finite number")
    return float(value)


def format_score(score: UnitScore) -> str:
    """Return a score in words, such as `f1 0.712 (ceiling 0.930)`."""
    bounds = {"floor": score.floor, "ceiling": score.ceiling}
    more = ", ".join(f"{name} {format_figure(each[score.figure])}" for name, each in bounds.items() if each is not None)
    return f"{score.figure} {format_figure(score.score)}" + (f" ({more})" if more else "")


def format_figure(value: float | None) -> str:
    """Return a figure with three digits behind the point, fewer of a large one; "-" for NaN and for None."""
    if value is None or not math.isfinite(value):
        return "-" if value is None or math.isnan(value) else "inf"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
