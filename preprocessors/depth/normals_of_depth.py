"""Normals of surfaces from their depth.

A plane's inverse depth is linear in the pixel: with the normal n, n . (x, y, 1) Z = k along the ray (x, y, 1) gives
1/Z = n . (x, y, 1) / k. So gradient and value of the inverse depth are the normal, and no point is computed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import cv2
import numpy as np

from ...maps.fidelity import NoMeasure
from ..parameters import Range
from ..registry import Traits, preprocessor
from .depth_models import MIDAS_FILES
from .transformers_depth import TransformersDepth

if TYPE_CHECKING:
    from ..backends.torch import Device
    from ..library import Library


def normals_from_inverse_depth(inverse_depth: np.ndarray, fov: float, sigma: float = 0) -> np.ndarray:
    """Unit normals (H, W, 3) float32, left, up and to the viewer, of inverse depth (H, W) in any unit, seen by a camera
    whose longer side spans `fov` degrees. Exact on planes, to the border.

    With `smooth` the planes are fitted to Gaussian windows of that many pixels, else to neighbours. Where a window
    spans a step in depth the normal is that of a slope between. Raises ValueError when inverse depth is not 0 or more,
    and finite."""
    if not (np.isfinite(inverse_depth).all() and (inverse_depth >= 0).all()):
        raise ValueError(f"inverse depth {inverse_depth.min():g}..{inverse_depth.max():g} is not 0 or more, and finite")
    height, width = inverse_depth.shape
    focal = max(height, width) / 2 / np.tan(np.radians(fov) / 2)
    x, y = np.arange(width) - (width - 1) / 2, (np.arange(height) - (height - 1) / 2)[:, None]
    w = inverse_depth.astype(np.float64)
    w, right, down = _fit_planes(w, sigma) if sigma else (w, _compute_slope(w, 1), _compute_slope(w, 0))
    n = np.stack([focal * right, focal * down, w - x * right - y * down], axis=2)
    length = np.linalg.norm(n, axis=2, keepdims=True)
    return np.where(length > 0, n / np.where(length > 0, length, 1), (0, 0, 1)).astype(np.float32)


def encode_normals(normals: np.ndarray) -> np.ndarray:
    """Normals (..., 3) in -1..1 as the image that ControlNet 1.1 reads, uint8 RGB: red is left, green is up, blue is
    to the viewer."""
    return ((normals + 1) / 2 * 255).clip(0, 255).astype(np.uint8)


def encode_midas_normals(inverse_depth: np.ndarray, threshold: float) -> np.ndarray:
    """Encode inverse depth `(H, W)` float32 in MiDaS's unit as the map `(H, W, 3)` uint8 that ControlNet 1.0's normal
    model reads: Sobel's derivatives, 0 where the depth is below `threshold` of the way from its least to its
    largest, beside a constant 2 pi. Red points to the viewer, green up, blue left; no camera is assumed
    (sd-webui-controlnet's normal_midas)."""
    least, largest = inverse_depth.min(), inverse_depth.max()
    far = inverse_depth - least < threshold * (largest - least)
    left, up = (np.where(far, 0, cv2.Sobel(inverse_depth, cv2.CV_32F, *axis, ksize=3)) for axis in ((1, 0), (0, 1)))
    n = np.stack([np.full_like(left, 2 * np.pi), up, left], axis=2)
    n /= np.linalg.norm(n, axis=2, keepdims=True)
    return (n * 127.5 + 127.5).clip(0, 255).astype(np.uint8)


def _compute_slope(inverse_depth: np.ndarray, axis: int) -> np.ndarray:
    """Half the difference of the neighbours, at a border that to the one."""
    return np.gradient(inverse_depth, axis=axis) if inverse_depth.shape[axis] > 1 else np.zeros_like(inverse_depth)


def _fit_planes(inverse_depth: np.ndarray, sigma: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Value and slopes to the right and down of the plane fitted to each pixel's window, by least squares."""
    height, width = inverse_depth.shape
    k = cv2.getGaussianKernel(2 * int(np.ceil(3 * sigma)) + 1, sigma)
    i = np.arange(len(k))[:, None] - len(k) // 2
    kernels = k, k * i, k * i * i

    def moment(values: np.ndarray, p: int, q: int) -> np.ndarray:
        """The sum of the window's pixels times dx^p dy^q; outside the image there is none."""
        return cv2.sepFilter2D(values, cv2.CV_64F, kernels[p], kernels[q], borderType=cv2.BORDER_CONSTANT)

    one = np.ones((height, width))
    a, x, y, xx, xy, yy = (moment(one, p, q) for p, q in ((0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (0, 2)))
    matrix = np.stack([a, x, y, x, xx, xy, y, xy, yy], axis=2).reshape(height, width, 3, 3)
    matrix[..., range(3), range(3)] += 1e-12  # an image of one row has no slope down
    right = np.stack([moment(inverse_depth, 0, 0), moment(inverse_depth, 1, 0), moment(inverse_depth, 0, 1)], axis=2)
    value, *slopes = np.moveaxis(np.linalg.solve(matrix, right[..., None])[..., 0], 2, 0)
    return value, *slopes


@preprocessor(
    "normal_depth",
    makes="normals",
    fidelity=NoMeasure(
        "normal_depth computes normals from an image of depth, which an image made by them is not: measure by "
        "normal_bae or normal_dsine, whose normals point alike"
    ),
)
def normal_depth(
    image: np.ndarray,
    fov: Annotated[float, Range(1, 170)] = 60,
    far: Annotated[float, Range(1, 1000)] = 4,
    smooth: Annotated[float, Range(0, 20)] = 2,
) -> tuple[np.ndarray, np.ndarray]:
    """Normals for ControlNet 1.1 from an image of depth, near white, linear in inverse depth as most preprocessors
    make it: of a camera whose longer side spans `fov` degrees, black `far` times as far as white. `smooth` is the
    window in pixels that hides the image's 256 steps. The map's values are the unit normals (H, W, 3), left, up and
    to the viewer."""
    inverse = 1 / far + (1 - 1 / far) * image.mean(axis=2) / 255
    n = normals_from_inverse_depth(inverse, fov, smooth)
    return encode_normals(n), n


@preprocessor(
    "normal_map",
    makes="normals",
    label="normal_midas",
    weights=MIDAS_FILES,
    batched=True,
    traits=Traits(mirroring="blue normals"),
)
class NormalMap:
    """Normals for ControlNet 1.0, from MiDaS's depth; those of NormalBae, and of ControlNet 1.1, have red and blue
    exchanged. Depth below `background_threshold`, 0 the farthest and 1 the nearest, becomes flat."""

    def __init__(self, device: str | Device, library: Library):
        self.estimate_depth = TransformersDepth(device, library, MIDAS_FILES)

    def __call__(
        self, images: np.ndarray, background_threshold: Annotated[float, Range(0, 1)] = 0.4
    ) -> list[np.ndarray]:
        return [encode_midas_normals(inverse, background_threshold) for inverse in self.estimate_depth(images)]
