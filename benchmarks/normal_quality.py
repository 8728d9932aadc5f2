"""Normals from depth beside the normals of noise-free depth, in degrees.

    python benchmarks/normal_quality.py --truth ASSETS/truth/depth

The frames are of ICL-NUIM, with depth in whole millimetres. True normals are the least axis of the points in 9x9
pixels, where these are a plane within 2 mm, and elsewhere unknown. Beside them are the normals of `depth_normals` from
the depth itself, and of the preprocessor normal_depth from an image of depth in 256 steps, near white.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
from controlnet_ext.preprocessors import preprocess
from controlnet_ext.preprocessors.depth.normals_of_depth import normals_from_inverse_depth

FOV = 2 * np.degrees(np.arctan(320 / 481.2))  # ICL-NUIM's camera: 640 pixels wide, focal length 481.2
REACH, THICK = 4, 0.002  # pixels to each side of a window; metres


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--truth", type=Path, required=True)
    options = parser.parse_args()
    print("degrees on average, median, share within 11.25")
    for path in sorted(options.truth.glob("*_depth.png")):
        metres = cv2.imread(str(path), cv2.IMREAD_UNCHANGED) / 1000
        expected, sure = true_normals(metres, FOV)
        inverse = 1 / metres
        image = ((inverse - inverse.min()) / np.ptp(inverse) * 255).astype(np.uint8)
        normals = {
            "from the depth": normals_from_inverse_depth(inverse, FOV, 2),
            "from an image of it": preprocess("normal_depth", image, fov=FOV, far=inverse.max() / inverse.min()).values,
        }
        for name, each in normals.items():
            mean, median, right = figures(each, expected, sure)
            print(f"{path.name}, {name}: {mean:.2f}, {median:.2f}, {right:.3f} ({sure.mean():.0%} of the pixels)")


def rays(height: int, width: int, fov: float) -> np.ndarray:
    """The rays (H, W, 3) of the pixels of a camera `fov` degrees wide on the longer side: right, down, forward 1."""
    focal = max(height, width) / 2 / np.tan(np.radians(fov) / 2)
    x, y = np.meshgrid(np.arange(width) - (width - 1) / 2, np.arange(height) - (height - 1) / 2)
    return np.stack([x / focal, y / focal, np.ones_like(x)], axis=2)


def degrees(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The angle (H, W) between unit normals (H, W, 3)."""
    return np.degrees(np.arccos((one * other).sum(axis=2).clip(-1, 1)))


def true_normals(metres: np.ndarray, fov: float) -> tuple[np.ndarray, np.ndarray]:
    """Normals (H, W, 3), left, up, to the viewer, of depth (H, W), and where they are known (H, W)."""
    points = rays(*metres.shape, fov) * metres[..., None]
    size = (2 * REACH + 1, 2 * REACH + 1)

    def mean(x: np.ndarray) -> np.ndarray:
        return cv2.boxFilter(x, cv2.CV_64F, size, borderType=cv2.BORDER_REFLECT)

    middle = mean(points)
    deviations = [
        [mean(points[..., i] * points[..., j]) - middle[..., i] * middle[..., j] for j in range(3)] for i in range(3)
    ]
    lengths, axes = np.linalg.eigh(np.moveaxis(np.array(deviations), (0, 1), (2, 3)))
    n = axes[..., 0] * np.where((axes[..., 0] * points).sum(axis=2, keepdims=True) > 0, -1, 1)
    sure = lengths[..., 0] < THICK**2
    sure[:REACH] = sure[-REACH:] = sure[:, :REACH] = sure[:, -REACH:] = False
    return n * (-1, -1, -1), sure


def figures(normals: np.ndarray, expected: np.ndarray, sure: np.ndarray) -> tuple[float, float, float]:
    """Degrees on average, their median, and the share within 11.25, of the normals that are known."""
    off = degrees(normals, expected)[sure]
    return off.mean(), np.median(off), (off < 11.25).mean()


if __name__ == "__main__":
    main()
