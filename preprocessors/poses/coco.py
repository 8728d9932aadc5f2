"""People from the points that networks trained on COCO give."""

from __future__ import annotations

import numpy as np

from .key_points import KeyPoint, Person, key_points_from_pixels

MIN_KEY_POINT_SCORE = 0.3  # from which on a point is there: sd-webui-controlnet's and the ComfyUI pack's
_OPENPOSE_FROM_COCO = (0, 5, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)  # OpenPose's points in COCO's
_NECK, _COCO_SHOULDERS = 1, [5, 6]  # in OpenPose's, in COCO's, which has no neck
_FACE_SLICE, _LEFT_HAND_SLICE, _RIGHT_HAND_SLICE = (
    slice(23, 91),
    slice(91, 112),
    slice(112, 133),
)  # of COCO-WholeBody's 133
_EYES = (14, 15)  # right, left


def person_from_coco(coco: np.ndarray, height: int, width: int) -> Person:
    """A person of COCO's 17 points, or COCO-WholeBody's 133, (17, 3) or (133, 3): x, y in pixels of an image, score.

    Points below 0.3 are absent, and so is a hand or face that has none. The neck is between the shoulders. The
    pupils, which COCO-WholeBody lacks, are the body's eyes. Raises ValueError for another number of points."""
    if len(coco) not in (17, 133):
        raise ValueError(f"{len(coco)} points of a person, expected COCO's 17 or COCO-WholeBody's 133")
    points = coco[list(_OPENPOSE_FROM_COCO)]
    points[_NECK] = *coco[_COCO_SHOULDERS, :2].mean(axis=0), coco[_COCO_SHOULDERS, 2].min()
    body = _keep_confident(points, height, width)
    left, right, face = (
        _keep_confident(coco[part], height, width) for part in (_LEFT_HAND_SLICE, _RIGHT_HAND_SLICE, _FACE_SLICE)
    )
    if any(face):
        face += tuple(body[eye] for eye in _EYES)
    return Person(body, *(part if any(part) else () for part in (left, right, face)))


def _keep_confident(points: np.ndarray, height: int, width: int) -> tuple[KeyPoint | None, ...]:
    return key_points_from_pixels(
        [(x, y, score if score >= MIN_KEY_POINT_SCORE else 0) for x, y, score in points.tolist()], height, width
    )
