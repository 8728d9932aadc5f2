"""Colors: their difference in place, their distribution, and lightness alone. And vectors of an image."""

from __future__ import annotations

import numpy as np

from ..control_map import ControlMap
from .compare import Measure, Placement
from .similarity import compute_psnr, to_gray

# IEC 61966-2-1 (sRGB): light of the 256 values, and XYZ of it in units of the white point D65
_VALUES = np.arange(256) / 255
_LINEAR = np.where(_VALUES > 0.04045, ((_VALUES + 0.055) / 1.055) ** 2.4, _VALUES / 12.92).astype(np.float32)
_XYZ_OF_RGB = np.array(
    [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]], np.float32
) / np.array([[0.95047], [1.0], [1.08883]], np.float32)
_STEPS = 8  # of a histogram to a unit of Lab


def compute_delta_e(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the differences (H, W) of the colors of two images (H, W, 3) uint8, sRGB: CIE76, the distance in CIE Lab
    (D65, 2 degrees)."""
    difference = convert_to_lab(a) - convert_to_lab(b)
    return np.sqrt((difference * difference).sum(axis=2))


def convert_to_lab(pixels: np.ndarray) -> np.ndarray:
    """Return an image (H, W, 3) uint8, sRGB, in CIE Lab (H, W, 3) float32: L 0..100, a and b about -128..127. OpenCV's
    own conversion reads tables, and is up to 0.5 off."""
    xyz = _LINEAR[pixels] @ _XYZ_OF_RGB.T
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=2)


def compute_color_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return how far the colors of one image (H, W, 3) uint8, sRGB, are to be moved to become those of another one,
    wherever they lie: the earth mover's distance of the histograms of L, a and b in CIE Lab, in steps of an eighth,
    their mean."""
    distances = []
    for channel_a, channel_b in zip(*(np.moveaxis(convert_to_lab(x), 2, 0) for x in (a, b)), strict=True):
        shares = [
            np.bincount(np.rint((x + 128) * _STEPS).astype(np.int64).reshape(-1), minlength=256 * _STEPS) / x.size
            for x in (channel_a, channel_b)
        ]
        distances.append(float(np.abs(np.cumsum(shares[0] - shares[1])).sum()) / _STEPS)
    return float(np.mean(distances))


def _compare_colors(expected: ControlMap, actual: ControlMap) -> dict[str, float]:
    difference = compute_delta_e(expected.pixels, actual.pixels)
    return {"delta_e": float(difference.mean(dtype=np.float64)), "delta_e_95": float(np.percentile(difference, 95))}


def _compare_distributions(expected: ControlMap, actual: ControlMap) -> dict[str, float]:
    return {"color_distance": compute_color_distance(expected.pixels, actual.pixels)}


def _compare_lightness(expected: ControlMap, actual: ControlMap) -> dict[str, float]:
    a, b = to_gray(expected.pixels), to_gray(actual.pixels)
    difference = np.abs(a.astype(np.float32) - b).mean(dtype=np.float64)
    return {"lightness": float(difference) * 100 / 255, "psnr": compute_psnr(a, b)}


def _compare_embeddings(expected: ControlMap, actual: ControlMap) -> dict[str, float]:
    a, b = (np.asarray(each.values, np.float64).reshape(-1) for each in (expected, actual))
    if a.shape != b.shape:
        raise ValueError(f"an embedding of {a.size} numbers cannot be compared with one of {b.size}: use one encoder")
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    return {"cosine": float(a @ b) / lengths if lengths else float("nan")}


def _keep_embedding(values: object, placement: Placement) -> object:
    """An embedding belongs to the whole image at any size."""
    return values


COLOR = Measure(
    "color",
    _compare_colors,
    score="delta_e",
    is_better_higher=False,
    perfect=0.0,
    unit="delta E",
    figures={
        "delta_e": "mean difference of the colors, CIE76: the distance in CIE Lab (sRGB, D65)",
        "delta_e_95": "the difference that 95 of 100 pixels stay under",
    },
    source="CIE 15:2004; scikit-image's deltaE_cie76",
)
COLOR_DISTRIBUTION = Measure(
    "color distribution",
    _compare_distributions,
    score="color_distance",
    is_better_higher=False,
    perfect=0.0,
    unit="delta E",
    figures={
        "color_distance": "mean over L, a and b of the earth mover's distance of the histograms: a shuffled map says "
        "which colors, not where",
    },
    source="Rubner, Tomasi and Guibas, IJCV 40(2), 2000, in one dimension",
)
LIGHTNESS = Measure(
    "lightness",
    _compare_lightness,
    score="lightness",
    is_better_higher=False,
    perfect=0.0,
    unit="0..100",
    figures={
        "lightness": "mean absolute difference of the maps in percent of their range: of recolor_luminance that of L "
        "in CIE Lab, of recolor_intensity that of V in HSV",
        "psnr": "peak signal-to-noise ratio of the maps in decibels",
    },
    source="CIE 15:2004, L*",
)
EMBEDDING = Measure(
    "embedding",
    _compare_embeddings,
    score="cosine",
    unit="-1..1",
    figures={"cosine": "cosine of the embeddings in the maps' values"},
    source="CLIP-I, as in DreamBooth (Ruiz et al., arXiv 2208.12242)",
    needs_values=True,
    place_values=_keep_embedding,
)
