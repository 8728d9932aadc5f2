"""Faces by MediaPipe's networks: BlazeFace (Bazarevsky et al., arXiv 1907.05047) says where, the face mesh (Kartynnik
et al., arXiv 1907.06724) gives 468 points of each, a third one (Ablavatski et al., arXiv 2006.11341) the irises.

The numbers are those of google-ai-edge/mediapipe @ 63e679d99ca4: modules/face_detection, face_landmark, iris_landmark.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, NamedTuple

import cv2
import numpy as np

from ...files.hub import WeightsFile
from ..backends.tflite import TfliteNetwork, load_tflite_network
from ..parameters import Range
from ..registry import preprocessor

if TYPE_CHECKING:
    from ..backends.torch import Device
    from ..library import Library


DETECTOR_INPUT_SIZE, MESH_INPUT_SIZE, IRIS_INPUT_SIZE = 128, 192, 64  # pixels of the inputs
DETECTOR_OUTPUT_SIZES, MESH_OUTPUT_SIZES, IRIS_OUTPUT_SIZES = (896 * 16, 896), (468 * 3, 1), (5 * 3,)
ZEROS = cv2.BORDER_CONSTANT  # beyond the image
_EYE_CORNERS = ((33, 133, False), (362, 263, True))  # points of the mesh, and whether the network sees it flipped
_EYE_SCALE = 2.3  # of the square around an eye that the iris is looked for in
_ANCHOR_GRIDS = ((16, 2), (8, 6))  # a side of a grid of cells, boxes in each
_MAX_IOU = 0.3  # over which two boxes are of one face
_BOX_SCALE = 1.5  # of the square that the mesh looks at
_MIN_PRESENCE = 0.5  # how surely a face is in it


class FaceBox(NamedTuple):
    """The square around a face, in pixels; `angle` in radians is that of the line from its right eye to its left."""

    x: float
    y: float
    side: float
    angle: float


def detect_faces(detector: TfliteNetwork, image: np.ndarray, min_confidence: float) -> list[FaceBox]:
    """The faces of an RGB image (H, W, 3) uint8 that are as sure as `confidence`, the surest first."""
    height, width = image.shape[:2]
    side = max(height, width)
    crop, turn, corner = _warp_square(image, FaceBox(width / 2, height / 2, side, 0), DETECTOR_INPUT_SIZE, ZEROS)
    boxes, scores = detector(crop.astype(np.float32) / 127.5 - 1)
    faces = _merge_face_boxes(boxes.reshape(896, 8, 2), _sigmoid(scores), min_confidence)
    return [_make_face_box(*(one @ turn.T + corner)) for one in faces]


def detect_face_mesh(network: TfliteNetwork, image: np.ndarray, box: FaceBox) -> np.ndarray | None:
    """The points (468, 2) of a face in pixels of an RGB image, None if there is none in the square."""
    crop, turn, corner = _warp_square(image, box, MESH_INPUT_SIZE, cv2.BORDER_REPLICATE)
    points, present = network(crop.astype(np.float32) / 255)
    if _sigmoid(present)[0] < _MIN_PRESENCE:
        return None
    return points.reshape(-1, 3)[:, :2] @ turn.T + corner


def detect_irises(network: TfliteNetwork, image: np.ndarray, mesh: np.ndarray) -> np.ndarray:
    """The points (10, 2) of both irises, in pixels of an RGB image: the middle and four on the border of the right
    eye's, then of the left. `mesh` (468, 2) are the points of the face."""
    faces = []
    for first, last, is_flipped in _EYE_CORNERS:
        corners = mesh[[first, last]]
        (x, y), (dx, dy) = corners.mean(axis=0), corners[1] - corners[0]
        box = FaceBox(x, y, _EYE_SCALE * max(np.ptp(corners, axis=0)), math.atan2(dy, dx))
        pixels = max(round(box.side), 1)
        crop, turn, corner = _warp_square(image, box, pixels, cv2.BORDER_REPLICATE)
        shrink = cv2.INTER_AREA if pixels > IRIS_INPUT_SIZE else cv2.INTER_LINEAR
        crop = cv2.resize(crop, (IRIS_INPUT_SIZE,) * 2, interpolation=shrink)
        (points,) = network((crop[:, ::-1] if is_flipped else crop).astype(np.float32) / 255)
        points = points.reshape(-1, 3)[:, :2]
        if is_flipped:  # the network knows one side only
            points = ([IRIS_INPUT_SIZE, 0] + points * [-1, 1])[[0, 3, 2, 1, 4]]  # right and left change places
        faces.append(points * (pixels / IRIS_INPUT_SIZE) @ turn.T + corner)
    return np.concatenate(faces)


def _warp_square(image: np.ndarray, box: FaceBox, size: int, border: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the square as an image (size, size, 3), and the matrix (2, 2) and offset (2,) from its pixels to `image`.

    MediaPipe lays corner on corner, without the shift by half a pixel, and interpolates linearly at any scale.
    """
    turn = np.array([[math.cos(box.angle), -math.sin(box.angle)], [math.sin(box.angle), math.cos(box.angle)]])
    turn *= box.side / size
    corner = np.array([box.x, box.y]) - turn.sum(axis=1) * size / 2
    corners = np.array([(0, size), (0, 0), (size, 0), (size, size)], np.float32)
    matrix = cv2.getPerspectiveTransform((corners @ turn.T + corner).astype(np.float32), corners)
    return cv2.warpPerspective(image, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=border), turn, corner


def _merge_face_boxes(boxes: np.ndarray, scores: np.ndarray, min_confidence: float) -> list[np.ndarray]:
    """Boxes (8, 2) in pixels of the detector's input: two corners, then the right eye, the left and four more points;
    of boxes of one face the mean, weighted by their scores."""
    grids = [
        (np.indices((side, side)).reshape(2, -1).T[:, ::-1] + 0.5) * DETECTOR_INPUT_SIZE / side
        for side, _ in _ANCHOR_GRIDS
    ]
    anchors = np.concatenate(
        [np.repeat(grid, count, axis=0) for grid, (_, count) in zip(grids, _ANCHOR_GRIDS, strict=True)]
    )
    centre, half, points = boxes[:, :1] + anchors[:, None], boxes[:, 1:2] / 2, boxes[:, 2:] + anchors[:, None]
    boxes = np.concatenate([centre - half, centre + half, points], axis=1)
    remaining = np.argsort(-scores, kind="stable")[: (scores >= min_confidence).sum()]
    means = []
    while remaining.size:
        same = _compute_iou(boxes[remaining[0]], boxes[remaining]) > _MAX_IOU
        same[0] = True
        means.append(np.average(boxes[remaining[same]], axis=0, weights=scores[remaining[same]]))
        remaining = remaining[~same]
    return means


def _compute_iou(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Intersection over union."""
    common = (np.minimum(box[1], boxes[:, 1]) - np.maximum(box[0], boxes[:, 0])).clip(0).prod(axis=1)
    areas = (boxes[:, 1] - boxes[:, 0]).clip(0).prod(axis=1)
    return common / np.maximum((box[1] - box[0]).clip(0).prod() + areas - common, 1e-9)


def _make_face_box(
    first: np.ndarray, last: np.ndarray, right_eye: np.ndarray, left_eye: np.ndarray, *_: np.ndarray
) -> FaceBox:
    (x, y), (dx, dy) = (first + last) / 2, left_eye - right_eye
    return FaceBox(x, y, _BOX_SCALE * max(last - first), math.atan2(dy, dx))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x.clip(-80, 80)))  # float32's exp ends at 88


_MEDIAPIPE_URL = "https://github.com/google-ai-edge/mediapipe/raw/63e679d99ca4/mediapipe/modules"
FACE_DETECTOR_WEIGHTS = WeightsFile(
    "google-ai-edge/mediapipe",
    "face_detection_short_range.tflite",
    webui_folder="mediapipe",
    license="Apache-2.0",
    size=229032,
    sha256="3bc182eb9f33925d9e58b5c8d59308a760f4adea8f282370e428c51212c26633",
    source="google-ai-edge/mediapipe @ 63e679d99ca4, modules/face_detection",
    url=f"{_MEDIAPIPE_URL}/face_detection/face_detection_short_range.tflite",
)
FACE_MESH_WEIGHTS = WeightsFile(
    "google-ai-edge/mediapipe",
    "face_landmark.tflite",
    webui_folder="mediapipe",
    license="Apache-2.0",
    size=1241896,
    sha256="c603fa6149219a3e9487dc9abd7a0c24474c77263273d24868378cdf40aa26d1",
    source="google-ai-edge/mediapipe @ 63e679d99ca4, modules/face_landmark",
    url=f"{_MEDIAPIPE_URL}/face_landmark/face_landmark.tflite",
)
IRIS_WEIGHTS = WeightsFile(
    "google-ai-edge/mediapipe",
    "iris_landmark.tflite",
    webui_folder="mediapipe",
    license="Apache-2.0",
    size=2640568,
    sha256="d1744d2a09c25f501d39eba4faff47e53ecca8852c5ce19bce8eeac39357521f",
    source="PyPI mediapipe 0.10.14, mediapipe/modules/iris_landmark",
    url=f"{_MEDIAPIPE_URL}/iris_landmark/iris_landmark.tflite",
)
_MIN_FACE_SIZE = 64  # pixels of a face's shorter side
_LEFT_EYE = ((263, 249, 390, 373, 374, 380, 381, 382, 362), (263, 466, 388, 387, 386, 385, 384, 398, 362))
_RIGHT_EYE = ((33, 7, 163, 144, 145, 153, 154, 155, 133), (33, 246, 161, 160, 159, 158, 157, 173, 133))
# Lines through points (mediapipe's face_mesh_connections.py) and their colours, RGB, in the order of drawing, as
# CrucibleAI/ControlNetMediaPipeFace was trained: controlnet_aux 0.0.10, mediapipe_face_common.py
_FACE_LINES: tuple[tuple[tuple[tuple[int, ...], ...], tuple[int, int, int]], ...] = (
    (
        (
            (10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377, 152),
            (152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109, 10),
        ),
        (10, 200, 10),
    ),
    (_LEFT_EYE, (10, 200, 180)),
    (((276, 283, 282, 295, 285), (300, 293, 334, 296, 336)), (10, 220, 180)),
    (_RIGHT_EYE, (180, 200, 10)),
    (((46, 53, 52, 65, 55), (70, 63, 105, 66, 107)), (180, 220, 10)),
    (
        (
            (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291),
            (61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291),
            (78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308),
            (78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308),
        ),
        (10, 180, 10),
    ),
)
_PUPILS = ((468, (250, 200, 10)), (473, (10, 200, 250)))  # points and colors


@preprocessor("mediapipe_face", makes="face", weights=(FACE_DETECTOR_WEIGHTS, FACE_MESH_WEIGHTS, IRIS_WEIGHTS))
class MediapipeFace:
    """Faces as colored lines, by MediaPipe's face mesh and iris network, on the CPU; the mediapipe package is not
    needed. Faces smaller than 64 pixels are left out.

    Its values are a tuple of the faces' points, (478, 2) as fractions of width and height, in MediaPipe's order: 468 of
    the mesh, then the irises' middles, 468 and 473, each with four points of its border."""

    def __init__(self, device: str | Device, library: Library):
        self.detector = load_tflite_network(library, FACE_DETECTOR_WEIGHTS, DETECTOR_INPUT_SIZE, DETECTOR_OUTPUT_SIZES)
        self.mesh_network = load_tflite_network(library, FACE_MESH_WEIGHTS, MESH_INPUT_SIZE, MESH_OUTPUT_SIZES)
        self.iris_network = load_tflite_network(library, IRIS_WEIGHTS, IRIS_INPUT_SIZE, IRIS_OUTPUT_SIZES)

    def __call__(
        self,
        image: np.ndarray,
        max_faces: Annotated[int, Range(1, 10)] = 1,
        min_confidence: Annotated[float, Range(0.01, 1)] = 0.5,
    ) -> object:
        meshes = [
            detect_face_mesh(self.mesh_network, image, one)
            for one in detect_faces(self.detector, image, min_confidence)[:max_faces]
        ]
        faces = [
            np.concatenate([points, detect_irises(self.iris_network, image, points)])
            for points in meshes
            if points is not None and min(np.ptp(points, axis=0)) >= _MIN_FACE_SIZE
        ]

        def result(height: int, width: int) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
            fractions = tuple(points / (width, height) for points in faces)
            return _render_faces(fractions, height, width), fractions

        return result


def _render_faces(faces: tuple[np.ndarray, ...], height: int, width: int) -> np.ndarray:
    canvas = np.zeros((height, width, 3), np.uint8)
    for points in faces:
        pixels = [_to_pixel(x, y, height, width) for x, y in points.tolist()]
        for lines, colour in _FACE_LINES:
            for a, b in (pair for line in lines for pair in pairwise(line)):
                if (start := pixels[a]) and (end := pixels[b]):
                    cv2.line(canvas, start, end, colour, 2)
        for place, colour in _PUPILS:
            if pupil := pixels[place]:
                column, row = pupil
                canvas[max(row - 2, 0) : row + 2, max(column - 2, 0) : column + 2] = colour
    return canvas


def _to_pixel(x: float, y: float, height: int, width: int) -> tuple[int, int] | None:
    """The pixel of a point, None outside the image (mediapipe's drawing_utils.py)."""
    return (min(int(x * width), width - 1), min(int(y * height), height - 1)) if 0 <= x <= 1 and 0 <= y <= 1 else None
