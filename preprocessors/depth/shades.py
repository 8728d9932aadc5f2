"""Depth as an image: near is white. And what is told of it beside the image."""

from __future__ import annotations

import numpy as np


def depth_to_uint16(depth: np.ndarray, low: float, high: float) -> np.ndarray:
    """Values (H, W) as grey (H, W) uint16, `low` black and `high` white, cut to whole numbers; all black where these
    are one."""
    if not low < high:
        return np.zeros(depth.shape, np.uint16)
    return (((depth - low) / (high - low)).clip(0, 1) * 65535).astype(np.uint16)


def encode_inverse_depth(inverse_depth: np.ndarray) -> np.ndarray:
    """Encode inverse depth `(H, W)` of unknown scale as gray values, from its least to its largest, as MiDaS and Depth
    Anything do."""
    return depth_to_uint16(inverse_depth, inverse_depth.min(), inverse_depth.max())


def encode_metric_depth(depth: np.ndarray) -> np.ndarray:
    """Encode depth `(H, W)` in metres as gray values: inverse depth from its least to its largest, between 0.1 m and
    250 m (apple/ml-depth-pro, src/depth_pro/cli/run.py)."""
    inverse = 1 / depth.clip(1e-4, 1e4)
    return depth_to_uint16(inverse, max(inverse.min(), 1 / 250), min(inverse.max(), 1 / 0.1))


def encode_zoe_depth(depth: np.ndarray) -> np.ndarray:
    """Encode depth `(H, W)` in metres as gray values, linear: white at the 2nd percentile, black at the 85th
    (ControlNet 1.1 on ZoeDepth)."""
    near, far = np.percentile(depth, (2, 85))
    return depth_to_uint16(-depth, -far, -near)
