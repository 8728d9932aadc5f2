"""Depth and normals: typed cases, laws, and what is not counted."""

import math

import numpy as np
import pytest

from controlnet_ext import ControlMap
from controlnet_ext.maps.fidelity import get_measure
from controlnet_ext.maps.fidelity.depth import align_scale_and_shift

DEPTH, METRIC, NORMALS = (get_measure(name) for name in ("depth", "metric depth", "normals"))
SLOPE = np.arange(0, 250, 10).reshape(5, 5)


def make_depth(gray, values=None):
    return ControlMap(np.repeat(np.asarray(gray, np.uint8)[..., None], 3, 2), "depth", values)


def make_normals(n, with_values=False):
    n = np.broadcast_to(np.asarray(n, np.float32), (5, 5, 3))
    pixels = ((n + 1) * 127.5 + 0.5).clip(0, 255).astype(np.uint8)
    return ControlMap(pixels, "normals", np.array(n) if with_values else None)


def test_depth_agrees_with_itself():
    assert DEPTH.compare(make_depth(SLOPE), make_depth(SLOPE)) == pytest.approx(
        {"rmse": 0, "rmse_aligned": 0, "abs_rel": 0, "delta1": 1}, abs=1e-12
    )


def test_another_scale_and_shift_costs_the_plain_error_alone():
    """Half the gray and 20 more: off by 20 - x/2, squared in the mean (400 - 20 x + x²/4)."""
    figures = DEPTH.compare(make_depth(SLOPE), make_depth(SLOPE // 2 + 20))
    x = SLOPE.astype(float)
    assert figures["rmse"] == pytest.approx(np.sqrt((400 - 20 * x + x * x / 4).mean()))
    assert figures["rmse_aligned"] == pytest.approx(0, abs=1e-9) and figures["delta1"] == 1


def test_alignment_is_numpys_least_squares():
    numbers = np.random.default_rng(0)
    found, expected = numbers.random((2, 5, 5))
    found += expected
    scale, shift = np.polyfit(found.ravel(), expected.ravel(), 1)
    assert align_scale_and_shift(found, expected) == pytest.approx(scale * found + shift)


def test_near_and_far_exchanged_is_no_alignment():
    aligned = align_scale_and_shift(240 - SLOPE, SLOPE)
    assert np.array_equal(aligned, np.full((5, 5), SLOPE.mean()))
    assert DEPTH.compare(make_depth(SLOPE), make_depth(240 - SLOPE))["rmse_aligned"] == pytest.approx(SLOPE.std())


def test_relative_errors_are_of_the_gray_that_is_not_black():
    """Gray 0, 100 and 200 found as 0, 120 and 180: fitted by 0.9 x + 10 to 10, 118 and 172; errors of .18 and .14,
    both under 1.25; the black one is not counted."""
    expected, found = make_depth([[0, 100, 200]]), make_depth([[0, 120, 180]])
    fitted = align_scale_and_shift(np.array([[0, 120, 180.0]]), np.array([[0, 100, 200.0]]))[0]
    figures = DEPTH.compare(expected, found)
    assert figures["abs_rel"] == pytest.approx((abs(fitted[1] - 100) / 100 + abs(fitted[2] - 200) / 200) / 2)
    assert figures["delta1"] == 1


def test_meters_are_compared_as_they_are():
    """Twice as far everywhere: an error of 1, nothing within 1.25; in a third 1.2 times."""
    meters = np.linspace(1, 5, 25).reshape(5, 5)
    expected = make_depth(SLOPE, meters)
    twice = METRIC.compare(expected, make_depth(SLOPE, 2 * meters))
    assert (twice["rmse"], twice["abs_rel"], twice["delta1"]) == (0, pytest.approx(1), 0)
    near = METRIC.compare(expected, make_depth(SLOPE, 1.2 * meters))
    assert (near["abs_rel"], near["delta1"]) == (pytest.approx(0.2), 1)
    assert METRIC.compare(expected, expected)["abs_rel"] == 0
    assert METRIC.for_map(make_depth(SLOPE)) is DEPTH
    with pytest.raises(ValueError, match="the found map of depth has no values of its size"):
        METRIC.compare(expected, make_depth(SLOPE))
    with pytest.raises(ValueError, match=r"are \(5, 5\), those of the found one \(5, 4\)"):
        METRIC.compare(expected, make_depth(SLOPE, meters[:, :4]))


def test_meters_of_a_map_of_another_size_are_fitted():
    meters = np.linspace(1, 5, 64).reshape(8, 8)
    wide = np.pad(meters, ((0, 0), (4, 4)), mode="edge")
    gray, wide_gray = meters * 40, wide * 40
    figures = METRIC.compare(make_depth(wide_gray, wide), make_depth(gray, meters), (8, 8))
    assert (figures["rmse"], figures["abs_rel"]) == (0, pytest.approx(0, abs=1e-6))
    inside = METRIC.compare(make_depth(wide_gray, wide), make_depth(gray, meters), (8, 8), "fill")
    assert 0 < inside["abs_rel"] < 0.5  # what the map does not reach is not counted


def test_a_map_without_depth_has_no_score():
    flat = make_depth(np.zeros((5, 5)))
    assert all(math.isnan(figure) for figure in DEPTH.compare(flat, make_depth(SLOPE)).values())
    assert DEPTH.compare(make_depth(SLOPE), flat)["rmse_aligned"] == pytest.approx(SLOPE.std())


@pytest.mark.parametrize("with_values", [False, True])
def test_normals_agree_with_themselves(with_values):
    tilted = make_normals([0.6, 0, 0.8], with_values)
    assert NORMALS.compare(tilted, tilted) == {"mean_angle": 0, "within_11_25": 1}


@pytest.mark.parametrize("degrees", [1, 10, 12, 90, 170])
def test_the_angle_between_two_planes_is_found(degrees):
    radians = math.radians(degrees)
    flat, turned = make_normals([0, 0, 1], True), make_normals([math.sin(radians), 0, math.cos(radians)], True)
    found = NORMALS.compare(flat, turned)
    assert found["mean_angle"] == pytest.approx(degrees, abs=1e-4) and found["within_11_25"] == (degrees < 11.25)
    assert NORMALS.compare(turned, flat) == pytest.approx(found, abs=1e-4)
    pixels = NORMALS.compare(ControlMap(flat.pixels, "normals"), turned)
    assert pixels["mean_angle"] == pytest.approx(degrees, abs=0.7)  # of 256 steps


def test_ground_without_a_direction_is_not_counted_but_must_not_be_found_where_one_is():
    """Half of the expected map is black; of the other half two of ten pixels are gray in the found one: 90 degrees."""
    expected, found = (np.array(make_normals([0, 0, 1]).pixels) for _ in range(2))
    expected[:, 2:] = 0
    found[0, :2] = 127
    figures = NORMALS.compare(ControlMap(expected, "normals"), ControlMap(found, "normals"))
    assert figures == {"mean_angle": pytest.approx(18), "within_11_25": pytest.approx(0.8)}
    black = ControlMap(np.zeros((5, 5, 3), np.uint8), "normals")
    assert math.isnan(NORMALS.compare(black, make_normals([0, 0, 1]))["mean_angle"])
