"""Grounds of a scene: a weight 0..1 per pixel that mixes two tones of the ground's color."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from .figures import Rng


def _rotated_grid(size: int, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Pixel coordinates (size, size) turned by an angle, in pixels of a 128-pixel image."""
    y, x = np.mgrid[:size, :size].astype(np.float32) * (128 / size)
    c, s = np.cos(angle), np.sin(angle)
    return c * x + s * y, c * y - s * x


def weigh_plain(rng: Rng, size: int) -> np.ndarray:
    """Return weights (size, size) float32 in 0..1 of one tone."""
    return np.zeros((size, size), np.float32)


def weigh_stripes(rng: Rng, size: int) -> np.ndarray:
    """Return weights (size, size) float32 in 0..1 of stripes at a random angle."""
    u, _ = _rotated_grid(size, rng.uniform(0, np.pi))
    period = rng.uniform(22, 44)
    return ((u + rng.uniform(0, period)) % period < period / 2).astype(np.float32)


def weigh_checks(rng: Rng, size: int) -> np.ndarray:
    """Return weights (size, size) float32 in 0..1 of a checkerboard."""
    u, v = _rotated_grid(size, rng.uniform(-0.4, 0.4))
    side = rng.uniform(16, 30)
    return ((u // side + v // side) % 2).astype(np.float32)


def weigh_dots(rng: Rng, size: int) -> np.ndarray:
    """Return weights (size, size) float32 in 0..1 of dots on a grid."""
    u, v = _rotated_grid(size, rng.uniform(-0.4, 0.4))
    gap = rng.uniform(24, 38)
    return (np.hypot(u % gap - gap / 2, v % gap - gap / 2) < gap * rng.uniform(0.24, 0.34)).astype(np.float32)


def weigh_waves(rng: Rng, size: int) -> np.ndarray:
    """Return weights (size, size) float32 in 0..1 of hills: bands whose borders are slow waves."""
    u, v = _rotated_grid(size, rng.uniform(-0.3, 0.3))
    wave = sum(rng.uniform(3, 7) * np.sin(u * 2 * np.pi / rng.uniform(50, 130) + rng.uniform(0, 6)) for _ in range(2))
    period = rng.uniform(36, 80)
    return ((v + wave + rng.uniform(0, period)) % period < period / 2).astype(np.float32)


def weigh_mosaic(rng: Rng, size: int) -> np.ndarray:
    """Return weights (size, size) float32 in 0..1 of cells around random points, each of its own tone."""
    u, v = _rotated_grid(size, 0.0)
    centers = rng.uniform(-10, 138, (int(rng.integers(5, 10)), 2))
    cell = np.stack([np.hypot(u - x, v - y) for x, y in centers]).argmin(0)
    return rng.permutation(np.linspace(0, 1, len(centers)).astype(np.float32))[cell]


def weigh_spots(rng: Rng, size: int) -> np.ndarray:
    """Return weights (size, size) float32 in 0..1 of soft spots with sharp borders: smooth noise, cut at its middle."""
    coarse = rng.standard_normal((7, 7)).astype(np.float32)
    return (cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC) > 0).astype(np.float32)


GROUNDS: dict[str, Callable[[Rng, int], np.ndarray]] = {  # by the word of captions
    "plain": weigh_plain,
    "striped": weigh_stripes,
    "checked": weigh_checks,
    "dotted": weigh_dots,
    "wavy": weigh_waves,
    "mosaic": weigh_mosaic,
    "mottled": weigh_spots,
}
