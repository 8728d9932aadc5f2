"""Crops, flips and buckets: image and map are seen alike."""

import numpy as np
import pytest
from controlnet_ext.preprocessors import list_preprocessors
from controlnet_ext.preprocessors.depth.normals_of_depth import (
    encode_midas_normals,
    encode_normals,
    normals_from_inverse_depth,
)
from controlnet_ext.preprocessors.registry import find
from training_sets import SIDE, encode_png, make_pixels, make_sampling

from controlnet_ext.maps.control_map import MAP_KINDS
from controlnet_ext.maps.mirror import get_mirroring_of_kind, mirror_map
from controlnet_ext.training.data import (
    CENTER,
    Example,
    FolderDataset,
    MapMaker,
    RandomSource,
    Sampling,
    Tolerance,
    View,
)
from controlnet_ext.training.data.buckets import choose_size, group_by_size, list_sizes


def write_example(folder, pixels, control=None, caption="a house"):
    for name, content in (("image.png", pixels), ("map.png", control)):
        if content is not None:
            (folder / name).write_bytes(encode_png(content))
    has_map = control is not None
    return Example(folder / "image.png", caption, folder / "map.png" if has_map else None, "0", pixels.shape[:2])


def places(height, width):
    """An image of which each pixel says where it is."""
    y, x = np.mgrid[:height, :width]
    return np.dstack([x, y, 0 * x]).astype(np.uint8)


@pytest.mark.parametrize(("height", "width"), [(16, 40), (40, 16), (16, 16), (33, 47)])
@pytest.mark.parametrize("place", [0.0, 2 / 7, 0.5, 1.0])
@pytest.mark.parametrize("is_mirrored", [False, True])
def test_image_and_map_are_cropped_and_mirrored_alike(tmp_path, height, width, place, is_mirrored):
    example = write_example(tmp_path, places(height, width), places(height, width))
    found = example.decode(16, 16, View(place, is_mirrored), MapMaker(None))
    np.testing.assert_array_equal(found.pixels, found.map)
    assert found.sizes[:2] == (height, width) and found.sizes[4:] == (16, 16)
    if min(height, width) == 16:  # nothing is resized
        top, left = found.sizes[2:4]
        assert (top, left) == (int((height - 16) * place), int((width - 16) * place))
        expected = places(height, width)[top : top + 16, left : left + 16]
        np.testing.assert_array_equal(found.pixels, expected[:, ::-1] if is_mirrored else expected)


def test_a_map_that_is_made_is_made_of_the_mirrored_image(tmp_path):
    example, seen = write_example(tmp_path, make_pixels(1)), []

    def make(pixels):
        seen.append(pixels)
        return 255 - pixels

    found = example.decode(SIDE, SIDE, View(0.5, True), MapMaker(make, "sided"))
    np.testing.assert_array_equal(seen[0], make_pixels(1)[:, ::-1])
    np.testing.assert_array_equal(found.map, 255 - make_pixels(1)[:, ::-1])


@pytest.mark.parametrize(
    ("caption", "stays"),
    [("a man on the left", True), ("Right of a tree", True), ("bright leftovers", False), ("a house", False)],
)
def test_an_image_whose_caption_says_left_or_right_is_not_mirrored(tmp_path, caption, stays):
    example = write_example(tmp_path, make_pixels(1), make_pixels(2), caption)
    found = example.decode(SIDE, SIDE, View(0.5, True), MapMaker(None))
    np.testing.assert_array_equal(found.pixels, make_pixels(1) if stays else make_pixels(1)[:, ::-1])
    assert example.resolve_view(View(0.5, True)).is_mirrored is not stays


def test_normals_of_a_mirrored_image_point_to_the_other_side():
    normals = np.array([[[200, 100, 180], [0, 0, 0]], [[55, 100, 180], [128, 128, 255]]], np.uint8)
    expected = np.array([[[0, 0, 0], [55, 100, 180]], [[127, 128, 255], [200, 100, 180]]], np.uint8)
    np.testing.assert_array_equal(mirror_map(normals, "red normals"), expected)
    np.testing.assert_array_equal(mirror_map(expected, "red normals"), normals)


def test_normals_of_depth_turn_around_with_the_depth():
    depth = np.random.default_rng(0).random((24, 32)).cumsum(axis=1)
    normals, mirrored = (encode_normals(normals_from_inverse_depth(each, 0.7)) for each in (depth, depth[:, ::-1]))
    inside = np.s_[2:-2, 2:-2]
    difference = np.abs(mirror_map(normals, "red normals")[inside].astype(int) - mirrored[inside])
    assert difference.max() <= 1 and np.abs(normals[:, ::-1][inside].astype(int) - mirrored[inside]).max() > 50


def test_normals_of_controlnet_1_0_turn_around_in_blue():
    depth = np.random.default_rng(0).random((24, 32)).cumsum(axis=1).astype(np.float32)
    normals, mirrored = (encode_midas_normals(np.ascontiguousarray(each), 0.1) for each in (depth, depth[:, ::-1]))
    difference = np.abs(mirror_map(normals, "blue normals").astype(int) - mirrored)
    assert difference.max() <= 1 and np.abs(normals[:, ::-1].astype(int) - mirrored).max() > 50


def test_each_kind_and_preprocessor_says_how_its_maps_are_mirrored():
    assert {kind for kind in MAP_KINDS if get_mirroring_of_kind(kind) == "sided"} == {"pose", "face"}
    assert [kind for kind in MAP_KINDS if get_mirroring_of_kind(kind) == "red normals"] == ["normals"]
    # ControlNet 1.0's normals have the viewer in red and the side in blue
    assert find("normal_map").mirroring == "blue normals"
    own = {entry.name: entry.mirroring for entry in list_preprocessors()}
    assert own["densepose"] == own["densepose_parula"] == own["dw_openpose_full"] == "sided"
    assert own["openpose_faceonly"] == own["canny"] == own["depth_midas"] == "plain"
    with pytest.raises(ValueError, match="tells left from right by its colors"):
        mirror_map(make_pixels(0), "sided")


def test_buckets_have_one_area_and_sides_in_steps():
    sizes = list_sizes((512, 512), 64)
    assert (512, 512) in sizes and len(sizes) > 6
    for height, width in sizes:
        assert height % 64 == width % 64 == 0
        assert 0.7 <= height * width / 512**2 <= 1 and max(height, width) <= 3 * min(height, width)
    assert {(width, height) for height, width in sizes} == set(sizes)
    with pytest.raises(ValueError, match="--buckets: no other size has the area of 64x64 and sides in steps of 64"):
        list_sizes((64, 64), 64)


@pytest.mark.parametrize(
    ("image", "expected"),
    [((600, 600), (512, 512)), ((600, 900), (384, 640)), ((1920, 1080), (640, 384)), ((4000, 100), (768, 320))],
)
def test_an_image_takes_the_bucket_of_the_nearest_shape(image, expected):
    assert choose_size(image, (512, 512), 64) == expected


def test_all_images_of_a_batch_are_of_its_bucket(tmp_path):
    shapes, size = [(64, 64), (64, 160), (160, 64), (72, 69)] * 3, (64, 64)
    examples = tuple(Example(tmp_path / f"{i}.png", "a", tmp_path, str(i), shape) for i, shape in enumerate(shapes))
    groups = group_by_size(shapes, size, 16)
    assert sum(map(len, groups.values())) == len(shapes) and len(groups) == 3
    source, sampling = RandomSource(FolderDataset(examples, None)), make_sampling(size=size, step=16, has_buckets=True)
    plans = source.iter_plans(sampling, 4, 0, 0, 1, Tolerance(0, print))
    seen = set()
    for plan, _ in zip(plans, range(40), strict=False):
        seen.add(plan.size)
        for draw in plan.draws:
            assert all(choose_size(each.size, size, 16) == plan.size for each in (draw.sample, *draw.substitutes))
    assert seen == set(groups)


def test_random_crops_and_flips_and_dropout_have_their_shares(tmp_path):
    examples = tuple(Example(tmp_path / f"{i}.png", "a", tmp_path, str(i), (16, 32)) for i in range(8))
    sampling = make_sampling(is_random_crop=True, flips=True, caption_dropout=0.25, map_dropout=0.1)
    plans = RandomSource(FolderDataset(examples, None)).iter_plans(sampling, 500, 0, 0, 1, Tolerance(0, print))
    draws = [draw for plan, _ in zip(plans, range(4), strict=False) for draw in plan.draws]
    assert {draw.view.place for draw in draws} == {k / 7 for k in range(8)}
    assert abs(np.mean([draw.view.is_mirrored for draw in draws]) - 0.5) < 0.05
    assert abs(np.mean([draw.drops_caption for draw in draws]) - 0.25) < 0.05
    assert abs(np.mean([draw.drops_map for draw in draws]) - 0.1) < 0.03
    plain = RandomSource(FolderDataset(examples, None)).iter_plans(make_sampling(), 500, 0, 0, 1, Tolerance(0, print))
    assert {draw.view for draw in next(plain).draws} == {CENTER}


@pytest.mark.parametrize("wrong", [{"caption_dropout": 1.5}, {"map_dropout": -0.1}, {"map_dropout": float("nan")}])
def test_dropout_outside_of_shares_is_refused(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=rf"--{name.replace('_', '-')} .* is outside 0\.\.1"):
        Sampling((16, 16), **wrong)
