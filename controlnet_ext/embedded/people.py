"""Stick people: 18 key points in OpenPose's COCO order, and the outline drawn around them."""

from __future__ import annotations

import numpy as np

from .figures import Outline, Rng, stroke

# OpenPose COCO-18: nose, neck, then right before left: shoulder, elbow, wrist; hip, knee, ankle (each side whole);
# eyes; ears
LIMBS = ((2, 3), (3, 4), (5, 6), (6, 7), (8, 9), (9, 10), (11, 12), (12, 13), (2, 5), (8, 11), (1, 0))
TORSO = (2, 5, 11, 8)


def _reach(start: np.ndarray, angle: float, length: float) -> np.ndarray:
    """The point at `length` from start, the angle turned from straight down."""
    return start + length * np.array([np.sin(angle), np.cos(angle)])


def person(rng: Rng) -> tuple[Outline, np.ndarray]:
    """Closed curves in the unit disc (y down; fill each by itself, they overlap) and key points (18, 2)."""
    nose, neck = np.array([0.0, -0.76]), np.array([0.0, -0.5])
    points = np.zeros((18, 2))
    points[0], points[1] = nose, neck
    for side, shoulder, hip in ((-1, 2, 8), (1, 5, 11)):
        points[shoulder] = neck + np.array([side * 0.19, 0.04])
        points[hip] = [side * 0.12, 0.12]
        arm = side * rng.uniform(0.1, 2.6)
        points[shoulder + 1] = _reach(points[shoulder], arm, 0.27)
        points[shoulder + 2] = _reach(points[shoulder + 1], arm + rng.uniform(-0.8, 0.8), 0.26)
        leg = side * rng.uniform(0.02, 0.55)
        points[hip + 1] = _reach(points[hip], leg, 0.42)
        points[hip + 2] = _reach(points[hip + 1], leg + rng.uniform(-0.35, 0.35), 0.42)
        points[14 if side < 0 else 15] = nose + np.array([side * 0.06, -0.05])
        points[16 if side < 0 else 17] = nose + np.array([side * 0.14, 0.0])
    angle = np.linspace(0, 2 * np.pi, 36, endpoint=False)
    head = nose + 0.18 * np.stack([np.sin(angle), -np.cos(angle)], 1)
    width = rng.uniform(0.14, 0.18)
    limbs = [stroke(np.linspace(points[a], points[b], 6), width) for a, b in LIMBS]
    return [head, points[list(TORSO)], *limbs], points
