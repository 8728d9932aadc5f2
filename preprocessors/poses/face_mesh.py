"""Faces by MediaPipe's two networks: BlazeFace (Bazarevsky et al., arXiv 1907.05047) says where, the face mesh
(Kartynnik et al., arXiv 1907.06724) gives 468 points of each.

The numbers are those of google-ai-edge/mediapipe @ 63e679d99ca4, modules/face_detection and modules/face_landmark."""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np

from ..backends.tflite import TfliteNetwork

DETECTOR_SIDE, MESH_SIDE = 128, 192  # pixels of the inputs
DETECTOR_SIZES, MESH_SIZES = (896 * 16, 896), (468 * 3, 1)
_CELLS = ((16, 2), (8, 6))  # a side of a grid of cells, boxes in each
_OVERLAP = 0.3  # over which two boxes are of one face
_MARGIN = 1.5  # of the square that the mesh looks at
_PRESENT = 0.5  # how surely a face is in it


class Square(NamedTuple):
    """Where a face is, in pixels; `angle` in radians is that of the line from its right eye to its left."""

    x: float
    y: float
    side: float
    angle: float


def squares(detector: TfliteNetwork, image: np.ndarray, confidence: float) -> list[Square]:
    """The faces of an RGB image (H, W, 3) uint8 that are as sure as `confidence`, the surest first."""
    height, width = image.shape[:2]
    scale = DETECTOR_SIDE / max(height, width)
    columns, rows = max(round(width * scale), 1), max(round(height * scale), 1)
    left, top = (DETECTOR_SIDE - columns) // 2, (DETECTOR_SIDE - rows) // 2
    x = np.zeros((DETECTOR_SIDE, DETECTOR_SIDE, 3), np.float32)
    x[top : top + rows, left : left + columns] = cv2.resize(image, (columns, rows), interpolation=cv2.INTER_AREA)
    boxes, scores = detector(x / 127.5 - 1)
    found = _faces(boxes.reshape(896, 8, 2), _sigmoid(scores), confidence)
    return [_square(*(one - (left, top)) / scale) for one in found]


def mesh(network: TfliteNetwork, image: np.ndarray, square: Square) -> np.ndarray | None:
    """The points (468, 2) of a face in pixels of an RGB image, None if there is none in the square."""
    turn = np.array(
        [[math.cos(square.angle), -math.sin(square.angle)], [math.sin(square.angle), math.cos(square.angle)]]
    )
    turn *= square.side / MESH_SIDE
    corner = np.array([square.x, square.y]) - turn.sum(axis=1) * MESH_SIDE / 2
    matrix = np.column_stack([turn, corner])
    crop = cv2.warpAffine(image, matrix, (MESH_SIDE,) * 2, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    points, present = network(crop.astype(np.float32) / 255)
    if _sigmoid(present)[0] < _PRESENT:
        return None
    return points.reshape(-1, 3)[:, :2] @ turn.T + corner


def _faces(boxes: np.ndarray, scores: np.ndarray, confidence: float) -> list[np.ndarray]:
    """Boxes (8, 2) in pixels of the detector's input: two corners, then the right eye, the left and four more points;
    of boxes of one face the mean, weighted by their scores."""
    grids = [(np.indices((side, side)).reshape(2, -1).T[:, ::-1] + 0.5) * DETECTOR_SIDE / side for side, _ in _CELLS]
    anchors = np.concatenate([np.repeat(grid, count, axis=0) for grid, (_, count) in zip(grids, _CELLS, strict=True)])
    centre, half, points = boxes[:, :1] + anchors[:, None], boxes[:, 1:2] / 2, boxes[:, 2:] + anchors[:, None]
    boxes = np.concatenate([centre - half, centre + half, points], axis=1)
    left = np.argsort(-scores, kind="stable")[: (scores >= confidence).sum()]
    found = []
    while left.size:
        same = _overlap(boxes[left[0]], boxes[left]) > _OVERLAP
        same[0] = True
        found.append(np.average(boxes[left[same]], axis=0, weights=scores[left[same]]))
        left = left[~same]
    return found


def _overlap(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Intersection over union."""
    common = (np.minimum(box[1], boxes[:, 1]) - np.maximum(box[0], boxes[:, 0])).clip(0).prod(axis=1)
    areas = (boxes[:, 1] - boxes[:, 0]).clip(0).prod(axis=1)
    return common / np.maximum((box[1] - box[0]).clip(0).prod() + areas - common, 1e-9)


def _square(first: np.ndarray, last: np.ndarray, right_eye: np.ndarray, left_eye: np.ndarray, *_: np.ndarray) -> Square:
    (x, y), (dx, dy) = (first + last) / 2, left_eye - right_eye
    return Square(x, y, _MARGIN * max(last - first), math.atan2(dy, dx))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x.clip(-80, 80)))  # float32's exp ends at 88
