"""Poses as images, in the colours that control models were trained on: the one place that draws them."""

from __future__ import annotations

import math
from colorsys import hsv_to_rgb
from itertools import pairwise

import cv2
import numpy as np

from ...files.image_formats import check_pixels
from .key_points import KeyPoints, Poses

# Limbs as pairs of points, in the order of drawing; colours (RGB) of the points and, in the same order, of the limbs:
# lllyasviel/ControlNet @ ed85cd1e25a5, annotator/openpose/util.py. The two limbs from shoulder to ear are not drawn.
_BODY_LIMBS = (
    *((1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10)),
    *((1, 11), (11, 12), (12, 13), (1, 0), (0, 14), (14, 16), (0, 15), (15, 17)),
)
_BODY_COLORS = (
    *((255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0)),
    *((0, 255, 0), (0, 255, 85), (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255)),
    *((0, 0, 255), (85, 0, 255), (170, 0, 255), (255, 0, 255), (255, 0, 170), (255, 0, 85)),
)
_FINGERS = tuple((0, *range(first, first + 4)) for first in (1, 5, 9, 13, 17))
_HAND_LIMBS = tuple(limb for finger in _FINGERS for limb in pairwise(finger))
_HAND_COLORS = tuple(tuple(round(255 * c) for c in hsv_to_rgb(i / 20, 1, 1)) for i in range(20))
_HAND_POINT_COLOR = (0, 0, 255)
_FACE_POINT_COLOR = (255, 255, 255)
# of Fannovel16/comfyui_controlnet_aux @ 239b35771c59, dwpose/__init__.py
_ANIMAL_LIMBS = (
    *((0, 1), (1, 2), (0, 2), (2, 3), (3, 8), (8, 9), (9, 10), (3, 5), (5, 6), (6, 7)),
    *((3, 4), (4, 14), (14, 15), (15, 16), (4, 11), (11, 12), (12, 13)),
)
_ANIMAL_COLORS = (
    *((255, 255, 255), (100, 255, 100), (150, 255, 255), (100, 50, 255), (50, 150, 200), (0, 255, 255)),
    *((0, 150, 0), (0, 0, 255), (0, 0, 150), (255, 50, 255), (255, 0, 255), (255, 0, 0)),
    *((150, 0, 0), (255, 255, 100), (0, 150, 0), (255, 255, 0), (150, 150, 150)),
)


def render_pose(
    poses: Poses,
    height: int,
    width: int,
    *,
    body: bool = True,
    hands: bool = True,
    face: bool = True,
    scale_sticks: bool = False,
) -> np.ndarray:
    """The pose map (height, width, 3) uint8 RGB: on black, person after person, then the animals.

    Bodies are sticks 8 pixels wide with dots of 9, whatever the size. `scale_sticks` makes both 2 to 7 times as wide
    from 500 pixels of the longer side on, as xinsir/controlnet-openpose-sdxl-1.0 was trained (its model card; the
    ComfyUI pack scales the sticks and not the dots). Pixel for pixel what controlnet_aux 0.0.10 draws."""
    check_pixels(height, width, "a pose map")
    canvas = np.zeros((height, width, 3), np.uint8)
    scale = min(2 + max(height, width) // 1000, 7) if scale_sticks and max(height, width) >= 500 else 1
    for person in poses.people:
        if body:
            _draw_body(canvas, person.body, scale)
        if hands:
            _draw_hand(canvas, person.left_hand)
            _draw_hand(canvas, person.right_hand)
        if face:
            _draw_face(canvas, person.face)
    for animal in poses.animals:
        pixels = _to_pixels(canvas, animal.points)
        for (i, j), color in zip(_ANIMAL_LIMBS, _ANIMAL_COLORS, strict=True):
            if i in pixels and j in pixels:
                cv2.line(canvas, pixels[i], pixels[j], color, 5)
    return canvas


def _draw_body(canvas: np.ndarray, points: KeyPoints, stick_scale: int) -> None:
    height, width = canvas.shape[:2]
    for (i, j), color in zip(_BODY_LIMBS, _BODY_COLORS[:17], strict=True):
        a, b = points[i], points[j]
        if a and b:
            ax, ay, bx, by = a.x * width, a.y * height, b.x * width, b.y * height
            length = math.hypot(ax - bx, ay - by)
            angle = math.degrees(math.atan2(ay - by, ax - bx))
            center, axes = (int((ax + bx) / 2), int((ay + by) / 2)), (int(length / 2), 4 * stick_scale)
            stick = cv2.ellipse2Poly(center, axes, int(angle), 0, 360, 1)
            cv2.fillConvexPoly(canvas, np.asarray(stick), [int(c * 0.6) for c in color])
    for i, pixel in _to_pixels(canvas, points).items():
        cv2.circle(canvas, pixel, 4 * stick_scale, _BODY_COLORS[i], thickness=-1)


def _draw_hand(canvas: np.ndarray, points: KeyPoints) -> None:
    pixels = _drop_border_points(_to_pixels(canvas, points))
    for (i, j), color in zip(_HAND_LIMBS, _HAND_COLORS, strict=True):
        if i in pixels and j in pixels:
            cv2.line(canvas, pixels[i], pixels[j], color, thickness=2)
    for pixel in pixels.values():
        cv2.circle(canvas, pixel, 4, _HAND_POINT_COLOR, thickness=-1)


def _draw_face(canvas: np.ndarray, points: KeyPoints) -> None:
    for pixel in _drop_border_points(_to_pixels(canvas, points)).values():
        cv2.circle(canvas, pixel, 3, _FACE_POINT_COLOR, thickness=-1)


def _to_pixels(canvas: np.ndarray, points: KeyPoints) -> dict[int, tuple[int, int]]:
    """(x, y) of the points that are there, by index."""
    height, width = canvas.shape[:2]
    return {i: (int(p.x * width), int(p.y * height)) for i, p in enumerate(points) if p}


def _drop_border_points(pixels: dict[int, tuple[int, int]]) -> dict[int, tuple[int, int]]:
    """Without those in the first row or column or beyond, where the original puts hands and faces not found."""
    return {i: (x, y) for i, (x, y) in pixels.items() if x > 0 and y > 0}
