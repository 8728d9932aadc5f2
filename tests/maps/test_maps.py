"""The maps that need no network: small images with the answer typed out, formulas in float64, the published map."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from controlnet_ext.preprocessors import ControlMap, preprocess

ASSETS = Path(os.environ.get("CONTROLNET_EXT_ASSETS", Path(__file__).parents[3] / "shared" / "assets"))
rng = np.random.default_rng(0)
NOISE = cv2.resize(rng.integers(0, 256, (40, 57, 3), np.uint8), (170, 120), interpolation=cv2.INTER_CUBIC)


def typed_image(rows):
    """A grey image (H, W, 3) from rows of digits, each digit times 28."""
    grey = np.array([[int(digit) * 28 for digit in row] for row in rows.split()], np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def drawn(control_map):
    """A map as rows of # (255) and . (0); anything else fails."""
    assert (control_map.pixels == control_map.pixels[..., :1]).all()
    return " ".join("".join({0: ".", 255: "#"}[int(v)] for v in row) for row in control_map.pixels[..., 0])


def test_canny_marks_the_border_of_a_square():
    # both sides of the step have the same gradient: the first in reading order is kept, the corner is cut
    assert drawn(preprocess("canny", typed_image("00000 00000 00999 00999 00999"))) == "..... ...## ..#.. .#... .#..."


def test_canny_sees_an_edge_that_grey_does_not():
    image = np.zeros((5, 6, 3), np.uint8)
    image[:, :3] = 150, 0, 0
    image[:, 3:] = 0, 76, 0
    assert np.ptp(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)) <= 1
    assert drawn(preprocess("canny", image)) == " ".join(["..#..."] * 5)


def test_canny_keeps_weak_edges_only_where_they_touch_strong_ones():
    weak = typed_image("0000011111 0000011111 0000011111 0000011111")  # a step of 28 has an L1 gradient of 4 * 28 = 112
    assert drawn(preprocess("canny", weak)) == " ".join([".........."] * 4)
    assert drawn(preprocess("canny", weak, low=50, high=111)) == " ".join(["....#....."] * 4)


def test_canny_is_opencvs_on_the_three_channels():
    expected = cv2.Canny(NOISE, 37, 91, apertureSize=3, L2gradient=False)
    assert expected.any()
    for channel in range(3):
        np.testing.assert_array_equal(preprocess("canny", NOISE, low=37, high=91).pixels[..., channel], expected)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (2, 3), (97, 33), (3, 40000), (129, 513)])
def test_canny_is_opencvs_at_every_size_and_with_channels_that_tie(size):
    for levels in (2, 256):
        pixels = rng.integers(0, levels, (*size, 3)).astype(np.uint8) * np.uint8(255 // (levels - 1))
        for low, high in ((0, 0), (100, 200), (10, 255)):
            made = preprocess("canny", pixels, low=low, high=high).pixels[..., 0]
            np.testing.assert_array_equal(made, cv2.Canny(pixels, low, high))


def test_invert_is_the_negative():
    np.testing.assert_array_equal(preprocess("invert", NOISE).pixels, 255 - NOISE)


def test_threshold_asks_that_the_darkest_channel_be_above():
    image = np.array([[(128, 128, 128), (255, 255, 127), (127, 127, 127), (255, 200, 129)]], np.uint8)
    assert drawn(preprocess("threshold", image)) == "#..#"
    assert drawn(preprocess("threshold", image, threshold=127.5)) == "#..#"
    assert drawn(preprocess("threshold", image, threshold=128)) == "...#"
    assert drawn(preprocess("threshold", image, threshold=126.9)) == "####"


def blurred(image, sigma):
    """A Gaussian in float64, as OpenCV's for floats: 8 sigma wide and odd, the border mirrored without its pixel."""
    radius = (round(sigma * 8 + 1) | 1) // 2
    weights = np.exp(-(np.arange(-radius, radius + 1) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    x = image.astype(np.float64)
    for axis in (0, 1):
        padded = np.pad(x, [(radius, radius) if a == axis else (0, 0) for a in range(3)], mode="reflect")
        x = sum(w * np.take(padded, range(i, i + x.shape[axis]), axis) for i, w in enumerate(weights))
    return x


def test_lineart_standard_follows_its_formula():
    for parameters in ({}, {"sigma": 2.5, "intensity_threshold": 20}):
        darker = (blurred(NOISE, parameters.get("sigma", 6.0)) - NOISE).min(axis=2).clip(0, 255)
        lines = darker[darker > parameters.get("intensity_threshold", 8)]
        expected = (darker / max(16, np.median(lines)) * 127).clip(0, 255)
        result = preprocess("lineart_standard", NOISE, **parameters).pixels[..., 0]
        # float32 against float64, then cut to whole numbers: 1 apart where the value is nearly whole
        assert np.abs(result - expected.astype(int)).max() <= 1
        assert np.abs(result - expected.astype(int)).mean() < 0.002
        assert result.max() > 127


def test_lineart_standard_makes_a_dark_line_white_and_a_blank_image_black():
    image = np.full((64, 64, 3), 255, np.uint8)
    assert not preprocess("lineart_standard", image).pixels.any()
    image[:, 32] = 0
    result = preprocess("lineart_standard", image).pixels[..., 0]
    assert (result[:, 32] == 127).all() and not result[:, :16].any()


def test_lineart_standard_keeps_faint_lines_faint():
    image = np.full((64, 64, 3), 200, np.uint8)
    image[:, 32] = 188  # about 11 below its surroundings, more than 8, less than 16: taken as 16
    assert 80 < preprocess("lineart_standard", image).pixels[:, 32].min() < 95


def test_scribble_xdog_follows_its_formula():
    for threshold in (32, 7.5):
        dog = (255 - (blurred(NOISE, 5.0) - blurred(NOISE, 0.5)).min(axis=2)).clip(0, 255)
        expected = 2 * (255 - np.floor(dog)) > threshold
        near = (dog < 255) & (
            np.abs(dog - np.round(dog)) < 1e-3
        )  # where float32 may fall on the other side of a whole number
        result = preprocess("scribble_xdog", NOISE, threshold=threshold).pixels[..., 0]
        assert set(np.unique(result)) == {0, 255}
        np.testing.assert_array_equal((result == 255)[~near], expected[~near])
        assert near.mean() < 0.01 and 0.01 < expected.mean() < 0.5


def test_scribble_xdog_keeps_lines_whose_doubled_strength_leaves_eight_bits():
    image = np.full((64, 512, 3), 255, np.uint8)
    image[:, 4:508:4] = np.arange(0, 252, 2, dtype=np.uint8)[:, None]
    difference = cv2.GaussianBlur(np.float32(image), (0, 0), 5.0) - cv2.GaussianBlur(np.float32(image), (0, 0), 0.5)
    strong = (difference.min(axis=2) > 128) & (difference.min(axis=2) < 143)
    assert strong.any()
    assert (preprocess("scribble_xdog", image).pixels[..., 0][strong] == 255).all()


def test_a_resolution_is_the_short_side_resized_and_padded_as_webui_does():
    for resolution, size, way in ((80, (113, 80), cv2.INTER_AREA), (200, (283, 200), cv2.INTER_CUBIC)):
        resized = cv2.resize(NOISE, size, interpolation=way)
        height, width = resized.shape[:2]
        padded = np.pad(resized, ((0, -height % 64), (0, -width % 64), (0, 0)), mode="edge")
        for name in ("canny", "lineart_standard"):
            expected = preprocess(name, padded).pixels[:height, :width]
            np.testing.assert_array_equal(preprocess(name, NOISE, resolution=resolution).pixels, expected)


def test_nothing_is_changed_in_the_image_that_was_given():
    image = NOISE.copy()
    for name in ("canny", "invert", "threshold", "lineart_standard", "scribble_xdog"):
        result = preprocess(name, image)
        result.pixels[:] = 7
        np.testing.assert_array_equal(image, NOISE)


def test_maps_of_one_pixel_exist():
    for name in ("canny", "invert", "threshold", "lineart_standard", "scribble_xdog"):
        assert preprocess(name, np.zeros((1, 1, 3), np.uint8)).pixels.shape == (1, 1, 3)
        assert preprocess(name, np.zeros((1, 1, 3), np.uint8), resolution=64).pixels.shape == (64, 64, 3)


def test_the_kind_says_what_the_map_shows():
    kinds = {"canny": "edges", "invert": "lines", "lineart_standard": "lines", "scribble_xdog": "scribble"}
    assert {name: preprocess(name, NOISE).kind for name in kinds} == kinds
    assert preprocess("canny", NOISE).values is None


@pytest.mark.parametrize(
    ("pixels", "kind", "reason"),
    [
        (np.zeros((2, 2), np.uint8), "edges", r"\(2, 2\) uint8"),
        (np.zeros((2, 2, 4), np.uint8), "edges", r"\(2, 2, 4\)"),
        (np.zeros((0, 2, 3), np.uint8), "edges", r"\(0, 2, 3\)"),
        (np.zeros((2, 2, 3), np.float32), "edges", "float32"),
        (np.zeros((2, 2, 3), np.uint8), "edge", "'edge'"),
    ],
)
def test_what_is_no_map_is_refused(pixels, kind, reason):
    with pytest.raises(ValueError, match=reason):
        ControlMap(pixels, kind)


def test_fine_pixels_are_grey_of_16_bits():
    pixels = np.zeros((2, 3, 3), np.uint8)
    for fine in (np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint16), pixels):
        with pytest.raises(ValueError, match=r"^fine .*expected \(H, W\) uint16$"):
            ControlMap(pixels, "depth", None, fine)
    assert ControlMap(pixels, "depth", None, np.zeros((2, 3), np.uint16)).pixels16 is not None


def test_controlnet_aux_makes_the_same_maps():
    try:
        import controlnet_aux
    except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision built for another torch
        pytest.skip(f"controlnet_aux does not import: {error}")
    image = cv2.resize(NOISE, (192, 128), interpolation=cv2.INTER_CUBIC)  # multiples of 64: no resize there
    both = {"detect_resolution": 128, "output_type": "np"}
    edges = controlnet_aux.CannyDetector()(image, image_resolution=128, low_threshold=50, high_threshold=90, **both)
    np.testing.assert_array_equal(preprocess("canny", image, low=50, high=90).pixels, edges)
    lines = controlnet_aux.LineartStandardDetector()(image, **both)
    np.testing.assert_array_equal(preprocess("lineart_standard", image).pixels, lines)


@pytest.mark.weights
def test_canny_gives_the_published_map():
    if not ASSETS.is_dir():
        pytest.skip(f"no test assets at {ASSETS}")
    from controlnet_ext.files.image_reader import read_image

    image = read_image(ASSETS / "images" / "boy.png")
    published = read_image(ASSETS / "maps" / "canny_100_200_res512.png")[..., 0]
    # ControlNet's own demo, which made it, takes both sides to multiples of 64: from 409x485 to 512x576
    edges = preprocess("canny", cv2.resize(image, (512, 576), interpolation=cv2.INTER_LANCZOS4)).pixels[..., 0]
    edges = cv2.resize(edges, published.shape[::-1], interpolation=cv2.INTER_AREA)
    assert np.corrcoef(edges.ravel(), published.ravel())[0, 1] > 0.99


def test_the_old_spelling_of_a_kind_is_read() -> None:
    assert ControlMap(np.zeros((1, 1, 3), np.uint8), "colour").kind == "color"
