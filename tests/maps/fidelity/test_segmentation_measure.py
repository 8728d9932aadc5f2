"""Classes, objects and foregrounds: typed 5x5 cases, laws, and maps that are none."""

import math

import numpy as np
import pytest
from controlnet_ext.preprocessors.segmentation.palettes import ADE20K_PALETTE, SegmentationLabels

from controlnet_ext import ControlMap
from controlnet_ext.maps.fidelity import get_measure
from controlnet_ext.maps.fidelity.regions import compute_class_ious

CLASSES, OBJECTS, FOREGROUND = (get_measure(name) for name in ("segmentation", "objects", "foreground"))
COLORS = np.array([[0, 0, 0], [255, 0, 0], [0, 0, 255]], np.uint8)
LEFT = np.array([[1, 1, 1, 0, 0]] * 5)
MOVED = np.array([[0, 1, 1, 1, 2]] * 5)


def make_map(labels, colors=COLORS):
    return ControlMap(colors[labels], "segmentation")


def make_named(labels, names):
    return ControlMap(COLORS[labels], "segmentation", SegmentationLabels(np.asarray(labels, np.uint8), names))


def test_the_overlap_of_each_class_is_counted():
    """1: 10 of 20 pixels, 0: none of 15, 2: none of 5."""
    assert compute_class_ious(LEFT, MOVED) == {0: 0.0, 1: 0.5, 2: 0.0}
    assert CLASSES.compare(make_map(LEFT), make_map(MOVED)) == {
        "miou": pytest.approx(1 / 6),
        "accuracy": pytest.approx(0.4),
        "classes": 2,
    }


def test_classes_agree_with_themselves_and_in_either_order():
    assert CLASSES.compare(make_map(LEFT), make_map(LEFT))["miou"] == 1
    a, b = CLASSES.compare(make_map(LEFT), make_map(MOVED)), CLASSES.compare(make_map(MOVED), make_map(LEFT))
    assert a["miou"] == b["miou"]


def test_classes_of_one_color_are_told_apart_by_their_names():
    """A road and a skyscraper of ADE20K."""
    numbers = [ADE20K_PALETTE.names.index(name) for name in ("road", "skyscraper")]
    assert ADE20K_PALETTE.colors[numbers[0]] == ADE20K_PALETTE.colors[numbers[1]]
    road, tower = (
        ControlMap(
            ADE20K_PALETTE.colorize(np.full((5, 5), number)),
            "segmentation",
            SegmentationLabels(np.full((5, 5), number, np.uint8), ADE20K_PALETTE.names),
        )
        for number in numbers
    )
    assert CLASSES.compare(road, tower)["miou"] == 0
    assert CLASSES.compare(ControlMap(road.pixels, "segmentation"), tower)["miou"] == 1  # pixels say no more


def test_classes_of_two_palettes_meet_by_name():
    a, b = make_named(LEFT, ("sky", "sea", "dog")), make_named(2 - LEFT, ("cat", "sea", "sky"))
    assert CLASSES.compare(a, b)["miou"] == 1


def test_labels_of_another_size_are_fitted_and_what_they_do_not_reach_is_not_counted():
    names = ("a", "b", "c")
    wide = make_named(np.pad(LEFT, ((0, 0), (2, 2)), constant_values=2), names)
    figures = CLASSES.compare(wide, make_named(LEFT, names), (5, 5))
    assert figures == {"miou": 1, "accuracy": 1, "classes": 2}
    tall = make_named(np.kron(LEFT[:, 1:], np.ones((2, 1), int)), names)  # 10x4 into 10x10: 4 columns in the middle
    seen = np.full((10, 10), 2)
    seen[:, 3:7] = np.kron(LEFT[:, 1:], np.ones((2, 1), int))
    assert CLASSES.compare(tall, make_named(seen, names), (10, 10), "fill")["accuracy"] == 1


def test_a_photo_shows_no_classes():
    photo = ControlMap(np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8), "segmentation")
    with pytest.raises(ValueError, match="colors shows no classes"):
        CLASSES.compare(photo, photo)


def test_objects_are_found_whatever_their_colors():
    other = np.array([[0, 0, 0], [9, 200, 9], [77, 0, 255]], np.uint8)
    assert OBJECTS.compare(make_map(MOVED), make_map(MOVED, other)) == {"covering": 1, "mean_iou": 1, "objects": 2}


def test_objects_are_weighted_by_their_size():
    """Of 15 pixels 10 of 20 are common, of 5 none: (15 x 0.5 + 5 x 0) / 20, and (0.5 + 0) / 2."""
    assert OBJECTS.compare(make_map(MOVED), make_map(LEFT)) == {"covering": 0.375, "mean_iou": 0.25, "objects": 2}
    black = make_map(np.zeros((5, 5), int))
    assert math.isnan(OBJECTS.compare(black, make_map(LEFT))["covering"])
    assert OBJECTS.compare(make_map(LEFT), black)["covering"] == 0


def test_a_foreground_is_compared_by_its_matte():
    """3 columns and 3 others, two common: 10 of 20 pixels; off by 1 in two of five columns."""
    a, b = (
        ControlMap(np.zeros((5, 5, 3), np.uint8), "other", (labels == 1).astype(np.float32)) for labels in (LEFT, MOVED)
    )
    assert FOREGROUND.compare(a, b) == {"iou": 0.5, "mae": pytest.approx(0.4)}
    assert FOREGROUND.compare(a, a) == {"iou": 1, "mae": 0}
    empty = ControlMap(a.pixels, "other", np.zeros((5, 5), np.float32))
    assert math.isnan(FOREGROUND.compare(empty, a)["iou"])
    with pytest.raises(ValueError, match="pixels alone"):
        FOREGROUND.compare(ControlMap(a.pixels, "other"), a)
