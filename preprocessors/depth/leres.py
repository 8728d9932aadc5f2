"""Depth at more detail than its network has: estimates of the whole and of its parts at several sizes, merged by a
second network (Miangoleh et al., Boosting Monocular Depth Estimation Models to High-Resolution via Content-Adaptive
Multi-Resolution Merging, CVPR 2021; sections 5 and 6).

Written after the paper and controlnet_aux 0.0.10 (Apache-2.0), and gives what that gives."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

Estimate = Callable[[np.ndarray, int], np.ndarray]  # a picture and the size to work at; depth (H, W) of the picture
Merge = Callable[[np.ndarray, np.ndarray], np.ndarray]  # coarse and detailed, SIZE x SIZE in 0..1; the same
FIELD = 448  # pixels that the network of depth sees at once
SIZE = 1024  # at which maps are merged
_LARGEST = 1600  # for the whole picture
_STEP = 32  # the search for a size runs on a picture so many times smaller
_BLIND = 0.2  # of the picture may be without an edge in sight


def boosted(image: np.ndarray, estimate: Estimate, merge: Merge) -> np.ndarray:
    """Depth (H, W) of a picture (H, W, 3) uint8, 0..1 but for the overshoot of resizing."""
    height, width = image.shape[:2]
    size, density = _best_size(image)
    whole = _double(image, size, estimate, merge)
    if max(height, width) < size:
        return _cubic(whole, height, width)
    factor = max(min(1, 4 * density * size / _LARGEST), 0.2)
    large = [round(2 * size * side / max(height, width)) for side in (height, width)]
    large = [round(side / factor) for side in large]
    picture = _cubic(image, *large)
    parts = _parts(picture, int(32 / factor))
    scale = height / large[0]
    picture = _cubic(picture, round(large[0] * scale), round(large[1] * scale))
    base = _cubic(whole, *picture.shape[:2])
    depth = base.copy()
    for part in parts:
        left, top, side = (round(pixels * scale) for pixels in part)
        here = np.s_[top : top + side, left : left + side]
        before = _cubic(base[here], SIZE, SIZE)
        merged = _fitted(merge(_unit(before), _double(picture[here], 2 * FIELD, estimate, merge)), before)
        rows, columns = depth[here].shape
        mask = _fade(rows)[:, None] * _fade(columns)
        depth[here] += mask * (_cubic(merged, rows, columns) - depth[here])
    return _cubic(depth, height, width)


def _fitted(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """x's multiple with an offset that is nearest to y, as numpy fits it in float32: of a million values that vary
    little beside their mean it determines one of the two unknowns only, and is off by up to 0.01."""
    slope, offset = np.polyfit(x.ravel(), y.ravel(), 1, full=True)[0]  # full: without its warning of that
    return slope * x + offset


def _double(image: np.ndarray, size: int, estimate: Estimate, merge: Merge) -> np.ndarray:
    """Depth (SIZE, SIZE) in 0..1 of the picture seen at once, with the detail of it at `size`."""
    coarse, fine = (_cubic(estimate(image, s), SIZE, SIZE) for s in (FIELD, size))
    return _unit(merge(_unit(coarse), _unit(fine)))


def _unit(depth: np.ndarray) -> np.ndarray:
    least, largest = depth.min(), depth.max()
    return (depth - least) / (largest - least) if largest > least else np.zeros_like(depth)


def _cubic(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_CUBIC)


def _gradient(image: np.ndarray) -> np.ndarray:
    grey = image[..., :3] @ np.array([0.2989, 0.5870, 0.1140])
    return np.abs(cv2.Sobel(grey, cv2.CV_64F, 0, 1, ksize=3)) + np.abs(cv2.Sobel(grey, cv2.CV_64F, 1, 0, ksize=3))


def _best_size(image: np.ndarray) -> tuple[int, float]:
    """The largest size at which an edge is in sight nearly everywhere, and the share of the picture near edges."""
    side = min(image.shape[:2])
    edges = cv2.resize(_gradient(image), (side, side))
    edges = (edges >= edges.min() + 0.4 * np.ptp(edges)).astype(np.float64)
    sight = np.ones((FIELD // _STEP,) * 2)
    best, small = FIELD // _STEP, edges
    for size in range(best, min(_LARGEST, 3 * max(image.shape[:2])) // _STEP, FIELD // (2 * _STEP)):
        small = (cv2.resize(_pooled(edges, max(side // size, 1)), (size, size)) >= 0.5).astype(np.float64)
        if (1 - cv2.dilate(small, sight)).mean() > _BLIND:
            break
        best = size
    return best * _STEP, float(cv2.dilate(small, np.ones((3, 3))).mean())


def _pooled(x: np.ndarray, n: int) -> np.ndarray:
    """The largest of each n x n, what is left over filled up with 0."""
    height, width = (-(-side // n) for side in x.shape)
    whole = np.zeros((height * n, width * n))
    whole[: x.shape[0], : x.shape[1]] = x
    return whole.reshape(height, n, width, n).max(axis=(1, 3))


def _parts(image: np.ndarray, step: int) -> list[tuple[int, int, int]]:
    """Squares (left, top, side) that have as many edges as the picture on average, as large as that lets them be, the
    largest first."""
    edges = _gradient(image)
    edges[edges < (edges[edges > 0].mean() if edges.any() else 0)] = 0
    average = edges.mean()
    sums = cv2.integral(edges)
    height, width = edges.shape

    def dense(left: int, top: int, side: int) -> bool:
        a, b = sums[top, [left, left + side]], sums[top + side, [left, left + side]]
        return bool((b[1] - b[0] - a[1] + a[0]) / side**2 >= average)

    found = []
    for left in range(0, width - 2 * FIELD, round(0.75 * FIELD)):
        for top in range(0, height - 2 * FIELD, round(0.75 * FIELD)):
            part = left, top, 2 * FIELD
            if not dense(*part):
                continue
            while True:
                x, y, side = part[0] - step // 2, part[1] - step // 2, part[2] + step
                if x < 0 or y < 0 or y + side > height or x + side > width or not dense(x, y, side):
                    break
                part = x, y, side
            found.append(part)
    return sorted(found, key=lambda part: -part[2])


def _fade(count: int) -> np.ndarray:
    """Weights (count,) of a part's pixels, 0 at its ends: one from 15 to 85 percent, blurred with a sixteenth."""
    n = 3000
    box = np.zeros((1, n), np.float32)
    box[:, int(0.15 * n) : n - int(0.15 * n)] = 1
    sigma = n // 16
    soft = cv2.GaussianBlur(box, (2 * int(np.ceil(2 * sigma)) + 1, 1), sigma)
    return cv2.resize(soft, (count, 1), interpolation=cv2.INTER_LINEAR)[0]
