"""What a measure is, and how two maps come to one size before they are compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from ..control_map import ControlMap
from ..resize import FitGeometry, fit, resize_map
from .statistics import compute_share


@dataclass(frozen=True)
class Placement:
    """The place of a fitted map of `size` (height, width): its pixels are scaled and moved by `geometry`, and what is
    outside `canvas` (height, width) is cut."""

    size: tuple[int, int]
    geometry: FitGeometry
    canvas: tuple[int, int]

    def place_points(self, points: np.ndarray) -> np.ndarray:
        """Return points (..., 2), x and y in pixels of the map, in pixels of the canvas."""
        scale = (self.geometry.columns / self.size[1], self.geometry.rows / self.size[0])
        return points * np.array(scale) + np.array([self.geometry.left, self.geometry.top])

    def place_pixels(self, values: np.ndarray, outside: float, nearest: bool = False) -> np.ndarray:
        """Return values (H, W) or (H, W, C) of the map's pixels at the canvas's size, `outside` where the map is
        not; `nearest` keeps numbers of classes whole."""
        g, (height, width) = self.geometry, self.canvas
        shrinks = g.rows * g.columns < values.shape[0] * values.shape[1]
        soft = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        resized_values = cv2.resize(values, (g.columns, g.rows), interpolation=cv2.INTER_NEAREST if nearest else soft)
        canvas = np.full((height, width, *values.shape[2:]), outside, values.dtype)
        top, left = max(g.top, 0), max(g.left, 0)
        part = resized_values[max(-g.top, 0) :, max(-g.left, 0) :][: height - top, : width - left]
        canvas[top : top + part.shape[0], left : left + part.shape[1]] = part
        return canvas


def place_pixel_values(values: Any, placement: Placement) -> Any:
    """Return the values of a map where it lies on a canvas: arrays (H, W) or (H, W, C) of floats with the map's height
    and width, NaN outside; others are None."""
    if not isinstance(values, np.ndarray) or values.shape[:2] != placement.size:
        return None
    return placement.place_pixels(values.astype(np.float32), float("nan"))


def read_value_pair(expected: ControlMap, actual: ControlMap) -> tuple[np.ndarray, np.ndarray]:
    """Return the values of two maps as float64 arrays of one shape, such as depth (H, W). Raises ValueError where their
    shapes differ."""
    a, b = (np.asarray(each.values, np.float64) for each in (expected, actual))
    if a.shape != b.shape:
        raise ValueError(
            f"the values of the expected map of {expected.kind} are {a.shape}, those of the found one {b.shape}: "
            "make both maps with one preprocessor"
        )
    return a, b


@dataclass(frozen=True, eq=False)
class Measure:
    """A comparison of an image's own map with the expected one.

    function: of two maps of one size, the expected and the found, returns figures by name. A figure is NaN where the
        expected map asks for nothing: such a pair is left out of means, and counted.
    score: name of the figure that stands for all; `is_better_higher` and `perfect` (what a map scores against itself)
        are its direction and its best value, `unit` its unit.
    figures: what each figure is, in words, by name.
    source: the paper or code that defines it.
    share_figure: name of the figure of which shares between floor and ceiling are taken, where that is not the score:
        decibels have no ceiling.
    needs_values: True if pixels do not suffice. A map without values is compared by `fallback`, if there is one.
    keeps_map_size: True if maps are compared at the expected map's scale, not at the image's.
    place_values: of a map's values and a `Placement`, returns them for the map when it is fitted.
    """

    name: str
    function: Callable[[ControlMap, ControlMap], Mapping[str, float]]
    score: str
    is_better_higher: bool = True
    perfect: float = 1.0
    unit: str = "0..1"
    figures: Mapping[str, str] = field(default_factory=dict)
    source: str = ""
    share_figure: str | None = None
    needs_values: bool = False
    fallback: Measure | None = None
    keeps_map_size: bool = False
    place_values: Callable[[Any, Placement], Any] = place_pixel_values

    def for_map(self, expected: ControlMap) -> Measure:
        """Return the measure for this map: itself, or `fallback` for a map without the values that it needs. Raises
        ValueError in one line where there is none."""
        if expected.values is not None or not self.needs_values:
            return self
        if self.fallback is None:
            raise ValueError(
                f"a map of {expected.kind} that is pixels alone cannot be measured by {self.name!r}, which reads its "
                "values: make the map with its preprocessor, or read its JSON"
            )
        return self.fallback

    def compare(
        self, expected: ControlMap, actual: ControlMap, size: tuple[int, int] | None = None, fit_mode: str = "crop"
    ) -> dict[str, float]:
        """Return the figures of a found map, which shows a whole image of `size` (height, width; by default the map's
        own), against the expected one.

        Maps of one size are compared as they are. Otherwise the expected one is fitted to the image by `fit_mode`, as
        guidance fits it, and the found one resized. Raises ValueError in one line for a map that cannot be measured.
        """
        measure = self.for_map(expected)
        if expected.size != actual.size:
            expected, actual = measure._fit_maps(expected, actual, size or actual.size[::-1], fit_mode)
        for each, which in ((expected, "expected"), (actual, "found")):
            if measure.needs_values and each.values is None:
                raise ValueError(
                    f"the {which} map of {each.kind} has no values of its size, which {measure.name!r} reads: "
                    "make both maps with one preprocessor"
                )
        figures = {name: float(figure) for name, figure in measure.function(expected, actual).items()}
        if measure.score not in figures:
            raise ValueError(f"measure {measure.name!r} returned no figure {measure.score!r}, its score")
        return figures

    def _fit_maps(
        self, expected: ControlMap, actual: ControlMap, size: tuple[int, int], fit_mode: str
    ) -> tuple[ControlMap, ControlMap]:
        height, width = size
        if self.keeps_map_size:
            geometry = FitGeometry.compute(*expected.size[::-1], height, width, fit_mode)
            scale = max(geometry.rows / expected.size[1], geometry.columns / expected.size[0], 1)
            height, width = (max(1, round(side / scale)) for side in size)
            pixels = cv2.resize(actual.pixels, (width, height), interpolation=cv2.INTER_AREA)
            return self._fit_map(expected, height, width, fit_mode), ControlMap(pixels, actual.kind)
        return self._fit_map(expected, height, width, fit_mode), self._fit_map(actual, height, width, "stretch")

    def _fit_map(self, control_map: ControlMap, height: int, width: int, mode: str) -> ControlMap:
        own_size = control_map.size[::-1]
        if own_size == (height, width):
            return control_map
        placement = Placement(own_size, FitGeometry.compute(*own_size, height, width, mode), (height, width))
        pixels = control_map.pixels
        pixels = resize_map(pixels, height, width) if mode == "stretch" else fit(pixels, height, width, mode)
        values = None if control_map.values is None else self.place_values(control_map.values, placement)
        return ControlMap(pixels, control_map.kind, values)

    def compute_share(
        self, figures: Mapping[str, float], floor: Mapping[str, float], ceiling: Mapping[str, float]
    ) -> float:
        """Return how far these figures lie on the way from those of the floor (0) to those of the ceiling (1); NaN
        where the ceiling is no better than the floor."""
        if (ceiling[self.score] > floor[self.score]) is not self.is_better_higher:
            return float("nan")
        name = self.share_figure or self.score
        return compute_share(figures[name], floor[name], ceiling[name])


@dataclass(frozen=True, eq=False)
class NoMeasure:
    """The reason why maps of a preprocessor have no measure: a sentence that also says what to do."""

    reason: str


def require_measure(fidelity: Measure | NoMeasure) -> Measure:
    """Return the measure. Raises ValueError with the reason where there is none."""
    if isinstance(fidelity, NoMeasure):
        raise ValueError(fidelity.reason)
    return fidelity
