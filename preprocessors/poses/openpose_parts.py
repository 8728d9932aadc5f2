"""Hands and faces: where in a picture a body says they are, and their points out of heat maps.

After controlnet_aux 0.0.10, open_pose (hand.py, face.py, util.py), where a hand's box is CMU's own
(src/openpose/hand/handDetector.cpp)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

from .openpose_grouping import STRIDE, blurring, enlarging

if TYPE_CHECKING:
    from torch import Tensor

Box = tuple[int, int, int]  # x, y of the upper left corner, side; in pixels
HAND_INPUTS = (184, 368, 552, 736)  # sides in pixels at which a hand is looked at
FACE_INPUT = 384
_HAND_SIDE = 128  # of the maps in which its points are sought
_THRESHOLD = 0.05
_SMALLEST = 20  # pixels of a box
_ARMS = {"left": (5, 6, 7), "right": (2, 3, 4)}  # shoulder, elbow, wrist
_HEAD = ((14, 3.0), (15, 3.0), (16, 1.5), (17, 1.5))  # eyes and ears, and what their distance to the nose is times


def hand_boxes(body: np.ndarray, height: int, width: int) -> dict[str, Box]:
    """Squares around the hands, "left" and "right", of a body (18, 3) in pixels of a picture: where a whole arm is
    seen and the square has 20 pixels or more."""
    boxes = {}
    for side, arm in _ARMS.items():
        shoulder, elbow, wrist = body[list(arm), :2]
        if np.isnan([shoulder, elbow, wrist]).any():
            continue
        length = 1.5 * max(_distance(wrist, elbow), 0.9 * _distance(elbow, shoulder))
        x, y = np.maximum(wrist + 0.33 * (wrist - elbow) - length / 2, 0)
        fitting = min(length, width - x, height - y)
        if fitting >= _SMALLEST:
            boxes[side] = int(x), int(y), int(fitting)
    return boxes


def face_box(body: np.ndarray, height: int, width: int) -> Box | None:
    """A square around the face: where the nose and an eye or ear are seen, and it has 20 pixels or more."""
    nose = body[0, :2]
    reach = [factor * np.abs(nose - body[part, :2]).max() for part, factor in _HEAD]
    if np.isnan(nose).any() or np.isnan(reach).all():
        return None
    half = np.nanmax(reach)
    x, y = np.maximum(nose - half, 0)
    side = min(2 * half if x + half <= width else width - x, 2 * half if y + half <= height else height - y)
    return (int(x), int(y), int(side)) if side >= _SMALLEST else None


def hand_points(heat: list[np.ndarray], side: int) -> np.ndarray:
    """A hand's points (21, 3) from its heat maps (22, h, w) at each of HAND_INPUTS: x and y in pixels of its box of
    that side, and score. A point is the highest of the region with the greatest sum; NaN where there is none."""
    average = np.zeros((21, _HAND_SIDE, _HAND_SIDE))
    for one in heat:
        cells = one.shape[1]
        matrix = enlarging(cells, STRIDE * cells, _HAND_SIDE, cv2.INTER_AREA)
        average += matrix @ one[:21] @ matrix.T / len(heat)
    blur = blurring(np.eye(_HAND_SIDE))
    points = np.full((21, 3), np.nan)
    for i, one in enumerate(average):
        count, regions = cv2.connectedComponents((blur @ one @ blur.T > _THRESHOLD).astype(np.uint8), connectivity=8)
        if count > 1:
            best = 1 + np.argmax(np.bincount(regions.ravel(), one.ravel(), count)[1:])
            points[i] = _highest(np.where(regions == best, one, 0), side / _HAND_SIDE)
    return points


def face_points(heat: Tensor, side: int) -> np.ndarray:
    """A face's points (70, 3) from heat maps (71, h, w): x and y in pixels of its box of that side, and score; NaN
    where a map is nowhere over 0.05. The 71st map, of what is no point, is left out; controlnet_aux draws its highest
    place too, as if it were one."""
    from torch.nn import functional as F

    points = np.full((70, 3), np.nan)
    for i, one in enumerate(heat[:70]):
        enlarged = F.interpolate(one[None, None], (side, side), mode="bilinear", align_corners=True)[0, 0].numpy()
        if enlarged.max() > _THRESHOLD:
            points[i] = _highest(enlarged, 1)
    return points


def _highest(values: np.ndarray, scale: float) -> tuple[float, float, float]:
    """Where the greatest value is, in whole pixels after scaling, and the value. NaN in the first row or column, which
    the original takes for not found."""
    y, x = np.unravel_index(np.argmax(values), values.shape)
    px, py = int(x * scale), int(y * scale)
    return (px, py, values[y, x]) if px and py else (np.nan, np.nan, np.nan)


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(((a - b) ** 2).sum()))
