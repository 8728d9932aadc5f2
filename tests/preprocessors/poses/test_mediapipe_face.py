"""MediaPipe's faces without its package: boxes typed out, drawing, and real faces with the real networks."""

import math
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from controlnet_ext.preprocessors import find, preprocess
from controlnet_ext.preprocessors.backends.tflite import TfliteNetwork
from controlnet_ext.preprocessors.library import Library
from controlnet_ext.preprocessors.poses.mediapipe_face import (
    FACE_DETECTOR_WEIGHTS,
    FACE_MESH_WEIGHTS,
    IRIS_WEIGHTS,
    _render_faces,
    detect_face_mesh,
    detect_faces,
    detect_irises,
)

from controlnet_ext.files.image_reader import read_image

ASSETS = Path(os.environ.get("CONTROLNET_EXT_ASSETS", Path(__file__).parents[4] / "shared" / "assets"))


def detector(*faces):
    """A detector that says so: faces as (box's number, score's logit, values (8, 2): centre, size, six points)."""
    boxes, scores = np.zeros((896, 8, 2), np.float32), np.full(896, -200, np.float32)
    for i, logit, values in faces:
        boxes[i], scores[i] = values, logit
    return lambda x: [boxes.ravel(), scores]


def values(dx=0.0, dy=0.0, side=20.0, eyes=((-5, -3), (5, -3))):
    return np.array([(dx, dy), (side, side), *eyes, *[(0, 0)] * 4])


def test_a_box_is_decoded_about_its_cell():
    image = np.zeros((256, 512, 3), np.uint8)  # a quarter of the size, 32 pixels below the detector's upper edge
    i = 2 * (16 * 5 + 3) + 1  # row 5, column 3 of the cells of 8 pixels, the second of two boxes
    (one,) = detect_faces(detector((i, 3.0, values(dx=2, dy=-1, side=20))), image, 0.5)
    assert (one.x, one.y) == ((3.5 * 8 + 2) * 4, (5.5 * 8 - 1 - 32) * 4)
    assert one.side == 20 * 4 * 1.5 and one.angle == 0
    j = 512 + 6 * (8 * 2 + 7)  # row 2, column 7 of the cells of 16
    (one,) = detect_faces(detector((j, 3.0, values(eyes=((-5, -5), (5, 5))))), image, 0.5)
    assert (one.x, one.y) == (7.5 * 16 * 4, (2.5 * 16 - 32) * 4)
    assert math.isclose(one.angle, math.pi / 4)


def test_boxes_of_one_face_are_its_weighted_mean_and_others_stay():
    image = np.zeros((128, 128, 3), np.uint8)
    first, second, other = (0, 2.0, values()), (1, 0.0, values(dx=3)), (300, 1.0, values())
    one, far = detect_faces(detector(first, second, other), image, 0.4)
    a, b = 1 / (1 + math.exp(-2)), 0.5
    assert math.isclose(one.x, 4 + 3 * b / (a + b), rel_tol=1e-6) and far.x == (150 % 16 + 0.5) * 8
    assert len(detect_faces(detector(first, second, other), image, 0.75)) == 1
    assert detect_faces(detector(), image, 0.01) == []


def test_points_come_back_from_a_turned_square():
    from controlnet_ext.preprocessors.poses.mediapipe_face import FaceBox

    points = np.zeros((468, 3), np.float32)
    points[0, :2], points[1, :2] = (96, 96), (192, 96)
    square = FaceBox(50, 40, 96, math.pi / 2)
    found = detect_face_mesh(lambda x: [points.ravel(), np.array([5.0])], np.zeros((80, 90, 3), np.uint8), square)
    np.testing.assert_allclose(found[:2], [(50, 40), (50, 88)], atol=1e-5)
    assert (
        detect_face_mesh(lambda x: [points.ravel(), np.array([-5.0])], np.zeros((80, 90, 3), np.uint8), square) is None
    )


def test_lines_have_the_colours_that_the_model_was_trained_on():
    angle = np.linspace(0, 2 * np.pi, 478, endpoint=False)
    points = np.stack([0.5 + 0.3 * np.cos(angle), 0.5 + 0.3 * np.sin(angle)], axis=1)
    found = {tuple(c) for c in _render_faces((points,), 200, 200).reshape(-1, 3).tolist()}
    colours = [(10, 200, 10), (10, 200, 180), (10, 220, 180), (180, 200, 10), (180, 220, 10), (10, 180, 10)]
    assert found == {(0, 0, 0), *colours, (250, 200, 10), (10, 200, 250)}
    points[:] = 0.5
    assert not _render_faces((points + 0.6,), 50, 50).any()
    canvas = _render_faces((points,), 50, 50)
    assert canvas[25, 25].any() and canvas.any(axis=2).sum() < 30


def test_parameters_are_webuis():
    entry = find("Mediapipe_Face")
    assert [(p.name, p.default, str(p.range)) for p in entry.parameters] == [
        ("max_faces", 1, "1..10"),
        ("min_confidence", 0.5, "0.01..1"),
    ]


@pytest.mark.parametrize("content", [b"", b"no network", b"\0" * 5000])
def test_what_is_no_network_is_refused(content, tmp_path):
    (tmp_path / FACE_DETECTOR_WEIGHTS.name).write_bytes(content)
    with pytest.raises(ValueError, match=r"short_range\.tflite' is refused") as refusal:
        preprocess("mediapipe_face", np.zeros((8, 8, 3), np.uint8), library=Library([tmp_path], download=False))
    assert "\n" not in str(refusal.value)


def test_missing_weights_say_which_file_to_put_where(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"put https://github\.com/google-ai-edge/mediapipe/raw/.* at"):
        Library([tmp_path], download=False).fetch(FACE_MESH_WEIGHTS)


@pytest.fixture(scope="module")
def library():
    if not ASSETS.is_dir():
        pytest.skip(f"no test assets at {ASSETS}")
    return Library([ASSETS / "weights"], download=False, cache_bytes=10**8)


@pytest.mark.weights
@pytest.mark.parametrize("file", [FACE_DETECTOR_WEIGHTS, FACE_MESH_WEIGHTS, IRIS_WEIGHTS])
def test_one_flipped_bit_is_refused_before_opencv_reads_it(file, library, tmp_path, monkeypatch):
    """OpenCV ended the process with SIGSEGV at some of them."""
    for other in (FACE_DETECTOR_WEIGHTS, FACE_MESH_WEIGHTS, IRIS_WEIGHTS):
        content = bytearray(library.fetch(other).read_bytes())
        content[len(content) // 3] ^= 16 * (other is file)
        (tmp_path / other.name).write_bytes(content)
    read = cv2.dnn.readNetFromTFLite
    allowed = []
    monkeypatch.setattr(cv2.dnn, "readNetFromTFLite", lambda content: (allowed.append(len(content)), read(content))[1])
    with pytest.raises(ValueError, match=rf"{file.name}' is refused: its sha256 is \w+, expected {file.sha256}"):
        preprocess("mediapipe_face", np.zeros((8, 8, 3), np.uint8), library=Library([tmp_path], download=False))
    assert file.size not in allowed


@pytest.mark.weights
def test_the_weights_are_the_pinned_ones(library):
    import hashlib

    for file in (FACE_DETECTOR_WEIGHTS, FACE_MESH_WEIGHTS, IRIS_WEIGHTS):
        content = library.fetch(file).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (file.size, file.sha256)
        for cut in (1, 100, len(content) // 2, len(content) - 500):
            with pytest.raises(ValueError, match="no network that OpenCV reads"):
                TfliteNetwork(content[:cut], 128, (1,))


@pytest.mark.weights
def test_a_face_is_found_and_turns_with_the_image(library):
    image = cv2.resize(read_image(ASSETS / "images" / "demo.jpg"), None, fx=2, fy=2)
    height, width = image.shape[:2]
    made = preprocess("mediapipe_face", image, library=library)
    (points,) = made.values
    points = points * (width, height)
    eyes, mouth, chin = points[[33, 263]], points[13], points[152]
    assert eyes[0, 0] < mouth[0] < eyes[1, 0] and eyes[:, 1].max() < mouth[1] < chin[1]
    assert made.kind == "face" and made.pixels.any(axis=2).mean() > 0.003
    turned = cv2.warpAffine(image, matrix := cv2.getRotationMatrix2D((width / 2, height / 2), 15, 1), (width, height))
    (other,) = preprocess("mediapipe_face", turned, library=library).values
    expected = points @ matrix[:, :2].T + matrix[:, 2]
    distance = np.hypot(*(other * (width, height) - expected).T)
    assert distance.mean() < 0.05 * np.hypot(*(eyes[1] - eyes[0]))


# image: mean and largest distance of the 468 points from those of mediapipe 0.10.14's FaceMesh on the same networks,
# in parts of the face; before 0.003 to 0.023 and 0.009 to 0.072. What is left comes from another version of OpenCV.
MEDIAPIPE = {
    "boy.png": (0.001, 0.004),
    "demo.jpg": (0.0006, 0.0015),
    "human.png": (0.0003, 0.0006),
    "person_2.jpeg": (0.0025, 0.007),
    "pose1.png": (0.0013, 0.004),
}


@pytest.mark.weights
@pytest.mark.parametrize("name", MEDIAPIPE)
def test_points_are_those_of_mediapipe_s_own_face_mesh(name, library):
    image = read_image(ASSETS / "images" / name)
    size = image.shape[1::-1]
    (points,) = preprocess("mediapipe_face", image, library=library).values
    expected = np.load(ASSETS / "golden" / "mediapipe" / f"mp_0_{name}.npy")[:, :2]
    face = np.ptp(expected * size, axis=0).max()
    apart = np.hypot(*((points[:468] - expected) * size).T) / face
    mean, largest = MEDIAPIPE[name]
    assert apart.mean() < mean and apart.max() < largest
    # refine_landmarks is another network for mesh and irises, whose meshes differ by as much
    refined = np.load(ASSETS / "golden" / "mediapipe" / f"mp_1_{name}.npy")[:, :2]
    irises = np.hypot(*((points[468:] - refined[468:]) * size).T) / face
    meshes = np.hypot(*((refined[:468] - expected) * size).T) / face
    assert points.shape == refined.shape == (478, 2) and irises.mean() < 1.6 * meshes.mean() and irises.max() < 0.05


def test_irises_come_back_from_turned_and_flipped_squares():
    mesh = np.zeros((468, 2))
    mesh[[33, 133, 362, 263]] = (40, 50), (60, 50), (100, 50), (100, 70)  # one eye level, one turned by 90 degrees
    points = np.full((5, 3), 32.0)
    points[1, :2], points[3, :2] = (48, 32), (16, 32)
    found = detect_irises(lambda x: [points.ravel()], np.zeros((120, 150, 3), np.uint8), mesh)
    side = 2.3 * 20
    np.testing.assert_allclose(found[:5], [(50, 50), (50 + side / 4, 50), (50, 50), (50 - side / 4, 50), (50, 50)])
    expected = [(100, 60), (100, 60 + side / 4), (100, 60), (100, 60 - side / 4), (100, 60)]
    np.testing.assert_allclose(found[5:], expected)


@pytest.mark.weights
def test_a_turtle_has_no_face_and_a_small_face_is_left_out(library):
    assert preprocess("mediapipe_face", read_image(ASSETS / "images" / "user_1.png"), library=library).values == ()
    image = read_image(ASSETS / "images" / "demo.jpg")
    small = cv2.resize(image, None, fx=0.6, fy=0.6, interpolation=cv2.INTER_AREA)
    made = preprocess("mediapipe_face", small, library=library)
    assert made.values == () and not made.pixels.any()


@pytest.mark.weights
def test_as_many_faces_as_asked_for(library):
    face = read_image(ASSETS / "images" / "demo.jpg")[100:300, 140:300]
    two = np.hstack([cv2.resize(face, None, fx=2, fy=2)] * 2)
    assert [len(preprocess("mediapipe_face", two, library=library, max_faces=n).values) for n in (1, 2, 5)] == [1, 2, 2]
