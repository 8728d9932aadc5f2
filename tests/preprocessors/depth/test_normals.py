"""Normals from depth: exact on planes and spheres, degrees on noise-free depth, and ControlNet 1.0's formula."""

import sys
from pathlib import Path

import cv2
import depth_models
import numpy as np
import pytest
from controlnet_ext.preprocessors import preprocess
from controlnet_ext.preprocessors.depth.depth_models import MIDAS_FILES
from controlnet_ext.preprocessors.depth.normals_of_depth import (
    encode_midas_normals,
    encode_normals,
    normals_from_inverse_depth,
)
from controlnet_ext.preprocessors.depth.transformers_depth import TransformersDepth
from controlnet_ext.preprocessors.library import Library
from lines import assets

sys.path.append(str(Path(__file__).parents[3]))  # benchmarks are not installed

from benchmarks.normal_quality import FOV, degrees, figures, rays, true_normals

IMAGE = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8).repeat(10, 0).repeat(10, 1)


@pytest.mark.parametrize("smooth", [0, 0.7, 3])
@pytest.mark.parametrize("n", [(0, 0, 1), (0.6, 0, 0.8), (0, 0.6, 0.8), (-0.48, -0.64, 0.6)])
def test_planes_have_their_normal_everywhere(n, smooth):
    n = np.array(n)  # left, up, to the viewer
    inverse = (rays(40, 60, 50) * n).sum(axis=2) / 2.5  # 2.5 away; left is -x, up -y and to the viewer -z
    assert inverse.min() > 0
    found = normals_from_inverse_depth(inverse, 50, smooth)
    assert found.shape == (40, 60, 3) and found.dtype == np.float32
    assert degrees(found, np.broadcast_to(n, found.shape)).max() < 0.02


def test_a_sphere_has_its_normals():
    towards = rays(300, 300, 60)
    towards /= np.linalg.norm(towards, axis=2, keepdims=True)
    along = towards[..., 2] * 4  # of the sphere of radius 1 around (0, 0, 4)
    inside = 1 - (16 - along**2)
    t = along - np.sqrt(inside.clip(0))
    expected = (towards * t[..., None] - (0, 0, 4)) * (-1, -1, -1)
    found = normals_from_inverse_depth(1 / (t * towards[..., 2]), 60)
    assert degrees(found, expected)[inside > 0.1].max() < 1.5  # differences of neighbours of a curve


def test_red_is_left_green_is_up_and_blue_is_to_the_viewer():
    n = np.array([[(1, 0, 0), (0, 1, 0), (0, 0, 1), (-1, 0, 0)]], np.float32)
    assert encode_normals(n).tolist() == [[[255, 127, 127], [127, 255, 127], [127, 127, 255], [0, 127, 127]]]
    nearer_to_the_right = np.tile(np.linspace(0.5, 1, 9), (7, 1))  # faces left
    nearer_below = np.tile(np.linspace(0.5, 1, 9)[:, None], (1, 7))  # faces up
    assert (normals_from_inverse_depth(nearer_to_the_right, 60)[..., 0] > 0.1).all()
    assert (normals_from_inverse_depth(nearer_below, 60)[..., 1] > 0.1).all()
    assert (encode_midas_normals(nearer_to_the_right.astype(np.float32), 0)[3, 1:-1] > (127, 126, 127)).all()
    assert (encode_midas_normals(nearer_below.astype(np.float32), 0)[1:-1, 3, 1] > 127).all()


def test_controlnet_1_0s_formula_typed_out():
    inverse = np.array([[0, 0, 0, 0], [0, 1, 2, 9], [0, 3, 5, 9]], np.float32)
    x = (2 * (9 - 1) + (9 - 3)) + 0  # Sobel's at row 1, column 2: rows weigh 1, 2, 1
    y = (3 + 2 * 5 + 9) - 0
    n = np.array([2 * np.pi, y, x]) / np.sqrt(4 * np.pi**2 + y**2 + x**2)
    found = encode_midas_normals(inverse, 0.2)
    assert found[1, 2].tolist() == (n * 127.5 + 127.5).astype(int).tolist()
    assert found[0].tolist() == [[255, 127, 127]] * 4 and found[1, 1].tolist() == [255, 127, 127]  # below 1.8


def test_normal_midas_is_the_formula_on_midass_depth(tmp_path):
    depth_models.put(tmp_path, MIDAS_FILES, depth_models.hybrid())
    library = Library([tmp_path], download=False)
    (inverse,) = TransformersDepth("cpu", library, MIDAS_FILES)(IMAGE[None])
    for threshold in (0.4, 0.7):
        made = preprocess("normal_midas", IMAGE, library=library, background_threshold=threshold)
        assert made.kind == "normals"
        np.testing.assert_array_equal(made.pixels, encode_midas_normals(inverse, threshold))


def test_an_image_of_depth_has_normals():
    plane = (rays(120, 160, 60) * (0.6, 0, 0.8)).sum(axis=2)
    far = plane.max() / plane.min()
    image = ((plane - plane.min()) / np.ptp(plane) * 255).astype(np.uint8)
    made = preprocess("normal_depth", image, far=far)
    n = made.values
    assert made.kind == "normals" and n.shape == (120, 160, 3)
    assert degrees(n, np.broadcast_to((0.6, 0, 0.8), n.shape)).mean() < 2
    np.testing.assert_array_equal(made.pixels, encode_normals(n))
    assert preprocess("normal_depth", image, resolution=64).values.shape == (64, 85, 3)
    for height, width in ((1, 1), (1, 9), (9, 1)):
        for smooth in (0, 2):
            flat = preprocess("normal_depth", np.zeros((height, width, 3), np.uint8), smooth=smooth)
            assert (flat.pixels == (127, 127, 255)).all()


def test_depth_that_is_none_is_refused():
    for inverse in (np.array([[1.0, -1]]), np.array([[1.0, np.nan]]), np.array([[1.0, np.inf]])):
        with pytest.raises(ValueError, match="is not 0 or more, and finite"):
            normals_from_inverse_depth(inverse, 60)


@pytest.mark.weights
@pytest.mark.parametrize("frame", ["00030", "00090"])
def test_normals_from_true_depth_in_degrees(frame):
    metres = cv2.imread(str(assets() / "truth" / "depth" / f"{frame}_depth.png"), cv2.IMREAD_UNCHANGED) / 1000
    expected, sure = true_normals(metres, FOV)
    assert sure.mean() > 0.7

    inverse = 1 / metres
    mean, median, right = figures(normals_from_inverse_depth(inverse, FOV, 2), expected, sure)
    assert mean < 1.2 and median < 0.25 and right > 0.97  # measured 1.07, 0.18, .976 and 0.74, 0.17, .986
    image = ((inverse - inverse.min()) / np.ptp(inverse) * 255).astype(np.uint8)
    made = preprocess("normal_depth", image, fov=FOV, far=inverse.max() / inverse.min())
    mean, median, right = figures(made.values, expected, sure)
    assert mean < 3 and median < 2 and right > 0.97  # from 256 steps: 2.62, 1.68, .976 and 1.91, 1.29, .986
