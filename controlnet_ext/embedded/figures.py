"""Outlines of the things in a scene: each kind gives closed curves in the unit disc, y down, to be filled even-odd."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Outline = list[np.ndarray]  # closed curves, each (n, 2)
Rng = np.random.Generator


def _polar_curve(radius: np.ndarray | float, n: int = 72) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, n, endpoint=False)
    return np.stack([np.sin(angle) * radius, -np.cos(angle) * radius], 1)


def _arc_points(start: float, end: float) -> np.ndarray:
    angle = np.linspace(start, end, 48)
    return np.stack([np.sin(angle), -np.cos(angle)], 1)


def _regular_polygon(corners: int, radii: tuple[float, ...] = (1.0,)) -> np.ndarray:
    return _polar_curve(np.resize(radii, corners), corners)


def _rotate(points: np.ndarray, angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return points @ np.array([[c, s], [-s, c]])


def outline_stroke(path: np.ndarray, width: float) -> np.ndarray:
    """The outline of a line of that width along a path (n, 2), with round ends."""
    along = np.gradient(path, axis=0)
    along /= np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-9)
    side = np.stack([-along[:, 1], along[:, 0]], 1) * width / 2
    turn = np.linspace(0, np.pi, 9)[1:-1, None]
    end = path[-1] + side[-1] * np.cos(turn) + along[-1] * width / 2 * np.sin(turn)
    start = path[0] - side[0] * np.cos(turn) - along[0] * width / 2 * np.sin(turn)
    return np.concatenate([path + side, end, (path - side)[::-1], start])


def circle(rng: Rng) -> Outline:
    """Return the outline of the unit circle."""
    return [_polar_curve(1.0) * [1, rng.uniform(0.85, 1)]]


def square(rng: Rng) -> Outline:
    """Return the outline of a square."""
    return [_rotate(_rotate(_regular_polygon(4), np.pi / 4) * [1, rng.uniform(0.8, 1.2)], rng.uniform(-0.35, 0.35))]


def triangle(rng: Rng) -> Outline:
    """Return the outline of a triangle."""
    return [_rotate(_regular_polygon(3) * [1, rng.uniform(0.85, 1.15)], rng.uniform(-np.pi, np.pi))]


def star(rng: Rng) -> Outline:
    """Return the outline of a star."""
    return [_rotate(_regular_polygon(10, (1.0, rng.uniform(0.42, 0.5))), rng.uniform(-0.6, 0.6))]


def heart(rng: Rng) -> Outline:
    """x = 16 sin^3 t, y = 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t, the usual heart curve."""
    t = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return [_rotate(np.stack([16 * np.sin(t) ** 3, -y - 2], 1) / 16.5, rng.uniform(-0.5, 0.5))]


def ring(rng: Rng) -> Outline:
    """Return the outline of a ring."""
    return [_polar_curve(1.0), _polar_curve(rng.uniform(0.42, 0.58))]


def moon(rng: Rng) -> Outline:
    """The unit disc without a disc of radius 0.75 whose centre is 0.4 higher."""
    r, d = 0.75, 0.4
    tip = np.arccos((1 + d * d - r * r) / (2 * d))  # where the two circles meet, angles from the top
    inner_tip = np.arctan2(np.sin(tip), np.cos(tip) - d)
    outer = _arc_points(tip, 2 * np.pi - tip)
    inner = _arc_points(2 * np.pi - inner_tip, inner_tip) * r - [0, d]
    return [_rotate(np.concatenate([outer, inner]), rng.uniform(-np.pi, np.pi))]


def cross(rng: Rng) -> Outline:
    """Return the outline of a cross."""
    a = rng.uniform(0.28, 0.36)
    quarter = np.array([[-a, -1], [a, -1], [a, -a]])
    return [_rotate(np.concatenate([_rotate(quarter, k * np.pi / 2) for k in range(4)]), rng.uniform(-0.7, 0.7))]


def blob(rng: Rng) -> Outline:
    """Return the outline of a random blob."""
    angle = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    radius = 0.72 + sum(
        rng.uniform(0.07, 0.22) / (k / 2) * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 4, 5)
    )
    return [_polar_curve(radius)]


def curve(rng: Rng) -> Outline:
    """Return the outline of a thick random curve."""
    t = np.linspace(-1, 1, 40)
    bend = rng.uniform(0.25, 0.5) * np.sin(t * rng.uniform(2.2, 4.5) + rng.uniform(0, 2 * np.pi))
    return [_rotate(outline_stroke(np.stack([t, bend], 1), rng.uniform(0.22, 0.3)), rng.uniform(-np.pi, np.pi))]


FIGURES: dict[str, Callable[[Rng], Outline]] = {
    f.__name__: f for f in (circle, square, triangle, star, heart, ring, moon, cross, blob, curve)
}
