"""Colors, their distribution, lightness and embeddings."""

import math

import numpy as np
import pytest

from controlnet_ext import ControlMap
from controlnet_ext.maps.fidelity import get_measure
from controlnet_ext.maps.fidelity.colors import compute_color_distance, compute_delta_e, convert_to_lab

COLOR, DISTRIBUTION, LIGHTNESS, EMBEDDING = (
    get_measure(name) for name in ("color", "color distribution", "lightness", "embedding")
)
NOISE = np.random.default_rng(0).integers(0, 256, (2, 40, 40, 3), np.uint8)


def make_even(color, kind="color"):
    return ControlMap(np.full((5, 5, 3), color, np.uint8), kind)


def test_color_differences_are_those_of_scikit_image():
    """The first row of deltaE_cie76 of the two noises, of scikit-image 0.26.0."""
    recorded = [98.2684, 54.4375, 124.8128, 49.4723, 133.1657]
    assert compute_delta_e(*NOISE)[0, :5] == pytest.approx(recorded, abs=1e-3)


@pytest.mark.long  # scikit-image takes a second to import
def test_color_differences_equal_scikit_image():
    skimage = pytest.importorskip("skimage.color", reason="scikit-image is not installed")
    expected = skimage.deltaE_cie76(skimage.rgb2lab(NOISE[0]), skimage.rgb2lab(NOISE[1]))
    assert compute_delta_e(*NOISE) == pytest.approx(expected, abs=1e-3)


def test_black_and_white_are_100_apart():
    figures = COLOR.compare(make_even((0, 0, 0)), make_even((255, 255, 255)))
    assert figures == {"delta_e": pytest.approx(100, abs=0.01), "delta_e_95": pytest.approx(100, abs=0.01)}


def test_colors_agree_with_themselves_and_in_either_order():
    a, b = (ControlMap(x, "color") for x in NOISE)
    assert COLOR.compare(a, a) == {"delta_e": 0, "delta_e_95": 0}
    assert COLOR.compare(a, b) == COLOR.compare(b, a)


def test_a_distribution_knows_no_places():
    a, b = NOISE
    shuffled = np.random.default_rng(1).permutation(a.reshape(-1, 3)).reshape(a.shape)
    assert compute_color_distance(a, shuffled) == 0
    assert compute_color_distance(a, b) == compute_color_distance(b, a)
    darker = a // 2
    assert DISTRIBUTION.compare(ControlMap(a, "shuffle"), ControlMap(darker, "shuffle"))["color_distance"] > 5


def test_the_distance_of_black_and_white_is_that_of_their_lightness():
    assert compute_color_distance(make_even(0).pixels, make_even(255).pixels) == pytest.approx(100 / 3, abs=0.1)


def test_distributions_are_as_far_apart_as_their_sorted_values():
    a, b = (np.sort(convert_to_lab(x).reshape(-1, 3), axis=0) for x in (NOISE[0], NOISE[1] // 2))
    assert compute_color_distance(NOISE[0], NOISE[1] // 2) == pytest.approx(np.abs(a - b).mean(), abs=0.02)


def test_lightness_is_off_by_a_fifth_of_its_range():
    figures = LIGHTNESS.compare(make_even(100, "luminance"), make_even(151, "luminance"))
    assert figures["lightness"] == pytest.approx(20) and figures["psnr"] == pytest.approx(13.979, abs=1e-3)
    assert LIGHTNESS.compare(make_even(7, "luminance"), make_even(7, "luminance"))["lightness"] == 0


def test_embeddings_are_compared_by_their_angle():
    def make(vector):
        return ControlMap(np.zeros((1, 1, 3), np.uint8), "embedding", np.array([vector], np.float32))

    assert EMBEDDING.compare(make([3, 4]), make([6, 8]))["cosine"] == pytest.approx(1)
    assert EMBEDDING.compare(make([1, 0]), make([1, 1]))["cosine"] == pytest.approx(math.sqrt(0.5))
    assert math.isnan(EMBEDDING.compare(make([0, 0]), make([1, 1]))["cosine"])
    with pytest.raises(ValueError, match="2 numbers cannot be compared with one of 3"):
        EMBEDDING.compare(make([1, 0]), make([1, 1, 1]))
