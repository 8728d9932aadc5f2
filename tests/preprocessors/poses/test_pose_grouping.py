"""People out of heat maps and fields: planted ones, controlnet_aux's Body on the same maps, real maps, true poses."""

import json
import os
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
from controlnet_ext.preprocessors.poses.openpose_grouping import group_bodies

ASSETS = Path(os.environ.get("CONTROLNET_EXT_ASSETS", Path(__file__).parents[4] / "shared" / "assets"))
LIMBS = (  # points and fields of OpenPose's COCO model: CMU's poseParameters.cpp
    *((1, 2, 12), (2, 3, 14), (3, 4, 16), (1, 5, 20), (5, 6, 22), (6, 7, 24), (1, 8, 0), (8, 9, 2), (9, 10, 4)),
    *((1, 11, 6), (11, 12, 8), (12, 13, 10), (1, 0, 28), (0, 14, 30), (14, 16, 34), (0, 15, 32), (15, 17, 36)),
)
STANDING = np.array(  # a person in cells, as (x, y)
    [
        *((6, 3), (6, 6), (4, 6), (3, 9), (3, 12), (8, 6), (9, 9), (9, 12), (5, 12)),
        *((5, 16), (5, 20), (7, 12), (7, 16), (7, 20), (5, 2), (7, 2), (4, 3), (8, 3)),
    ],
    np.float32,
)


def maps(people, height, width):
    """What a perfect network would give for people in cells; NaN for points that cannot be seen."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    heat, fields = np.zeros((19, height, width), np.float32), np.zeros((38, height, width), np.float32)
    for person in people:
        for part, (px, py) in enumerate(person):
            if not np.isnan(px):
                heat[part] = np.maximum(heat[part], np.exp(-((x - px) ** 2 + (y - py) ** 2)))
        for a, b, field in LIMBS:
            way = person[b] - person[a]
            length = np.hypot(*way)
            if not np.isnan(length):
                along = ((x - person[a][0]) * way[0] + (y - person[a][1]) * way[1]) / length
                across = ((x - person[a][0]) * way[1] - (y - person[a][1]) * way[0]) / length
                near = (along > -1) & (along < length + 1) & (abs(across) < 1.2)
                fields[field][near], fields[field + 1][near] = way / length
    return heat, fields


def places(people):
    return sorted(tuple(np.nan_to_num(person[:, :2], nan=-1).ravel()) for person in people)


def original():
    """controlnet_aux's Body as a function of (heat, fields, image size) that gives arrays (18, 3)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import torch
            from controlnet_aux.open_pose.body import Body
    except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision built for another torch
        pytest.skip(f"controlnet_aux does not import: {error}")

    class Given(torch.nn.Module):
        def __init__(self, heat, fields):
            super().__init__()
            self.maps = torch.tensor(fields)[None], torch.tensor(heat)[None]
            self.device = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x):
            return self.maps

    def found(heat, fields, size):
        body = Body.__new__(Body)
        body.model = Given(heat, fields)
        candidate, subset = body(np.zeros((*size, 3), np.uint8))
        absent = [np.nan] * 3
        return [np.array([candidate[int(i)][:3] if i >= 0 else absent for i in row[:18]]) for row in subset]

    return found


def input_size(height, width):
    """(rows, columns) of the original's network input that show an image: 184 pixels high."""
    scale = 0.5 * 368 / height
    return int(height * scale), int(width * scale)


def test_planted_people_are_found_whole():
    people = [STANDING, np.add(STANDING, (10, 1)), np.add(STANDING * 0.9, (20, 2))]
    heat, fields = maps(people, 23, 30)
    for size in ((184, 240), (460, 600), (92, 120)):
        scale = np.array(size)[::-1] / (240, 184)
        found = sorted(group_bodies(heat, fields, (184, 240), size), key=lambda person: person[1, 0])
        assert len(found) == 3
        for one, true in zip(found, people, strict=True):
            assert np.abs(one[:, :2] / scale - (true * 8 + 3.5)).max() < 4  # half a cell
            assert (one[:, 2] > 0.5).all() and (one[:, :2] % 1 == 0).all()


def test_points_that_cannot_be_seen_are_absent():
    hidden = STANDING.copy()
    hidden[[3, 4, 10, 16]] = np.nan
    ((person),) = group_bodies(*maps([hidden], 23, 30), (184, 240), (184, 240))
    assert np.flatnonzero(np.isnan(person[:, 0])).tolist() == [3, 4, 10, 16]


def test_padding_is_no_part_of_the_image():
    heat, fields = maps([STANDING, np.add(STANDING, (12, 0))], 23, 30)
    ((person),) = group_bodies(heat, fields, (184, 100), (184, 100))
    assert person[:, 0].max() < 100


def test_three_points_are_nobody():
    few = np.full((18, 2), np.nan, np.float32)
    few[[1, 2, 3]] = STANDING[[1, 2, 3]]
    assert group_bodies(*maps([few], 23, 30), (184, 240), (184, 240)) == []
    few[4] = STANDING[4]
    assert len(group_bodies(*maps([few], 23, 30), (184, 240), (184, 240))) == 1


@pytest.mark.parametrize("value", [0, np.nan])
def test_empty_maps_hold_nobody(value):
    nothing = np.full((38, 5, 9), value, np.float32)
    assert group_bodies(nothing[:19], nothing, (40, 70), (300, 500)) == []


def noise(height, width, seed):
    rng = np.random.default_rng(seed)
    rows, columns = (-(-side // 8) for side in input_size(height, width))

    def smooth(count, sigma, scale):
        grain = rng.normal(size=(count, rows, columns)).astype(np.float32)
        return np.stack([cv2.GaussianBlur(one, (0, 0), sigma) for one in grain]) * np.float32(scale)

    return smooth(19, 1.2, 1.5), smooth(38, 2.5, 3)


@pytest.mark.parametrize("size", [(93, 60), (179, 152), (200, 90)])
def test_controlnet_aux_finds_the_same_people(size):
    theirs = original()
    people = [np.add(STANDING, (0.3, 0.2)), np.add(STANDING, (3.3, 0.4))]  # no maximum exactly between two pixels
    for heat, fields in (noise(*size, seed=1), maps(people, 23, -(-input_size(*size)[1] // 8))):
        expected = theirs(heat, fields, size)
        found = group_bodies(heat, fields, input_size(*size), size)
        assert len(found) == len(expected) > 0
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one[:, :2], other[:, :2])
            np.testing.assert_allclose(one[:, 2], other[:, 2], atol=1e-5)  # theirs are enlarged in float32


def real_maps(path, scale):
    """Heat maps and fields of an image from the MobileNet OpenPose at `scale` of 368 pixels; (inside, size)."""
    net = cv2.dnn.readNetFromONNX(str(ASSETS / "weights" / "openpose_mnv2small.onnx"))
    image = cv2.imread(str(path))
    height, width = image.shape[:2]
    rows, columns = int(scale * 368), int(width * (scale * 368 / height))
    small = cv2.resize(image, (columns, rows), interpolation=cv2.INTER_AREA if rows < height else cv2.INTER_LANCZOS4)
    padded = cv2.copyMakeBorder(small, 0, -rows % 16, 0, -columns % 16, cv2.BORDER_CONSTANT, value=(128,) * 3)
    net.setInput(padded.transpose(2, 0, 1)[None].astype(np.float32))
    heat, fields = net.forward(["heatmap", "paf"])
    return heat[0], fields[0], (rows, columns), (height, width)


@pytest.fixture
def assets():
    if not ASSETS.is_dir():
        pytest.skip(f"no test assets at {ASSETS}")


COCO = (0, None, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)  # COCO's 17 points in OpenPose's order


@pytest.mark.weights
def test_true_people_are_found_in_real_maps(assets):
    truth = json.loads((ASSETS / "truth/pose/coco/test_coco.json").read_text())
    right, of = 0, 0
    for image in truth["images"]:
        found = group_bodies(*real_maps(ASSETS / "truth/pose/coco" / image["file_name"], 1.5))
        for one in truth["annotations"]:
            if one["image_id"] == image["id"] and one["num_keypoints"] >= 5:
                points = np.array(one["keypoints"], float).reshape(17, 3)
                seen = [(part, coco) for part, coco in enumerate(COCO) if coco is not None and points[coco, 2] > 0]
                near = 0.1 * max(one["bbox"][2:])
                hits = [sum(np.hypot(*(p[a, :2] - points[b, :2])) < near for a, b in seen) for p in found]
                right, of = right + max(hits, default=0), of + len(seen)
    assert of == 181 and right / of > 0.65  # 0.663, of twelve people


@pytest.mark.weights
def test_the_golden_maps_hold_the_same_people_as_controlnet_aux_finds(assets):
    golden = np.load(ASSETS / "golden" / "openpose_mnv2__bgr_0_255.npz")
    heat, fields = golden["heatmap"][:, :23, :23], golden["paf"][:, :23, :23]  # 184 pixels of 256
    expected = original()(heat, fields, (200, 200))
    assert places(group_bodies(heat, fields, (184, 184), (200, 200))) == places(expected)
