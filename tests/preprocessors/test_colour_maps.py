"""Maps of colours and places that need no network: small images with the answer typed out, formulas."""

import cv2
import numpy as np
import pytest
from controlnet_ext.preprocessors import preprocess
from lines import aux

rng = np.random.default_rng(0)
NOISE = cv2.resize(rng.integers(0, 256, (9, 14, 3), np.uint8), (140, 90), interpolation=cv2.INTER_CUBIC)
RECOLOURS = ("recolor_luminance", "recolor_intensity")
NAMES = ("shuffle", "color", "tile_resample", "blur_gaussian", "inpaint", "inpaint_only", "tile_colorfix", *RECOLOURS)


def test_shuffle_takes_each_pixel_from_where_two_noises_point():
    result = preprocess("shuffle", NOISE, seed=3).pixels
    numbers = np.random.RandomState(3)
    flow = []
    for side in (139, 89):
        points = numbers.uniform(size=(2, 2))
        noise = cv2.resize(points, (140 + 512, 90 + 512), interpolation=cv2.INTER_CUBIC)[256:346, 256:396]
        flow.append(((noise - noise.min()) / (noise.max() - noise.min()) * side).astype(np.float32))
    assert [(x.min(), x.max()) for x in flow] == [(0, 139), (0, 89)]
    for y, x in ((0, 0), (17, 120), (89, 139), (50, 3)):
        column, row = flow[0][y, x], flow[1][y, x]
        near = NOISE[int(row) : int(row) + 2, int(column) : int(column) + 2].astype(float)
        assert (result[y, x] >= near.min(axis=(0, 1)) - 1).all() and (result[y, x] <= near.max(axis=(0, 1)) + 1).all()


def test_shuffle_is_the_same_for_a_seed_and_another_for_another():
    once, again = (preprocess("shuffle", NOISE, seed=2**32 - 1).pixels for _ in range(2))
    np.testing.assert_array_equal(once, again)
    assert (once != preprocess("shuffle", NOISE).pixels).mean() > 0.5


def test_shuffle_is_controlnet_auxs():
    detector = aux().ContentShuffleDetector()
    image = cv2.resize(NOISE, (320, 192), interpolation=cv2.INTER_CUBIC)  # multiples of 64: no resize there
    for seed in (0, 12345):
        np.random.seed(seed)  # noqa: NPY002
        expected = detector(image, detect_resolution=192, image_resolution=192, output_type="np")
        np.testing.assert_array_equal(preprocess("shuffle", image, seed=seed).pixels, expected)


def test_a_colour_grid_has_one_colour_in_64_pixels():
    image = np.zeros((100, 130, 3), np.uint8)
    image[:64, :64] = 10, 20, 30
    image[:64, 64:128] = 200, 0, 0
    image[:64, 128:] = 0, 0, 255
    image[64:] = 7
    result = preprocess("color", image)
    assert result.kind == "color" and result.pixels.shape == (100, 130, 3)
    assert np.unique(result.pixels[:64, :64].reshape(-1, 3), axis=0).tolist() == [[10, 20, 30]]
    assert np.unique(result.pixels[:64, 64:128].reshape(-1, 3), axis=0).tolist() == [[200, 0, 0]]
    assert np.unique(result.pixels[:64, 128:].reshape(-1, 3), axis=0).tolist() == [[0, 0, 255]]
    assert (result.pixels[64:] == 7).all()


def test_a_colour_grid_is_t2i_adapters():
    image = cv2.resize(NOISE, (256, 192), interpolation=cv2.INTER_CUBIC)
    cells = cv2.resize(image, (4, 3), interpolation=cv2.INTER_CUBIC)
    expected = cv2.resize(cells, (256, 192), interpolation=cv2.INTER_NEAREST)
    np.testing.assert_array_equal(preprocess("color", image).pixels, expected)


def test_a_tile_is_the_image_or_a_smaller_one():
    for rate in (1, 1.09):
        np.testing.assert_array_equal(preprocess("tile_resample", NOISE, down_sampling_rate=rate).pixels, NOISE)
    smaller = preprocess("tile_resample", NOISE, down_sampling_rate=2.0).pixels
    means = NOISE.reshape(45, 2, 70, 2, 3).mean(axis=(1, 3))
    assert smaller.shape == (45, 70, 3) and np.abs(smaller - means).max() <= 0.5
    assert preprocess("tile_resample", NOISE, down_sampling_rate=1.1).pixels.shape == (81, 127, 3)
    assert preprocess("tile_resample", NOISE[:1, :3], down_sampling_rate=8.0).pixels.shape == (1, 1, 3)


def test_at_a_resolution_nothing_but_the_image_is_blurred_or_made_smaller():
    resized = cv2.resize(NOISE, (156, 100), interpolation=cv2.INTER_CUBIC)
    blurred = preprocess("blur_gaussian", NOISE, sigma=4.0, resolution=100).pixels
    np.testing.assert_array_equal(blurred, cv2.GaussianBlur(resized, (0, 0), 4.0))
    smaller = preprocess("tile_resample", NOISE, down_sampling_rate=2.0, resolution=100).pixels
    np.testing.assert_array_equal(smaller, cv2.resize(resized, (78, 50), interpolation=cv2.INTER_AREA))


def test_a_blur_spreads_a_dot_as_a_gaussian():
    image = np.zeros((41, 41, 3), np.uint8)
    image[20, 20] = 0, 255, 0
    result = preprocess("blur_gaussian", image, sigma=1.0).pixels.astype(int)
    weights = np.exp(-(np.arange(-3, 4) ** 2) / 2)
    weights /= weights.sum()
    assert np.abs(result[17:24, 17:24, 1] - 255 * np.outer(weights, weights)).max() <= 1
    assert not result[..., [0, 2]].any()
    np.testing.assert_array_equal(preprocess("blur_gaussian", NOISE, sigma=0.01).pixels, NOISE)


def test_luminance_is_labs_with_red_and_blue_the_right_way_round():
    image = np.array([[(255, 0, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (119, 119, 119)]], np.uint8)
    # L of sRGB's red is 53.24, of blue 32.30, of this grey 50.03; times 2.55
    assert preprocess("recolor_luminance", image).pixels[0, :, 0].tolist() == [136, 82, 255, 0, 128]


def test_intensity_is_the_strongest_channel():
    image = np.array([[(255, 0, 0), (10, 20, 30), (0, 200, 0)]], np.uint8)
    assert preprocess("recolor_intensity", image).pixels[0, :, 0].tolist() == [255, 30, 200]


def test_gamma_is_a_power_of_what_lies_between_black_and_white():
    image = np.repeat(np.array([[0, 51, 128, 255]], np.uint8)[..., None], 3, axis=2)
    # (51 / 255) ** 2 = 0.04, (128 / 255) ** 2 = 0.252; roots 0.447 and 0.7085
    assert preprocess("recolor_intensity", image, gamma_correction=2).pixels[0, :, 0].tolist() == [0, 10, 64, 255]
    assert preprocess("recolor_intensity", image, gamma_correction=0.5).pixels[0, :, 0].tolist() == [0, 114, 181, 255]


def test_an_inpainting_map_is_the_image():
    for name in ("inpaint", "inpaint_global_harmonious", "Inpaint_Only"):
        result = preprocess(name, NOISE)
        assert result.kind == "inpaint"
        np.testing.assert_array_equal(result.pixels, NOISE)


@pytest.mark.parametrize("name", NAMES)
def test_the_smallest_images_have_maps_and_nothing_given_is_changed(name):
    assert preprocess(name, np.zeros((1, 1, 3), np.uint8)).pixels.shape == (1, 1, 3)
    assert preprocess(name, np.zeros((1, 5, 3), np.uint8), resolution=64).pixels.shape == (64, 320, 3)
    image = NOISE.copy()
    result = preprocess(name, image).pixels
    result[:] = 9
    np.testing.assert_array_equal(image, NOISE)
