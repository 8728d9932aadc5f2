"""OpenPose: networks equal to controlnet_aux's; from image to map with networks that stand in for them."""

import json
import warnings
from copy import deepcopy

import cv2
import numpy as np
import pytest
import torch
from controlnet_ext.annotators import openpose as networks
from controlnet_ext.preprocessors import find, preprocess
from controlnet_ext.preprocessors.backends.torch import Device, Network
from controlnet_ext.preprocessors.library import Library
from controlnet_ext.preprocessors.poses.openpose import (
    OPENPOSE_BODY_WEIGHTS,
    OPENPOSE_FACE_WEIGHTS,
    OPENPOSE_HAND_WEIGHTS,
    find_face_box,
    find_face_points,
    find_hand_boxes,
    find_hand_points,
)
from test_pose_grouping import STANDING, maps

from controlnet_ext.files.image_reader import read_image
from controlnet_ext.files.image_writer import write_image

NOISE = cv2.resize(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8), (256, 256))
ALL = ("openpose", "openpose_hand", "openpose_face", "openpose_faceonly", "openpose_full")


def original(module):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from importlib import import_module

            return import_module(f"controlnet_aux.open_pose{module}")
    except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision built for another torch
        pytest.skip(f"controlnet_aux does not import: {error}")


class Given(torch.nn.Module):
    """A body network that sees the same people in every image."""

    def __init__(self, people):
        super().__init__()
        heat, fields = maps(people, 23, 23)
        self.register_parameter("anchor", torch.nn.Parameter(torch.zeros(1), requires_grad=False))
        self.maps = torch.from_numpy(fields)[None], torch.from_numpy(heat)[None]

    def forward(self, x):
        assert x.shape[1:] == (3, 184, 184) and x.min() >= -0.5 and x.max() <= 0.5
        return tuple(one.expand(len(x), -1, -1, -1) for one in self.maps)


class Small(torch.nn.Module):
    """A part's network: blurred grain at an eighth of the size, that depends on the image. Its last map is empty."""

    def __init__(self, outputs):
        super().__init__()
        torch.manual_seed(outputs)
        self.look = torch.nn.Conv2d(3, outputs, 8, stride=8)
        torch.nn.init.normal_(self.look.weight, std=0.02)
        self.requires_grad_(False)

    def forward(self, x):
        heat = torch.nn.functional.avg_pool2d(self.look(x), 3, stride=1, padding=1)
        return torch.cat([heat[:, :-1], torch.full_like(heat[:, -1:], -1)], dim=1)


class Lists(Small):
    """The same as controlnet_aux's face network answers: a list of which the last counts."""

    def forward(self, x):
        return [super().forward(x)]


class Stands:
    """A library of networks that stand in for the published ones; `asked` are the files that were wanted."""

    def __init__(self, people=(STANDING,)):
        modules = {
            OPENPOSE_BODY_WEIGHTS: Given(people),
            OPENPOSE_HAND_WEIGHTS: Small(22),
            OPENPOSE_FACE_WEIGHTS: Small(71),
        }
        self.networks = {file: Network.from_module(module, Device()) for file, module in modules.items()}
        self.asked = []

    def load_network(self, file, build, device):
        self.asked.append(file)
        return self.networks[file]


def random_weights(module):
    for p in module.parameters():
        torch.nn.init.normal_(p, 0, (2 / p[0].numel()) ** 0.5 if p.ndim > 1 else 0.1)
    return module.eval().requires_grad_(False)


def published(module):
    """The tensors as the published files name them: without the original module's own parts."""
    state = module.state_dict()
    return {key.split(".", 1)[1] if key.startswith("model") else key: tensor for key, tensor in state.items()}


@pytest.mark.parametrize(
    ("load", "module", "name"),
    [
        (networks.load_body, ".model", "bodypose_model"),
        (networks.load_hand, ".model", "handpose_model"),
        (networks.load_face, ".face", "FaceNet"),
    ],
)
def test_networks_equal_controlnet_auxs_on_random_weights(load, module, name):
    torch.manual_seed(0)
    theirs = random_weights(getattr(original(module), name)())
    ours = load(published(theirs))
    x = torch.rand(2, 3, 24, 32) - 0.5
    with torch.inference_mode():
        expected, found = theirs(x), ours(x)
    if isinstance(expected, list):
        expected = expected[-1]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)  # the same layers: 0 where measured
    assert all(one.std() > 0.05 for one in (found if isinstance(found, tuple) else [found]))


def test_weights_are_loaded_strictly(tmp_path):
    with torch.device("meta"):
        tensors = networks.PartPoseNetwork(networks.HAND_HEATMAP_CHANNELS).state_dict()
    tensors = {key: torch.zeros(tensor.shape) for key, tensor in tensors.items()}
    assert networks.load_hand(tensors)(torch.zeros(1, 3, 8, 8)).shape == (1, 22, 1, 1)
    for wrong in (dict(list(tensors.items())[1:]), tensors | {"more": torch.zeros(1)}):
        with pytest.raises(RuntimeError, match=r"conv1_1\.weight|more"):
            networks.load_hand(wrong)
    torch.save(tensors, tmp_path / "body_pose_model.pth")
    with pytest.raises(ValueError, match=r"body_pose_model\.pth' is refused"):
        find("openpose").load(library=Library([tmp_path], download=False))
    with pytest.raises(FileNotFoundError, match=r"hand_pose_model\.pth is not there"):
        Library([tmp_path], download=False).load_network(OPENPOSE_HAND_WEIGHTS, networks.load_hand)


def remembering(kind):
    """An estimator of controlnet_aux that answers what it was asked before from memory: it takes most of the time, and
    the five preprocessors ask the same of the same image."""

    class Remembering(kind):
        def __call__(self, image):
            key, answers = (image.shape, image.tobytes()), self.__dict__.setdefault("answers", {})
            if key not in answers:
                answers[key] = super().__call__(image)
            return deepcopy(answers[key])

    return Remembering.__new__(Remembering)


@pytest.mark.parametrize("size", [(256, 256), (512, 512)])
def test_the_map_is_controlnet_auxs(size):
    open_pose = original("")
    pytest.importorskip("matplotlib", reason="controlnet_aux draws hands with matplotlib")
    image = cv2.resize(NOISE, size[::-1])
    people = [np.add(STANDING, (1.3, 0.4)), np.add(STANDING, (9.2, 0.3))]
    theirs = open_pose.OpenposeDetector(
        *(remembering(kind) for kind in (open_pose.Body, open_pose.Hand, open_pose.Face))
    )
    theirs.body_estimation.model = Given(people)
    theirs.hand_estimation.model, theirs.face_estimation.model = Small(22), Lists(71)
    for name in ALL:
        parts = {"include_hand": name[9:] in ("hand", "full"), "include_face": name[9:] in ("face", "faceonly", "full")}
        resolution = {"detect_resolution": size[0], "image_resolution": size[0]}
        expected = theirs(image, include_body=name != "openpose_faceonly", output_type="np", **parts, **resolution)
        found = preprocess(name, image, library=Stands(people))
        np.testing.assert_array_equal(found.pixels, expected)
        assert found.pixels.any() and found.kind == "pose" and len(found.values.people) == 2


def test_only_the_networks_that_are_needed_are_loaded():
    for name, files in zip(
        ALL,
        (
            [OPENPOSE_BODY_WEIGHTS],
            [OPENPOSE_BODY_WEIGHTS, OPENPOSE_HAND_WEIGHTS],
            [OPENPOSE_BODY_WEIGHTS, OPENPOSE_FACE_WEIGHTS],
            [OPENPOSE_BODY_WEIGHTS, OPENPOSE_FACE_WEIGHTS],
            [OPENPOSE_BODY_WEIGHTS, OPENPOSE_HAND_WEIGHTS, OPENPOSE_FACE_WEIGHTS],
        ),
        strict=True,
    ):
        library = Stands()
        find(name).load(library=library)
        assert library.asked == files
        entry = find(name)
        assert set(files) == set(entry.weights)
        assert all("non-commercial" in file.license for file in files)


def test_the_values_are_the_people_that_the_map_shows():
    made = preprocess("openpose_full", NOISE, library=Stands())
    ((person),) = made.values.people
    assert all(p and 0 < p.confidence <= 1 for p in person.body)
    assert len(person.left_hand) == len(person.right_hand) == 21 and len(person.face) == 70
    assert (made.values.width, made.values.height) == (256, 256)
    x, y = (np.array([(p.x, p.y) for p in person.body]).T * 23 - 0.5).round()
    np.testing.assert_allclose(np.stack([x, y], axis=1), STANDING, atol=1)


@pytest.mark.parametrize("resolution", [None, 128, 150])
def test_a_map_drawn_again_from_its_json_is_the_same(resolution, tmp_path, monkeypatch):
    from controlnet_ext.preprocessors.poses.drawing import render_pose
    from controlnet_ext.preprocessors.poses.json import encode_poses, parse_poses

    image = NOISE[:, :250]
    given = {} if resolution is None else {"resolution": resolution}
    library = Stands()
    library.networks[OPENPOSE_BODY_WEIGHTS].module.forward = lambda x: Given([STANDING]).forward(
        torch.zeros(len(x), 3, 184, 184)
    )
    made = preprocess("openpose", image, library=library, **given)
    (poses,) = parse_poses(json.dumps(encode_poses(made.values)).encode(), "text")
    assert made.pixels.any() and poses == made.values
    np.testing.assert_array_equal(render_pose(poses, *made.pixels.shape[:2]), made.pixels)


def test_images_together_are_as_each_alone():
    ready = find("openpose_full").load(library=Stands())
    images = [NOISE, NOISE[::-1].copy(), NOISE[:, ::-1].copy()]
    together = ready.run_batch(images)
    for one, image in zip(together, images, strict=True):
        alone = ready(image)
        np.testing.assert_array_equal(one.pixels, alone.pixels)
        assert one.values == alone.values
    assert together[0].values != together[1].values


def test_awkward_images_have_nobody_and_need_little_memory():
    library = Stands()
    seen = []

    def blank(x):
        seen.append(tuple(x.shape[2:]))
        return torch.zeros(len(x), 38, x.shape[2] // 8, x.shape[3] // 8), torch.zeros(
            len(x), 19, x.shape[2] // 8, x.shape[3] // 8
        )

    library.networks[OPENPOSE_BODY_WEIGHTS].module.forward = blank
    for height, width in ((1, 1), (3, 4000), (4000, 3)):
        made = preprocess("openpose", np.zeros((height, width, 3), np.uint8), library=library)
        assert made.pixels.shape == (height, width, 3) and not made.pixels.any()
    assert all(rows <= 184 and columns <= 16 * 184 and rows % 8 == columns % 8 == 0 for rows, columns in seen)


def test_boxes_are_controlnet_auxs():
    util, body = original(".util"), original(".body")
    rng = np.random.default_rng(0)
    for _ in range(300):
        points = rng.uniform(-20, 300, (18, 3)).round()
        points[rng.random(18) < 0.2] = np.nan
        theirs = body.BodyResult([None if np.isnan(x) else body.Keypoint(x, y) for x, y, _ in points], 0, 0)
        image = np.zeros((240, 280, 3), np.uint8)
        expected = {"left" if left else "right": (x, y, side) for x, y, side, left in util.handDetect(theirs, image)}
        assert find_hand_boxes(points, 240, 280) == expected
        assert find_face_box(points, 240, 280) == util.faceDetect(theirs, image)


def test_a_part_is_found_where_it_was_planted():
    heat = np.full((22, 46, 46), -0.1, np.float32)
    heat[3, 20:22, 10:12] = 1
    heat[3, 40, 40] = 0.5
    points = find_hand_points([heat], 256)
    assert np.flatnonzero(~np.isnan(points[:, 0])).tolist() == [3]
    np.testing.assert_allclose(points[3, :2], (11 / 46 * 256, 21 / 46 * 256), atol=6)
    faces = find_face_points(
        torch.from_numpy(np.repeat(heat[:1], 71, axis=0)).index_fill(0, torch.tensor(5), 0.04), 100
    )
    assert np.isnan(faces).all()
    dots = torch.zeros(71, 48, 48)
    dots[69, 10, 30] = dots[70, 20, 20] = 1
    faces = find_face_points(dots, 95)
    assert np.flatnonzero(~np.isnan(faces[:, 0])).tolist() == [69]
    assert faces[69].tolist() == [60, 20, 1]


def test_the_command_writes_the_key_points_beside_the_map(tmp_path, monkeypatch):
    from controlnet_ext import cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("controlnet_ext.preprocessors.library.Library", lambda *_, **__: Stands())
    write_image("a.png", NOISE)
    assert cli.main(["preprocess", "openpose", "a.png", "-o", "map.png", "--json"]) == 0
    assert cli.main(["draw", "map.json", "-o", "again.png"]) == 0
    np.testing.assert_array_equal(read_image("again.png"), read_image("map.png"))
    assert cli.main(["preprocess", "canny", "a.png", "-o", "edges.png", "--json"]) == 2
