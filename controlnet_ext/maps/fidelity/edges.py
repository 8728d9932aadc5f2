"""Edges and drawings: the F1 score of their pixels."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from ..control_map import ControlMap
from .compare import Measure


class EdgeScore(NamedTuple):
    """F1 between two edge maps, 0..1; nan where the asked map is empty (to be excluded and counted)."""

    exact: float
    within_1px: float


def edge_f1(expected: np.ndarray, actual: np.ndarray) -> EdgeScore:
    """Compute the F1 scores of two edge maps `(H, W)` or `(H, W, 3)`, uint8 or bool; anything above 127 (or True) is an
    edge.

    `within_1px`: an edge pixel counts as right when the other map has one in its 3x3 neighborhood, in both directions
    (precision: found in the dilated expected map; recall: expected in the dilated found map). ValueError when the maps
    differ in size.
    """
    a, b = _binarize(expected), _binarize(actual)
    if a.shape != b.shape:
        raise ValueError(f"maps of {a.shape} and {b.shape} cannot be compared: make them the same size first")
    if not a.any() or not b.any():
        return EdgeScore(0.0, 0.0) if a.any() else EdgeScore(float("nan"), float("nan"))
    square = np.ones((3, 3), np.uint8)
    near_a, near_b = cv2.dilate(a, square), cv2.dilate(b, square)
    return EdgeScore(
        _f1((b & a).sum() / b.sum(), (a & b).sum() / a.sum()),
        _f1((b & near_a).sum() / b.sum(), (a & near_b).sum() / a.sum()),
    )


def canny_f1(expected: np.ndarray, image: np.ndarray, low: int = 100, high: int = 200) -> EdgeScore:
    """F1 between an asked canny map and the canny map of an image (H, W, 3) RGB uint8, with the thresholds of both."""
    return edge_f1(expected, cv2.Canny(np.ascontiguousarray(image), low, high))


def _binarize(edges: np.ndarray) -> np.ndarray:
    one = np.maximum(np.maximum(edges[..., 0], edges[..., 1]), edges[..., 2]) if edges.ndim == 3 else edges
    return (one.astype(bool) if one.dtype == bool else one > 127).astype(np.uint8)


def _f1(precision: float, recall: float) -> float:
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def _compare_edges(expected: ControlMap, actual: ControlMap) -> dict[str, float]:
    score = edge_f1(expected.pixels, actual.pixels)
    return {"f1": score.exact, "f1_1px": score.within_1px}


EDGES = Measure(
    "edges",
    _compare_edges,
    score="f1",
    figures={
        "f1": "2 P R / (P + R) of the pixels that are edges (above 127), P the share of the found that are expected, "
        "R of the expected that are found",
        "f1_1px": "the same, where an edge counts that the other map has within one pixel, diagonals too",
    },
    source="exact: ControlNet++ (Li et al., arXiv 2404.07987), torchmetrics' BinaryF1Score",
)
