"""Depth and normals of surfaces."""

from __future__ import annotations

import numpy as np

from ..control_map import ControlMap
from .compare import Measure, read_value_pair
from .similarity import to_gray

_MAX_RATIO = 1.25  # of delta 1
_MIN_GRAY = 1.0  # of 0..255: a darker pixel is as far as the map can say


def align_scale_and_shift(actual: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Return scale * found + shift, of any shape, that is nearest to `expected` by least squares; a scale below 0,
    which would turn near into far, becomes 0 (after Ranftl et al., MiDaS, arXiv 1907.01341)."""
    x, y = actual.astype(np.float64), expected.astype(np.float64)
    x = x - x.mean()
    variance = float((x * x).sum())
    scale = max(float((x * y).sum()) / variance, 0.0) if variance else 0.0
    return scale * x + y.mean()


def _compute_relative_errors(expected: np.ndarray, actual: np.ndarray) -> tuple[float, float]:
    """Return the mean of |found - expected| / expected and the share of pixels where neither is 1.25 times the other,
    of numbers (N,) of which the expected are above 0."""
    if not len(expected):
        return float("nan"), float("nan")
    ratio = np.maximum(actual / expected, expected / np.maximum(actual, 1e-9))
    return float((np.abs(actual - expected) / expected).mean()), float((ratio < _MAX_RATIO).mean())


def _compare_shades(expected: ControlMap, actual: ControlMap) -> dict[str, float]:
    a, b = to_gray(expected.pixels).astype(np.float64), to_gray(actual.pixels).astype(np.float64)
    if a.min() == a.max():  # no depth at all
        return dict.fromkeys(("rmse", "rmse_aligned", "abs_rel", "delta1"), float("nan"))
    b_aligned = align_scale_and_shift(b, a)
    mask = a >= _MIN_GRAY
    abs_rel, delta1 = _compute_relative_errors(a[mask], b_aligned[mask])
    return {
        "rmse": float(np.sqrt(((a - b) ** 2).mean())),
        "rmse_aligned": float(np.sqrt(((a - b_aligned) ** 2).mean())),
        "abs_rel": abs_rel,
        "delta1": delta1,
    }


def _compare_meters(expected: ControlMap, actual: ControlMap) -> dict[str, float]:
    figures = _compare_shades(expected, actual)
    a, b = read_value_pair(expected, actual)
    mask = np.isfinite(a) & np.isfinite(b) & (a > 0)
    figures["abs_rel"], figures["delta1"] = _compute_relative_errors(a[mask], b[mask])
    return figures


def _read_normals(control_map: ControlMap) -> np.ndarray:
    """Return the directions (H, W, 3) of a map: its values, or its colors, which are (n + 1) / 2."""
    values = control_map.values
    if isinstance(values, np.ndarray) and values.shape == control_map.pixels.shape:
        return values.astype(np.float32)
    return control_map.pixels.astype(np.float32) / np.float32(127.5) - 1


def _compare_normals(expected: ControlMap, actual: ControlMap) -> dict[str, float]:
    pair = (expected, actual)
    if any(not isinstance(each.values, np.ndarray) for each in pair):
        pair = (ControlMap(expected.pixels, expected.kind), ControlMap(actual.pixels, actual.kind))
    a, b = (_read_normals(each) for each in pair)
    lengths = [np.sqrt(np.einsum("hwc,hwc->hw", each, each)) for each in (a, b)]
    # gray and black show no direction, NaN neither
    mask, actual_mask = (np.abs(length - 1) < 0.5 for length in lengths)
    if not mask.any():
        return {"mean_angle": float("nan"), "within_11_25": float("nan")}
    cosine = np.einsum("hwc,hwc->hw", a, b)
    (ax, ay, az), (bx, by, bz) = (np.moveaxis(each, 2, 0) for each in (a, b))
    sine = np.sqrt((ay * bz - az * by) ** 2 + (az * bx - ax * bz) ** 2 + (ax * by - ay * bx) ** 2)
    angle = np.where(actual_mask, np.degrees(np.arctan2(sine, cosine)), 90.0)[mask]  # exact for small angles too
    return {"mean_angle": float(angle.mean()), "within_11_25": float((angle < 11.25).mean())}


_SHADES = {
    "rmse": "root of the mean squared difference of the maps' gray, 0..255",
    "rmse_aligned": "the same after the scale (0 or more) and the shift of the found map that fit best",
}
DEPTH = Measure(
    "depth",
    _compare_shades,
    score="rmse",
    is_better_higher=False,
    perfect=0.0,
    unit="0..255",
    figures={
        **_SHADES,
        "abs_rel": "mean of |found - expected| / expected of the gray, which is relative inverse depth, after scale "
        "and shift, where the expected map is not black",
        "delta1": "share of these pixels where neither is 1.25 times the other",
    },
    source="RMSE: ControlNet++ (arXiv 2404.07987); scale and shift: MiDaS (arXiv 1907.01341); AbsRel and delta: Eigen "
    "et al., arXiv 1406.2283",
)
METRIC_DEPTH = Measure(
    "metric depth",
    _compare_meters,
    score="rmse",
    is_better_higher=False,
    perfect=0.0,
    unit="0..255",
    figures={
        **_SHADES,
        "abs_rel": "mean of |found - expected| / expected of the values in meters, as they are",
        "delta1": "share of pixels where neither is 1.25 times the other, in meters",
    },
    source=DEPTH.source,
    needs_values=True,
    fallback=DEPTH,
)
NORMALS = Measure(
    "normals",
    _compare_normals,
    score="mean_angle",
    is_better_higher=False,
    perfect=0.0,
    unit="degrees",
    figures={
        "mean_angle": "mean angle between the normals, over pixels where the expected map has one; where the found map "
        "has none it is 90",
        "within_11_25": "share of these pixels whose angle is under 11.25 degrees",
    },
    source="Fouhey, Gupta and Hebert, ICCV 2013; as in Bae et al., arXiv 2109.09881",
)
