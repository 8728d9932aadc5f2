"""Depth by LeReS, and by LeReS with boosted detail. The networks are annotators/leres.py and depth_merge.py.

Boosting merges estimates of the whole and of its parts at several sizes by a second network (Miangoleh et al., Boosting
Monocular Depth Estimation Models to High-Resolution via Content-Adaptive Multi-Resolution Merging, CVPR 2021; sections
5 and 6). It is written after the paper and controlnet_aux 0.0.10 (Apache-2.0), and its depth equals controlnet_aux's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import cv2
import numpy as np

from ...files.hub import HORDE_CATALOG, WeightsFile
from ..backends.tensors import pad_to_multiple
from ..backends.transformers import normalize_imagenet
from ..parameters import Range
from ..registry import preprocessor
from .shades import depth_to_uint16
from .transformers_depth import DepthRenderer

if TYPE_CHECKING:
    from ..backends.torch import Device
    from ..library import Library


EstimateFunction = Callable[
    [np.ndarray, int], np.ndarray
]  # an image and the size to work at; depth (H, W) of the image
MergeFunction = Callable[[np.ndarray, np.ndarray], np.ndarray]  # coarse and detailed, SIZE x SIZE in 0..1; the same
RECEPTIVE_FIELD = 448  # pixels that the network of depth sees at once
MERGE_SIZE = 1024  # at which maps are merged
_MAX_SIZE = 1600  # for the whole image
_SEARCH_STRIDE = 32  # the search for a size runs on an image so many times smaller
_MAX_EDGELESS_SHARE = 0.2  # of the image may be without an edge in sight


def boost_depth(image: np.ndarray, estimate: EstimateFunction, merge: MergeFunction) -> np.ndarray:
    """Depth (H, W) of an image (H, W, 3) uint8, 0..1 but for the overshoot of resizing."""
    height, width = image.shape[:2]
    size, density = _find_best_size(image)
    whole = _estimate_double(image, size, estimate, merge)
    if max(height, width) < size:
        return _resize_cubic(whole, height, width)
    factor = max(min(1, 4 * density * size / _MAX_SIZE), 0.2)
    large = [round(2 * size * side / max(height, width)) for side in (height, width)]
    large = [round(side / factor) for side in large]
    large_image = _resize_cubic(image, *large)
    parts = _select_patches(large_image, int(32 / factor))
    scale = height / large[0]
    large_image = _resize_cubic(large_image, round(large[0] * scale), round(large[1] * scale))
    base = _resize_cubic(whole, *large_image.shape[:2])
    depth = base.copy()
    for part in parts:
        left, top, side = (round(pixels * scale) for pixels in part)
        here = np.s_[top : top + side, left : left + side]
        before = _resize_cubic(base[here], MERGE_SIZE, MERGE_SIZE)
        patch_depth = _fit_linear(
            merge(_normalize_depth(before), _estimate_double(large_image[here], 2 * RECEPTIVE_FIELD, estimate, merge)),
            before,
        )
        rows, columns = depth[here].shape
        mask = _make_blend_weights(rows)[:, None] * _make_blend_weights(columns)
        depth[here] += mask * (_resize_cubic(patch_depth, rows, columns) - depth[here])
    return _resize_cubic(depth, height, width)


def _fit_linear(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """x's multiple with an offset that is nearest to y, as numpy fits it in float32: of a million values that vary
    little beside their mean it determines one of the two unknowns only, and is off by up to 0.01."""
    slope, offset = np.polyfit(source.ravel(), target.ravel(), 1, full=True)[0]  # full: without its warning of that
    return slope * source + offset


def _estimate_double(image: np.ndarray, size: int, estimate: EstimateFunction, merge: MergeFunction) -> np.ndarray:
    """Depth (SIZE, SIZE) in 0..1 of the image seen at once, with the detail of it at `size`."""
    coarse, fine = (_resize_cubic(estimate(image, s), MERGE_SIZE, MERGE_SIZE) for s in (RECEPTIVE_FIELD, size))
    return _normalize_depth(merge(_normalize_depth(coarse), _normalize_depth(fine)))


def _normalize_depth(depth: np.ndarray) -> np.ndarray:
    least, largest = depth.min(), depth.max()
    return (depth - least) / (largest - least) if largest > least else np.zeros_like(depth)


def _resize_cubic(image: np.ndarray, height: int, width: int) -> np.ndarray:
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)


def _compute_edge_strength(image: np.ndarray) -> np.ndarray:
    gray = image[..., :3] @ np.array([0.2989, 0.5870, 0.1140])
    return np.abs(cv2.Sobel(gray, cv2.CV_64F, 0, 1, ksize=3)) + np.abs(cv2.Sobel(gray, cv2.CV_64F, 1, 0, ksize=3))


def _find_best_size(image: np.ndarray) -> tuple[int, float]:
    """The largest size at which an edge is in sight nearly everywhere, and the share of the image near edges."""
    side = min(image.shape[:2])
    edges = cv2.resize(_compute_edge_strength(image), (side, side))
    edges = (edges >= edges.min() + 0.4 * np.ptp(edges)).astype(np.float64)
    sight = np.ones((RECEPTIVE_FIELD // _SEARCH_STRIDE,) * 2)
    best, small = RECEPTIVE_FIELD // _SEARCH_STRIDE, edges
    for size in range(
        best, min(_MAX_SIZE, 3 * max(image.shape[:2])) // _SEARCH_STRIDE, RECEPTIVE_FIELD // (2 * _SEARCH_STRIDE)
    ):
        small = (cv2.resize(_max_pool(edges, max(side // size, 1)), (size, size)) >= 0.5).astype(np.float64)
        if (1 - cv2.dilate(small, sight)).mean() > _MAX_EDGELESS_SHARE:
            break
        best = size
    return best * _SEARCH_STRIDE, float(cv2.dilate(small, np.ones((3, 3))).mean())


def _max_pool(x: np.ndarray, size: int) -> np.ndarray:
    """The largest of each n x n, what is left over filled up with 0."""
    height, width = (-(-side // size) for side in x.shape)
    whole = np.zeros((height * size, width * size))
    whole[: x.shape[0], : x.shape[1]] = x
    return whole.reshape(height, size, width, size).max(axis=(1, 3))


def _select_patches(image: np.ndarray, step: int) -> list[tuple[int, int, int]]:
    """Squares (left, top, side) that have as many edges as the image on average, as large as that lets them be, the
    largest first."""
    edges = _compute_edge_strength(image)
    edges[edges < (edges[edges > 0].mean() if edges.any() else 0)] = 0
    average = edges.mean()
    sums = cv2.integral(edges)
    height, width = edges.shape

    def dense(left: int, top: int, side: int) -> bool:
        a, b = sums[top, [left, left + side]], sums[top + side, [left, left + side]]
        return bool((b[1] - b[0] - a[1] + a[0]) / side**2 >= average)

    patches = []
    for left in range(0, width - 2 * RECEPTIVE_FIELD, round(0.75 * RECEPTIVE_FIELD)):
        for top in range(0, height - 2 * RECEPTIVE_FIELD, round(0.75 * RECEPTIVE_FIELD)):
            part = left, top, 2 * RECEPTIVE_FIELD
            if not dense(*part):
                continue
            while True:
                x, y, side = part[0] - step // 2, part[1] - step // 2, part[2] + step
                if x < 0 or y < 0 or y + side > height or x + side > width or not dense(x, y, side):
                    break
                part = x, y, side
            patches.append(part)
    return sorted(patches, key=lambda part: -part[2])


def _make_blend_weights(count: int) -> np.ndarray:
    """Weights (count,) of a part's pixels, 0 at its ends: one from 15 to 85 percent, blurred with a sixteenth."""
    n = 3000
    box = np.zeros((1, n), np.float32)
    box[:, int(0.15 * n) : n - int(0.15 * n)] = 1
    sigma = n // 16
    soft = cv2.GaussianBlur(box, (2 * int(np.ceil(2 * sigma)) + 1, 1), sigma)
    return cv2.resize(soft, (count, 1), interpolation=cv2.INTER_LINEAR)[0]


LERES_WEIGHTS = WeightsFile(
    "lllyasviel/Annotators",
    "res101.pth",
    webui_folder="leres",
    license="Adobe Research, non-commercial",
    size=530760553,
    sha256="1d696b2ef3e8336b057d0c15bc82d2fecef821bfebe5ef9d7671a5ec5dde520b",
    source=f"{HORDE_CATALOG}; lllyasviel/Annotators @ 5bc80eec2b4f",
)
DEPTH_MERGE_WEIGHTS = WeightsFile(
    "lllyasviel/Annotators",
    "latest_net_G.pth",
    webui_folder="leres",
    license="academic use only, non-commercial",
    size=318268048,
    sha256="50ec735d74ed6499562d898f41b49343e521808b8dae589aa3c2f5c9ac9f7462",
    source=f"{HORDE_CATALOG}; lllyasviel/Annotators @ 5bc80eec2b4f",
)


@preprocessor("depth_leres", makes="depth", weights=LERES_WEIGHTS, batched=True)
class DepthLeres:
    """Depth up to scale and offset; the map's values (H, W) are more where it is farther.

    The network is fed as ControlNet 1.1 feeds it, whose depth models have seen maps made so: BGR, 0..255 where its
    authors' code has RGB in 0..1. Of the way from the nearest to the farthest, the first `remove_near` percent become
    white, the last `remove_background` percent black."""

    def __init__(self, device: str | Device, library: Library):
        from ...annotators import leres

        self.network = library.load_network(LERES_WEIGHTS, leres.load, device)

    def __call__(
        self,
        images: np.ndarray,
        remove_near: Annotated[float, Range(0, 100)] = 0,
        remove_background: Annotated[float, Range(0, 100)] = 0,
    ) -> list[DepthRenderer]:
        height, width = images.shape[1:3]
        depth = self.network(normalize_imagenet(pad_to_multiple(images, 32)[..., ::-1]))[:, 0, :height, :width].numpy()
        return [_make_depth_renderer(one, remove_near, remove_background) for one in depth]


@preprocessor(
    "depth_leres++", makes="depth", weights=(LERES_WEIGHTS, DEPTH_MERGE_WEIGHTS), aliases=("depth_leres_boost",)
)
class DepthLeresBoosted:
    """The same in more detail, merged from several sizes: for images from some 500 pixels on, and slow. Its values
    are in 0..1, more where it is farther."""

    def __init__(self, device: str | Device, library: Library):
        from ...annotators import depth_merge, leres

        self.network = library.load_network(LERES_WEIGHTS, leres.load, device)
        self.merge_network = library.load_network(DEPTH_MERGE_WEIGHTS, depth_merge.load, device)

    def __call__(
        self,
        image: np.ndarray,
        remove_near: Annotated[float, Range(0, 100)] = 0,
        remove_background: Annotated[float, Range(0, 100)] = 0,
    ) -> DepthRenderer:
        return _make_depth_renderer(boost_depth(image, self._estimate, self._merge), remove_near, remove_background)

    def _estimate(self, image: np.ndarray, size: int) -> np.ndarray:
        small = cv2.resize(np.ascontiguousarray(image[..., ::-1]), (size, size))
        depth = self.network(normalize_imagenet(small[None]))[0, 0].numpy()
        return cv2.resize(depth, image.shape[1::-1], interpolation=cv2.INTER_CUBIC)

    def _merge(self, coarse: np.ndarray, fine: np.ndarray) -> np.ndarray:
        import torch

        both = torch.from_numpy(np.stack([coarse, fine])[None]).float() * 2 - 1
        return (self.merge_network(both)[0, 0].numpy() + 1) / 2


def _make_depth_renderer(depth: np.ndarray, near_percent: float, background_percent: float) -> DepthRenderer:
    def at(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        inside = depth[:height, :width]
        return _clip_depth(
            depth_to_uint16(inside, inside.min(), inside.max()), near_percent, background_percent
        ), inside

    return at


def _clip_depth(distance: np.ndarray, near_percent: float, background_percent: float) -> np.ndarray:
    """Distance (H, W) uint16 as an image, near white, without so many percent of the nearest and farthest."""
    white = np.where(distance > near_percent / 100 * 65535, 65535 - distance, np.uint16(65535))
    return np.where(white > background_percent / 100 * 65535, white, np.uint16(0))
