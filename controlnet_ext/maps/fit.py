"""A map brought to the size of the picture that it is to guide."""

from __future__ import annotations

import numpy as np

from ..files.sizes import check_pixels
from .resize import resize

WAYS = ("crop", "stretch", "fill")


def fit(pixels: np.ndarray, height: int, width: int, how: str = "crop") -> np.ndarray:
    """A map (H, W, 3), or (H, W, 4) with a mask as its fourth channel, uint8, at exactly (height, width).

    "crop" covers the size and keeps the middle; "stretch" distorts; "fill" stays inside and gives the rest the median
    colour of the four border rows and columns (a mask: 255). What `resize` says of marks and colours holds. A map of
    that size is returned as it is. Raises ValueError for another `how`, shape or type, and where more than 64
    megapixels would be needed, as when a strip is to cover a square."""
    if pixels.ndim != 3 or pixels.shape[2] not in (3, 4) or 0 in pixels.shape or pixels.dtype != np.uint8:
        raise ValueError(f"a map to fit is (H, W, 3) or (H, W, 4) of uint8, not {pixels.shape} of {pixels.dtype}")
    k = _scale(pixels.shape[0], pixels.shape[1], height, width, how)
    check_pixels(height, width, "the size to fit")
    if pixels.shape[:2] == (height, width):
        return pixels
    if how == "stretch":
        return resize(pixels, height, width)
    rows, columns = (max(1, round(side * k)) for side in pixels.shape[:2])
    check_pixels(rows, columns, f"a map of {pixels.shape[1]}x{pixels.shape[0]} scaled to {how} {width}x{height}")
    scaled = resize(pixels, rows, columns)
    top, left = abs(rows - height) // 2, abs(columns - width) // 2
    if how == "crop":
        return np.ascontiguousarray(scaled[top : top + height, left : left + width])
    return _filled(scaled, height, width, top, left)


def around(pixels: np.ndarray, mask: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture and the mask of what is to be painted in it, both (H, W, 3), fitted by "fill": what is added around is
    white in the mask."""
    both = fit(np.concatenate([pixels, mask[..., :1]], axis=2), height, width, "fill")
    return np.ascontiguousarray(both[..., :3]), np.repeat(both[..., 3:], 3, axis=2)


def pixel_perfect(height: int, width: int, target_height: int, target_width: int, how: str = "crop") -> int:
    """The `resolution` at which a picture (height, width) gives a map that `fit` neither enlarges nor shrinks."""
    return max(1, round(_scale(height, width, target_height, target_width, how) * min(height, width)))


def _scale(height: int, width: int, target_height: int, target_width: int, how: str) -> float:
    if how not in WAYS:
        raise ValueError(f"fit {how!r} is none of: {', '.join(WAYS)}")
    if min(height, width, target_height, target_width) < 1:
        raise ValueError(f"{width}x{height} cannot be fitted to {target_width}x{target_height}: sizes begin at 1")
    scales = target_height / height, target_width / width
    return min(scales) if how == "fill" else max(scales)


def _filled(pixels: np.ndarray, height: int, width: int, top: int, left: int) -> np.ndarray:
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    colour = np.median(border, axis=0).astype(np.uint8)
    if np.isin(border, (0, 255)).all():
        colour = np.where(colour == 255, np.uint8(255), np.uint8(0))  # half black, half white: 127 is neither
    colour[3:] = 255
    canvas = np.tile(colour, (height, width, 1))
    canvas[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    return canvas
