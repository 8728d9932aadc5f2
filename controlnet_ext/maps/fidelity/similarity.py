"""Gray maps by structural similarity (SSIM, MS-SSIM), and images by their peak signal-to-noise ratio."""

from __future__ import annotations

import cv2
import numpy as np

from ..control_map import ControlMap
from .compare import Measure

MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the scales, finest first
MIN_MS_SSIM_SIDE = 161  # pixels; below, the window of 11 does not fit into the fifth scale
MAX_PSNR = 100.0  # decibels: of equal images, so that means stay finite
_SIGMA, _RADIUS = 1.5, 5  # of the window of 11x11 pixels
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def to_gray(pixels: np.ndarray) -> np.ndarray:
    """Return a map (H, W, 3) uint8 as gray (H, W) uint8; gray ones stay exactly as they are."""
    return cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY)


def compute_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Return the mean structural similarity of two gray images (H, W), 0..255, with a Gaussian window of 11x11 pixels
    and sigma 1.5, over all pixels, mirrored at the border as in torchmetrics (Wang et al., 2004)."""
    return float(_compute_similarity(a.astype(np.float64), b.astype(np.float64))[0].mean())


def compute_ms_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Return the multi-scale structural similarity of two gray images (H, W), 0..255 (Wang, Simoncelli and Bovik,
    2003): the product over five scales, each half the one before, of contrast and structure to the power of
    `MS_SSIM_WEIGHTS`, at the last of SSIM itself; negative factors count as 0. Below `MIN_MS_SSIM_SIDE` pixels of the
    shorter side it is SSIM."""
    if min(a.shape) < MIN_MS_SSIM_SIDE:
        return compute_ssim(a, b)
    a, b, result = a.astype(np.float64), b.astype(np.float64), 1.0
    for scale, weight in enumerate(MS_SSIM_WEIGHTS):
        whole, structure = _compute_similarity(a, b)
        is_last = scale == len(MS_SSIM_WEIGHTS) - 1
        factor = whole.mean() if is_last else structure[_RADIUS:-_RADIUS, _RADIUS:-_RADIUS].mean()
        result *= max(float(factor), 0.0) ** weight
        a, b = _halve(a), _halve(b)
    return result


def compute_psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio of two images of any shape, 0..255: 10 log10(255² / MSE) decibels, at most
    `MAX_PSNR`."""
    error = float(np.mean((a.astype(np.float32) - b) ** 2, dtype=np.float64))
    return MAX_PSNR if error == 0 else min(MAX_PSNR, 10 * float(np.log10(255**2 / error)))


def _compute_similarity(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the maps (H, W) of SSIM and of its factor for contrast and structure."""
    mean_a, mean_b, aa, bb, ab = (
        cv2.GaussianBlur(x, (2 * _RADIUS + 1,) * 2, _SIGMA, borderType=cv2.BORDER_REFLECT_101)
        for x in (a, b, a * a, b * b, a * b)
    )
    variances = np.maximum(aa - mean_a**2, 0) + np.maximum(bb - mean_b**2, 0)
    structure = (2 * (ab - mean_a * mean_b) + _C2) / (variances + _C2)
    return (2 * mean_a * mean_b + _C1) / (mean_a**2 + mean_b**2 + _C1) * structure, structure


def _halve(x: np.ndarray) -> np.ndarray:
    """Return the means of squares of 2x2 pixels; an odd last row or column is left out."""
    height, width = x.shape[0] // 2, x.shape[1] // 2
    return x[: 2 * height, : 2 * width].reshape(height, 2, width, 2).mean(axis=(1, 3))


def _compare_lines(expected: ControlMap, actual: ControlMap) -> dict[str, float]:
    a, b = to_gray(expected.pixels), to_gray(actual.pixels)
    if a.min() == a.max():  # no line at all
        return {"ms_ssim": float("nan"), "rmse": float("nan")}
    return {"ms_ssim": compute_ms_ssim(a, b), "rmse": float(np.sqrt(np.mean((a.astype(np.float32) - b) ** 2)))}


def _compare_images(expected: ControlMap, actual: ControlMap) -> dict[str, float]:
    a, b = expected.pixels, actual.pixels
    error = float(np.mean((a.astype(np.float32) - b) ** 2, dtype=np.float64))
    return {"psnr": compute_psnr(a, b), "rmse": error**0.5}


LINES = Measure(
    "lines",
    _compare_lines,
    score="ms_ssim",
    figures={
        "ms_ssim": "multi-scale structural similarity of the gray maps, weights .0448 .2856 .3001 .2363 .1333, window "
        "11x11, sigma 1.5; SSIM where the shorter side is under 161 pixels",
        "rmse": "root of the mean squared difference of the gray maps, 0..255",
    },
    source="Wang, Simoncelli and Bovik, Asilomar 2003; as in ControlNet++ (arXiv 2404.07987) for HED and lineart",
)
IMAGE = Measure(
    "image",
    _compare_images,
    score="psnr",
    perfect=MAX_PSNR,
    unit="dB",
    figures={
        "psnr": "10 log10(255² / MSE) over all pixels and channels, at the map's resolution; 100 at most",
        "rmse": "root of the mean squared difference, 0..255; shares are taken of it",
    },
    source="ITU-T J.247 and torchmetrics' PeakSignalNoiseRatio",
    share_figure="rmse",
    keeps_map_size=True,
)
