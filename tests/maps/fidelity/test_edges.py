import math

import cv2
import numpy as np
import pytest

from controlnet_ext.maps.fidelity import canny_f1, edge_f1


def _image(*rows: str) -> np.ndarray:
    return np.array([[255 * (c == "#") for c in row] for row in rows], np.uint8)


LINE = _image(".....", "#####", ".....", ".....", ".....")


def test_a_map_agrees_with_itself():
    assert edge_f1(LINE, LINE) == (1.0, 1.0)


def test_one_pixel_beside_is_wrong_exactly_and_right_within_a_pixel():
    assert edge_f1(LINE, np.roll(LINE, 1, 0)) == (0.0, 1.0)


def test_two_pixels_beside_is_wrong():
    assert edge_f1(LINE, np.roll(LINE, 2, 0)) == (0.0, 0.0)


def test_half_of_a_line_found_is_a_recall_of_three_fifths_or_four_within_a_pixel():
    half = LINE * np.uint8([1, 1, 1, 0, 0])
    assert edge_f1(LINE, half) == pytest.approx((2 * 0.6 / 1.6, 2 * 0.8 / 1.8))


def test_too_many_edges_cost_precision():
    more = LINE | np.roll(LINE, 3, 0)
    assert edge_f1(LINE, more) == pytest.approx((2 * 0.5 / 1.5, 2 * 0.5 / 1.5))


def test_an_empty_asked_map_has_no_score_and_an_empty_found_one_scores_nothing():
    empty = np.zeros_like(LINE)
    assert all(math.isnan(score) for score in edge_f1(empty, LINE))
    assert edge_f1(LINE, empty) == (0.0, 0.0)


def test_maps_of_other_sizes_are_refused():
    with pytest.raises(ValueError, match="same size"):
        edge_f1(LINE, LINE[1:])


def test_the_canny_score_of_the_image_a_map_came_from_is_one():
    image = np.zeros((32, 32, 3), np.uint8)
    image[8:24, 8:24] = 200
    asked = cv2.Canny(image, 100, 200)
    assert canny_f1(asked, image) == (1.0, 1.0)
    assert canny_f1(asked, 255 - image).within_1px == 1.0
