"""Straight lines by structural average precision, on the lines themselves and not on their pixels."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..control_map import ControlMap
from .compare import Measure, Placement
from .edges import EDGES

SAP_THRESHOLDS = (5, 10, 15)  # squared pixels of the image at 128x128
_SAP_SIDE = 128


def compute_structural_ap(expected: np.ndarray, actual: np.ndarray, threshold: float) -> float:
    """Return the structural average precision, 0..1, of lines (M, 4), the surest first, against lines (N, 4): x and y
    of both ends, in an image scaled to 128x128 pixels.

    A found line is right if the squared distances of its two ends from those of the nearest expected line, in the
    better order, sum to less than `threshold`, and no surer one has taken that line. The area under the curve of
    precision (its highest at that recall or a greater one) over recall (Zhou, Qi and Ma, End-to-End Wireframe Parsing,
    ICCV 2019). NaN where no line is expected, 0 where none is found."""
    if not len(expected):
        return float("nan")
    if not len(actual):
        return 0.0
    a, b = expected.reshape(1, -1, 2, 2), actual.reshape(-1, 1, 2, 2)
    distances = np.minimum(((b - a) ** 2).sum(axis=(2, 3)), ((b - a[:, :, ::-1]) ** 2).sum(axis=(2, 3)))
    nearest = distances.argmin(axis=1)
    close = distances[np.arange(len(actual)), nearest] < threshold
    right, matches = np.zeros(len(actual)), set()
    for i in np.flatnonzero(close).tolist():
        right[i] = nearest[i] not in matches
        matches.add(nearest[i])
    precision = np.cumsum(right) / np.arange(1, len(actual) + 1)
    highest = np.maximum.accumulate(precision[::-1])[::-1]
    return float((highest * right).sum() / len(expected))


def _place_lines(values: Any, placement: Placement) -> Any:
    """Lines (N, 4) in pixels of the canvas, without those that lie outside of it."""
    lines = placement.place_points(np.asarray(values, np.float64).reshape(-1, 2, 2))
    height, width = placement.canvas
    inside = (lines.max(axis=1) >= 0).all(axis=1) & (lines.min(axis=1) <= (width, height)).all(axis=1)
    return lines[inside].reshape(-1, 4)


def _compare_straight_lines(expected: ControlMap, actual: ControlMap) -> dict[str, float]:
    width, height = expected.size
    scale = np.array([_SAP_SIDE / width, _SAP_SIDE / height] * 2)
    a, b = (np.asarray(each.values, np.float64).reshape(-1, 4) * scale for each in (expected, actual))
    scores = {f"sap{threshold}": compute_structural_ap(a, b, threshold) for threshold in SAP_THRESHOLDS}
    return {**scores, "msap": float(np.mean(list(scores.values()))), "lines": float(len(a))}


STRAIGHT_LINES = Measure(
    "straight lines",
    _compare_straight_lines,
    score="sap10",
    figures={
        "sap5": "structural average precision of the lines at 128x128 pixels, both ends within a squared distance of 5",
        "sap10": "the same within 10",
        "sap15": "the same within 15",
        "msap": "the mean of the three",
        "lines": "how many lines are expected; of none the others are NaN",
    },
    source="Zhou, Qi and Ma, End-to-End Wireframe Parsing (L-CNN), ICCV 2019, arXiv 1905.03246",
    needs_values=True,
    fallback=EDGES,
    place_values=_place_lines,
)
