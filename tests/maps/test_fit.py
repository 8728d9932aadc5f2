"""A map brought to another size is still a map: marks stay marks, classes stay classes, nothing is asked of memory."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlnet_ext.maps.resize import _suppress_non_maxima, compute_fit_resolution, fit

rng = np.random.default_rng(0)
PHOTO = cv2.resize(rng.integers(0, 256, (12, 17, 3), np.uint8), (170, 120), interpolation=cv2.INTER_CUBIC)
SIZES = st.integers(1, 90)


def grey(rows):
    return np.repeat(np.asarray(rows, np.uint8)[..., None], 3, axis=2)


def edges(height=120, width=160):
    """One-pixel lines of every direction, white on black, some along the border."""
    marks = np.zeros((height, width), np.uint8)
    cv2.circle(marks, (80, 60), 40, 255)
    cv2.line(marks, (5, 110), (150, 100), 255)
    cv2.line(marks, (10, 5), (10, 100), 255)
    cv2.line(marks, (130, 5), (155, 60), 255)
    return grey(marks)


@pytest.mark.parametrize("how", ["crop", "stretch", "fill"])
def test_a_map_of_the_right_size_is_untouched(how):
    for pixels in (PHOTO, edges(), np.dstack([PHOTO, PHOTO[..., 0]])):
        np.testing.assert_array_equal(fit(pixels, *pixels.shape[:2], how), pixels)


def test_crop_covers_and_keeps_the_middle():
    stripes = grey([[10, 50, 90, 130, 170, 210]] * 2)
    np.testing.assert_array_equal(fit(stripes, 2, 2, "crop"), grey([[90, 130]] * 2))
    np.testing.assert_array_equal(fit(stripes, 4, 4, "crop"), grey([[90, 90, 130, 130]] * 4))
    np.testing.assert_array_equal(fit(stripes, 2, 3, "crop"), grey([[50, 90, 130]] * 2))  # one over: cut at the right


def test_stretch_distorts():
    np.testing.assert_array_equal(fit(grey([[10, 50, 90]]), 2, 6, "stretch"), grey([[10, 10, 50, 50, 90, 90]] * 2))


def test_fill_stays_inside_and_adds_the_borders_median_colour():
    image = np.zeros((2, 4, 3), np.uint8)
    image[:] = 10, 20, 30
    image[0, 0] = 200, 100, 0
    filled = fit(image, 4, 4, "fill")
    np.testing.assert_array_equal(filled[1:3], image)
    assert (filled[[0, 3]] == (10, 20, 30)).all()


def test_fill_masks_what_it_adds():
    rgba = np.dstack([PHOTO, np.zeros(PHOTO.shape[:2], np.uint8)])
    mask = fit(rgba, 120, 200, "fill")[..., 3]
    assert not mask[:, 15:185].any() and (mask[:, :15] == 255).all() and (mask[:, 185:] == 255).all()


def test_fill_of_a_black_and_white_map_adds_no_grey():
    half = grey([[0, 0, 255, 255]] * 4)
    assert set(np.unique(fit(half, 4, 8, "fill"))) == {0, 255}


def test_a_photo_is_averaged_when_it_shrinks_and_cubic_when_it_grows():
    small = fit(PHOTO, 60, 85, "stretch")
    np.testing.assert_array_equal(small, cv2.resize(PHOTO, (85, 60), interpolation=cv2.INTER_AREA))
    large = fit(PHOTO, 200, 300, "stretch")
    np.testing.assert_array_equal(large, cv2.resize(PHOTO, (300, 200), interpolation=cv2.INTER_CUBIC))


@pytest.mark.parametrize("colours", [2, 3, 60, 199])
def test_few_colours_stay_those_colours(colours):
    palette = rng.permutation(256 * 256)[:colours]
    classes = cv2.resize(
        rng.integers(0, colours, (20, 30)).astype(np.float32), (60, 40), interpolation=cv2.INTER_NEAREST
    )
    pixels = np.dstack([palette // 256, palette % 256, np.full(colours, 9)]).astype(np.uint8)[0][classes.astype(int)]
    for size in ((57, 91), (13, 22)):
        for how in ("crop", "stretch", "fill"):
            result = fit(pixels, *size, how)
            inside = result if how != "fill" else result[6:-6, 6:-6]
            assert {tuple(p) for p in inside.reshape(-1, 3)} <= {tuple(p) for p in pixels.reshape(-1, 3)}


def test_two_hundred_colours_are_a_photo():
    pixels = np.zeros((20, 20, 3), np.uint8)
    pixels.reshape(-1, 3)[:200, 0] = np.arange(200)
    np.testing.assert_array_equal(
        fit(pixels, 40, 40, "stretch"), cv2.resize(pixels, (40, 40), interpolation=cv2.INTER_CUBIC)
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), SIZES, SIZES, SIZES, SIZES, st.sampled_from(["crop", "stretch", "fill"]))
def test_black_and_white_stays_black_and_white(seed, height, width, target_height, target_width, how):
    marks = grey((np.random.default_rng(seed).random((height, width)) < 0.3) * 255)
    result = fit(marks, target_height, target_width, how)
    assert result.shape == (target_height, target_width, 3) and result.dtype == np.uint8
    assert np.isin(result, (0, 255)).all() and (result == result[..., :1]).all()


def widest(marks):
    """The side of the largest square inside the marks (H, W)."""
    side = 1
    while cv2.erode(marks, np.ones((side + 1, side + 1)), borderType=cv2.BORDER_CONSTANT, borderValue=0).any():
        side += 1
    return side


@pytest.mark.parametrize("scale", [0.5, 0.8, 1.3, 2, 3])
def test_one_pixel_edges_stay_one_pixel_wide_and_where_they_were(scale):
    before = edges()
    height, width = round(120 * scale), round(160 * scale)
    after = fit(before, height, width, "stretch")[..., 0]
    assert widest(after) == 1
    # each mark has a scaled mark near it, and the other way round: lines neither vanish nor appear
    there = (
        cv2.resize(before[..., 0], (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC) > 30
    )
    reach = np.ones((2 * round(max(scale, 1)) + 3,) * 2, np.uint8)
    assert not (after.astype(bool) & ~cv2.dilate(there.astype(np.uint8), reach).astype(bool)).any()
    assert (there & ~cv2.dilate(after, reach).astype(bool)).mean() < 0.001


def test_lines_side_by_side_do_not_melt_together():
    hatching = np.zeros((60, 60), np.uint8)
    for x in range(-40, 60, 2):
        cv2.line(hatching, (x, 0), (x + 40, 59), 255)
    shrunk = fit(grey(hatching), 45, 45, "stretch")[..., 0]
    assert (shrunk > 0).mean() > 0.9 * (hatching > 0).mean()  # without ridges 0.55


def test_a_ridge_is_no_lower_than_both_neighbours_in_one_direction_of_four():
    x = rng.integers(0, 256, (30, 40), np.uint8)
    middle, kept = x[1:-1, 1:-1], np.zeros((28, 38), bool)
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        before, after = (np.roll(x, (i * down, i * right), (0, 1))[1:-1, 1:-1] for i in (1, -1))
        kept |= (middle >= before) & (middle >= after)
    assert 0.1 < (~kept).mean() < 0.9
    np.testing.assert_array_equal(_suppress_non_maxima(x)[1:-1, 1:-1], np.where(kept, middle, 0))


def test_a_line_along_the_border_stays():
    for turn in range(4):
        marks = np.zeros((40, 40), np.uint8)
        marks[0] = 255
        marks = np.rot90(marks, turn)
        for size in (30, 90):
            result = np.rot90(fit(grey(marks), size, size, "stretch")[..., 0], -turn)
            assert (result[:3].max(axis=0) == 255).mean() > 0.9
            assert not result[3:].any()


def test_blobs_stay_blobs():
    marks = np.zeros((60, 60), np.uint8)
    cv2.circle(marks, (30, 30), 20, 255, -1)
    for size in (30, 150):
        area = (fit(grey(marks), size, size, "stretch")[..., 0] > 0).mean()
        assert area == pytest.approx((marks > 0).mean(), rel=0.05)


def test_a_mask_follows_the_image_and_stays_binary():
    mask = np.zeros((120, 170), np.uint8)
    mask[30:90, 40:130] = 255
    for size in ((240, 340), (60, 85)):
        result = fit(np.dstack([PHOTO, mask]), *size, "crop")
        assert result.shape == (*size, 4) and set(np.unique(result[..., 3])) == {0, 255}
        assert (result[..., 3] > 0).mean() == pytest.approx((mask > 0).mean(), rel=0.05)


def test_a_mask_that_covers_half_of_a_pixel_covers_it():
    mask = np.zeros((120, 170), np.uint8)
    mask[0:2, 0], mask[10, 10] = 255, 255
    small = fit(np.dstack([PHOTO, mask]), 60, 85, "stretch")[..., 3]
    assert small[0, 0] == 255 and np.count_nonzero(small) == 1


@pytest.mark.parametrize(
    ("size", "target", "how", "resolution"),
    [
        ((512, 768), (1024, 1024), "fill", 683),
        ((512, 768), (1024, 1024), "crop", 1024),
        ((512, 768), (1024, 1024), "stretch", 1024),
        ((100, 50), (200, 100), "fill", 100),
        ((5000, 3), (64, 64), "fill", 1),
    ],
)
def test_pixel_perfect_is_the_short_side_that_needs_no_resize(size, target, how, resolution):
    assert compute_fit_resolution(*size, *target, how) == resolution


def test_nonsense_is_refused_in_one_line():
    for wrong in (PHOTO[..., 0], PHOTO[..., :2], PHOTO.astype(np.float32), PHOTO[:0]):
        with pytest.raises(ValueError, match="a map to fit is"):
            fit(wrong, 8, 8, "crop")
    with pytest.raises(ValueError, match="'Crop' is none of: crop, stretch, fill"):
        fit(PHOTO, 8, 8, "Crop")
    for size in ((0, 8), (8, -1)):
        with pytest.raises(ValueError, match="sizes begin at 1"):
            fit(PHOTO, *size, "stretch")
    with pytest.raises(ValueError, match="limit of 64"):
        fit(PHOTO, 2**20, 2**20, "stretch")


def test_a_strip_asks_for_no_gigabytes(monkeypatch):
    strip = np.zeros((3, 10000, 3), np.uint8)
    with monkeypatch.context() as patch:
        patch.setattr(cv2, "resize", None)  # refused before anything is enlarged
        with pytest.raises(ValueError, match=r"10000x3 scaled to crop 512x512 is 1706667x512.* over the limit"):
            fit(strip, 512, 512, "crop")
    assert fit(strip, 512, 512, "fill").shape == fit(strip, 512, 512, "stretch").shape == (512, 512, 3)
