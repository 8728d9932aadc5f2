"""The measures by name, which kind of map is measured by which, and `measure`, which takes an image."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ...errors import check_choice
from ..control_map import MAP_KINDS, ControlMap
from .colors import COLOR, COLOR_DISTRIBUTION, EMBEDDING, LIGHTNESS
from .compare import Measure, NoMeasure, require_measure
from .depth import DEPTH, METRIC_DEPTH, NORMALS
from .edges import EDGES
from .lines import STRAIGHT_LINES
from .points import FACE, POSE
from .regions import FOREGROUND, OBJECTS, SEGMENTATION
from .similarity import IMAGE, LINES

MEASURES: dict[str, Measure] = {
    each.name: each
    for each in (
        EDGES,
        LINES,
        STRAIGHT_LINES,
        DEPTH,
        METRIC_DEPTH,
        NORMALS,
        POSE,
        FACE,
        SEGMENTATION,
        OBJECTS,
        FOREGROUND,
        IMAGE,
        COLOR,
        COLOR_DISTRIBUTION,
        LIGHTNESS,
        EMBEDDING,
    )
}
_BY_KIND: dict[str, Measure | NoMeasure] = {
    "edges": EDGES,
    "soft edges": LINES,
    "lines": LINES,
    "straight lines": STRAIGHT_LINES,
    "scribble": EDGES,
    "depth": DEPTH,
    "normals": NORMALS,
    "pose": POSE,
    "face": FACE,
    "segmentation": SEGMENTATION,
    "tile": IMAGE,
    "color": COLOR,
    "luminance": LIGHTNESS,
    "shuffle": COLOR_DISTRIBUTION,
    "inpaint": NoMeasure(
        "an inpaint map does not say what is to be painted: there is nothing to obey where its mask is white, and the "
        "rest is kept as it is; measure by another unit's map"
    ),
    "embedding": EMBEDDING,
    "other": NoMeasure(
        "maps of kind other have no common measure: give the preprocessor its own by @preprocessor(..., fidelity=...)"
    ),
}


def get_measure(name: str) -> Measure:
    """Return the measure of this name. Raises ValueError with all names for another."""
    check_choice("measure", name, MEASURES)
    return MEASURES[name]


def get_measure_of_kind(kind: str) -> Measure | NoMeasure:
    """Return the measure of a kind of map, or why it has none. Raises ValueError for no kind."""
    check_choice("map kind", kind, MAP_KINDS)
    return _BY_KIND[kind]


def measure(
    expected: ControlMap,
    image: np.ndarray,
    preprocess: Callable[[np.ndarray], ControlMap],
    by: Measure | NoMeasure | None = None,
    fit_mode: str = "crop",
) -> dict[str, float]:
    """Return the figures of an image (H, W, 3) uint8 RGB against the map that it was made by.

    `preprocess` makes the image's own map, by the preprocessor and the parameters of the expected one. `by` is the
    preprocessor's `fidelity`, by default the measure of the map's kind; `fit_mode` is the unit's. Which figure is THE
    score, `Measure.score` says. Raises ValueError in one line for kinds without a measure, a map that cannot be
    measured, and a preprocessor of another kind of map; TypeError for an image of another shape or type.
    """
    if not isinstance(image, np.ndarray):
        raise TypeError(f"an image to measure is an array (H, W, 3) uint8, RGB, not {type(image).__name__}: read_image")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise TypeError(f"an image to measure is (H, W, 3) uint8, RGB, not {image.shape} {image.dtype}")
    kind_measure = require_measure(get_measure_of_kind(expected.kind) if by is None else by).for_map(expected)
    actual = preprocess(image)
    check_choice("map kind", actual.kind, MAP_KINDS)
    if actual.kind != expected.kind and get_measure_of_kind(actual.kind) != get_measure_of_kind(expected.kind):
        raise ValueError(
            f"the map is of {expected.kind}, but the preprocessor makes {actual.kind}: "
            "measure by the preprocessor that made the map"
        )
    return kind_measure.compare(expected, actual, image.shape[:2], fit_mode)
