"""Regions of an image: classes, objects without a class, and a foreground."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ..control_map import ControlMap
from .compare import Measure, Placement, place_pixel_values, read_value_pair

MAX_COLORS = 1000  # of a map of segmentation; a photo has more
_NO_CLASS = -1


@runtime_checkable
class ClassLabels(Protocol):
    """Values of a map of segmentation, such as `SegmentationLabels`: the number of each pixel's class, (H, W), and the
    name of each class."""

    @property
    def labels(self) -> np.ndarray:
        """Numbers (H, W) of classes."""

    @property
    def names(self) -> Sequence[str]:
        """Names of the classes by number."""


@dataclass(frozen=True, eq=False)
class FittedLabels:
    """Labels (H, W) int32 of a fitted map, -1 where the map does not reach, and the names of the classes."""

    labels: np.ndarray
    names: Sequence[str]


def compute_overlaps(expected: np.ndarray, actual: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the pairs of labels that meet in two arrays of whole numbers of one shape, 0 or more: the expected ones
    (N,), the found ones (N,), and the counts (N,) of their pixels."""
    pairs, counts = np.unique(expected.astype(np.int64) << 32 | actual.astype(np.int64), return_counts=True)
    return pairs >> 32, pairs & 0xFFFFFFFF, counts


def compute_class_ious(expected: np.ndarray, actual: np.ndarray) -> dict[int, float]:
    """Return the intersection over union of every label in either of two arrays of whole numbers of one shape, 0 or
    more; of a label in one alone it is 0."""
    a, b, counts = compute_overlaps(expected, actual)
    return {
        label: float(counts[(a == label) & (b == label)].sum() / counts[(a == label) | (b == label)].sum())
        for label in np.union1d(a, b).tolist()
    }


def _encode_colors(pixels: np.ndarray, kind: str) -> np.ndarray:
    """Return the colors (H, W) of a map (H, W, 3) as numbers below 2**24. Raises ValueError where they are
    no classes."""
    codes = pixels.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
    count = len(np.unique(codes[::4, ::4]))
    if count > MAX_COLORS:
        raise ValueError(
            f"a map of {kind} with over {count} colors shows no classes: give the map itself, saved without loss"
        )
    return codes


def _place_labels(values: Any, placement: Placement) -> Any:
    if not isinstance(values, ClassLabels):
        return place_pixel_values(values, placement)
    labels = placement.place_pixels(values.labels.astype(np.int32), _NO_CLASS, nearest=True)
    return FittedLabels(labels, values.names)


def _read_classes(expected: ControlMap, actual: ControlMap) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels (N,) of the pixels of both maps in one numbering: by names where both know their classes,
    by colors otherwise."""
    a, b = expected.values, actual.values
    if not isinstance(a, ClassLabels) or not isinstance(b, ClassLabels):
        codes = (_encode_colors(each.pixels, each.kind).reshape(-1) for each in (expected, actual))
        return tuple(codes)  # type: ignore[return-value]
    labels = [each.labels.astype(np.int64).reshape(-1) for each in (a, b)]
    mask = (labels[0] != _NO_CLASS) & (labels[1] != _NO_CLASS)
    if tuple(a.names) != tuple(b.names):
        numbers = {name: i for i, name in enumerate(dict.fromkeys([*a.names, *b.names]))}
        tables = [np.array([numbers[name] for name in each.names]) for each in (a, b)]
        return tables[0][labels[0][mask]], tables[1][labels[1][mask]]
    return labels[0][mask], labels[1][mask]


def _compare_classes(expected: ControlMap, actual: ControlMap) -> dict[str, float]:
    a, b = _read_classes(expected, actual)
    if not len(a):
        return dict.fromkeys(("miou", "accuracy", "classes"), float("nan"))
    ious = compute_class_ious(a, b)
    return {
        "miou": float(np.mean(list(ious.values()))),
        "accuracy": float((a == b).mean()),
        "classes": float(len(np.unique(a))),
    }


def _compare_objects(expected: ControlMap, actual: ControlMap) -> dict[str, float]:
    codes = (_encode_colors(each.pixels, each.kind).reshape(-1) for each in (expected, actual))
    a, b, counts = compute_overlaps(*codes)
    sizes_a, sizes_b = ({label: counts[x == label].sum() for label in np.unique(x).tolist()} for x in (a, b))
    best = dict.fromkeys((label for label in sizes_a if label), 0.0)  # 0 is black, where there is no object
    for label_a, label_b, common in zip(a.tolist(), b.tolist(), counts.tolist(), strict=True):
        if label_a and label_b:
            iou = common / (sizes_a[label_a] + sizes_b[label_b] - common)
            best[label_a] = max(best[label_a], float(iou))
    if not best:
        return {"covering": float("nan"), "mean_iou": float("nan"), "objects": 0.0}
    weights = [sizes_a[label] for label in best]
    return {
        "covering": float(np.average(list(best.values()), weights=weights)),
        "mean_iou": float(np.mean(list(best.values()))),
        "objects": float(len(best)),
    }


def _compare_foregrounds(expected: ControlMap, actual: ControlMap) -> dict[str, float]:
    a, b = read_value_pair(expected, actual)
    mask = np.isfinite(a) & np.isfinite(b)
    a, b = a[mask], b[mask]
    front, found_front = a > 0.5, b > 0.5
    if not front.any():
        return {"iou": float("nan"), "mae": float("nan")}
    return {
        "iou": float((front & found_front).sum() / (front | found_front).sum()),
        "mae": float(np.abs(a - b).mean()),
    }


SEGMENTATION = Measure(
    "segmentation",
    _compare_classes,
    score="miou",
    figures={
        "miou": "mean over the classes in either map of intersection over union; by the names of classes where both "
        "maps have values, else by colors",
        "accuracy": "share of the pixels whose class is the expected one",
        "classes": "how many classes the expected map has",
    },
    source="Everingham et al., IJCV 88(2), 2010 (PASCAL VOC); mmsegmentation's mIoU",
    place_values=_place_labels,
)
OBJECTS = Measure(
    "objects",
    _compare_objects,
    score="covering",
    figures={
        "covering": "mean over the expected objects, weighted by their pixels, of the highest intersection over union "
        "with a found one: colors of masks are names of nothing",
        "mean_iou": "the same without weights",
        "objects": "how many objects the expected map has",
    },
    source="segmentation covering: Arbelaez et al., PAMI 33(5), 2011",
)
FOREGROUND = Measure(
    "foreground",
    _compare_foregrounds,
    score="iou",
    figures={
        "iou": "intersection over union of what is more foreground than background",
        "mae": "mean absolute difference of the mattes, 0..1",
    },
    source="salient objects: Borji et al., arXiv 1501.02741",
    needs_values=True,
)
