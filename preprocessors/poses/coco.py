"""People from the points that networks trained on COCO give."""

from __future__ import annotations

import numpy as np

from .key_points import KeyPoint, Person, found

SCORE = 0.3  # from which on a point is there: sd-webui-controlnet's and the ComfyUI pack's
_ORDER = (0, 5, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)  # OpenPose's points in COCO's
_NECK, _SHOULDERS = 1, [5, 6]  # in OpenPose's, in COCO's, which has no neck
_FACE, _LEFT_HAND, _RIGHT_HAND = slice(23, 91), slice(91, 112), slice(112, 133)  # of COCO-WholeBody's 133
_EYES = (14, 15)  # right, left


def person(coco: np.ndarray, height: int, width: int) -> Person:
    """A person of COCO's 17 points, or COCO-WholeBody's 133, (17, 3) or (133, 3): x, y in pixels of a picture, score.

    Points below 0.3 are absent, and so is a hand or face that has none. The neck is between the shoulders. The
    pupils, which COCO-WholeBody lacks, are the body's eyes. Raises ValueError for another number of points."""
    if len(coco) not in (17, 133):
        raise ValueError(f"{len(coco)} points of a person, expected COCO's 17 or COCO-WholeBody's 133")
    points = coco[list(_ORDER)]
    points[_NECK] = *coco[_SHOULDERS, :2].mean(axis=0), coco[_SHOULDERS, 2].min()
    body = _sure(points, height, width)
    left, right, face = (_sure(coco[part], height, width) for part in (_LEFT_HAND, _RIGHT_HAND, _FACE))
    if any(face):
        face += tuple(body[eye] for eye in _EYES)
    return Person(body, *(part if any(part) else () for part in (left, right, face)))


def _sure(points: np.ndarray, height: int, width: int) -> tuple[KeyPoint | None, ...]:
    return found([(x, y, score if score >= SCORE else 0) for x, y, score in points.tolist()], height, width)
