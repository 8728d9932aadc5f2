"""Structural average precision: typed cases, laws, and what becomes of maps without lines."""

import math

import cv2
import numpy as np
import pytest

from controlnet_ext import ControlMap
from controlnet_ext.maps.fidelity import get_measure
from controlnet_ext.maps.fidelity.lines import compute_structural_ap

LINES = np.array([[0, 0, 100, 0], [0, 50, 100, 50], [20, 10, 20, 90]], float)
DOWN, RIGHT = np.array([0, 2, 0, 2]), np.array([2, 0, 2, 0])
MEASURE = get_measure("straight lines")


def make_map(lines, width=128, height=128):
    canvas = np.zeros((height, width, 3), np.uint8)
    for line in np.asarray(lines, int).reshape(-1, 2, 2):
        cv2.line(canvas, line[0].tolist(), line[1].tolist(), (255, 255, 255))
    return ControlMap(canvas, "straight lines", np.asarray(lines, np.float32).reshape(-1, 4))


def test_lines_agree_with_themselves_from_either_end_and_in_any_order():
    assert compute_structural_ap(LINES, LINES, 5) == 1
    assert compute_structural_ap(LINES, LINES[::-1, [2, 3, 0, 1]], 5) == 1


def test_both_ends_count_squared():
    """Two ends two pixels off each: 4 + 4 = 8."""
    moved = LINES + DOWN
    assert [compute_structural_ap(LINES, moved, limit) for limit in (5, 8, 10)] == [0, 0, 1]


def test_a_line_is_found_once():
    """Precision 1, 1/2, 1/3, 2/4 at recall 1/3, 1/3, 1/3, 2/3: (1 + 1/2) / 3."""
    found = LINES[[0, 0, 0, 1]]
    assert compute_structural_ap(LINES, found, 5) == pytest.approx(0.5)


def test_a_wrong_line_costs_more_the_surer_it_is():
    wrong = np.array([[60, 60, 90, 120.0]])
    first, last = np.concatenate([wrong, LINES]), np.concatenate([LINES, wrong])
    assert compute_structural_ap(LINES, last, 5) == 1
    assert compute_structural_ap(LINES, first, 5) == pytest.approx(3 / 4)


def test_precision_is_the_highest_at_that_recall_or_a_greater_one():
    """Wrong, right, right: 1/2 at recall 1/2 becomes the 2/3 at recall 1."""
    found = np.concatenate([[[60, 60, 90, 120.0]], LINES[:2]])
    assert compute_structural_ap(LINES[:2], found, 5) == pytest.approx(2 / 3)


def area_under_curve(expected, found, threshold):
    """L-CNN's definition, point by point: matches in the order of confidence, then the area under the envelope."""
    taken, curve, right = set(), [(0.0, 0.0)], 0
    for n, line in enumerate(found, 1):
        costs = []
        for other in expected:
            ends = [np.sum((line - other) ** 2), np.sum((line - other[[2, 3, 0, 1]]) ** 2)]
            costs.append(min(ends))
        best = int(np.argmin(costs))
        if costs[best] < threshold and best not in taken:
            taken.add(best)
            right += 1
        curve.append((right / len(expected), right / n))
    recalls = [0.0, *[r for r, _ in curve[1:]], 1.0]
    precisions = [0.0, *[p for _, p in curve[1:]], 0.0]
    envelope = [max(precisions[i:]) for i in range(len(precisions))]
    return sum((recalls[i] - recalls[i - 1]) * envelope[i] for i in range(1, len(recalls)))


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_is_the_area_under_the_envelope(seed):
    numbers = np.random.default_rng(seed)
    expected = numbers.uniform(0, 128, (12, 4))
    found = np.concatenate([expected[:9] + numbers.normal(0, 1, (9, 4)), numbers.uniform(0, 128, (10, 4))])
    found = found[numbers.permutation(len(found))]
    for threshold in (5, 10, 15):
        assert compute_structural_ap(expected, found, threshold) == pytest.approx(
            area_under_curve(expected, found, threshold)
        )


def test_figures_are_those_at_128_pixels_whatever_the_size():
    small, large = make_map(LINES), make_map(LINES * 4, 512, 512)
    off = make_map(LINES + DOWN), make_map((LINES + DOWN) * 4, 512, 512)
    assert MEASURE.compare(small, off[0]) == MEASURE.compare(large, off[1])
    assert MEASURE.compare(small, off[0]) == {
        "sap5": 0,
        "sap10": 1,
        "sap15": 1,
        "msap": pytest.approx(2 / 3),
        "lines": 3,
    }


def test_a_map_of_another_size_has_its_lines_fitted():
    """Of 192x128 the middle is kept: lines 32 pixels further left, and one that lies outside is not expected."""
    wide = make_map([*(LINES + 16 * RIGHT), [1, 1, 20, 90]], 192, 128)
    figures = MEASURE.compare(wide, make_map(LINES), (128, 128))
    assert figures["sap5"] == 1 and figures["lines"] == 3


def test_no_expected_line_has_no_score_and_no_found_one_scores_nothing():
    none = make_map([])
    assert math.isnan(MEASURE.compare(none, make_map(LINES))["sap10"])
    assert MEASURE.compare(make_map(LINES), none)["sap10"] == 0


def test_pixels_alone_are_compared_as_edges():
    drawn = ControlMap(make_map(LINES).pixels, "straight lines")
    assert MEASURE.for_map(drawn).name == "edges"
    assert MEASURE.compare(drawn, make_map(LINES)) == {"f1": 1, "f1_1px": 1}
