"""Sizes of maps: resize without changing what marks mean, fit to the size of an image, and the sizes of detectors.

Soft resizing, as for photos, would make half-edges and classes that do not exist. The size at which a detector works is
sd-webui-controlnet's, so that the same resolution gives the same map.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from ..errors import check_choice
from ..files.image_formats import check_pixels, compute_working_size

# Golay's L, the structuring elements that thin a mark from eight sides, and E, a loose end. 1: part of the mark,
# -1: not, 0: either.
_THINNING_PATTERNS = np.array([[-1, -1, -1], [0, 1, 0], [1, 1, 1]]), np.array([[0, -1, -1], [1, 1, -1], [0, 1, 0]])
_LOOSE_END_PATTERNS = (
    np.array([[-1, -1, -1], [-1, 1, -1], [0, 0, -1]]),
    np.array([[-1, -1, -1], [-1, 1, -1], [-1, 0, 0]]),
)
_THINNING_KERNELS = [np.rot90(kernel, turn) for turn in range(4) for kernel in _THINNING_PATTERNS]
_LOOSE_END_KERNELS = [np.rot90(kernel, turn) for turn in range(4) for kernel in _LOOSE_END_PATTERNS]
_DIRECTIONS = [np.diag((1, 1, 1)), np.fliplr(np.diag((1, 1, 1))), np.ones((1, 3)), np.ones((3, 1))]


def resize_map(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """The map (H, W, 3 or 4) uint8 at (height, width), the same array if it has that size.

    Fewer than 200 colours are classes and stay exactly those colours. Black and white stays 0 and 255, and where most
    marks are one pixel wide they stay so. All else is averaged when it shrinks and cubic when it grows. A fourth
    channel, a mask, goes the same way and becomes 0 or 255. Rules: sd-webui-controlnet @ 56cec5b, its high-quality
    resize. Three deviations: two colours that are not greys count as classes (there: black and white); outside the
    image there is no mark (there: a line along the border is thinned away); after pruning, lines are thinned again
    (a room's edges enlarged 3 times: 26 squares of 2x2 pixels left, now 0)."""
    if pixels.shape[:2] == (height, width):
        return pixels
    growth = height * width - pixels.shape[0] * pixels.shape[1]
    image = np.ascontiguousarray(pixels[..., :3])
    colors = _count_colors(image)
    grays = colors == 2 and bool((image == image[..., :1]).all())
    soft = cv2.INTER_AREA if growth < 0 else cv2.INTER_CUBIC
    way = cv2.INTER_NEAREST if 1 < colors < 200 and not grays else soft
    if grays and image.min() < 16 and image.max() > 240:
        marks = np.ascontiguousarray(image[..., 0])
        result = cv2.cvtColor(
            _binarize_marks(marks, cv2.resize(marks, (width, height), interpolation=way), growth > 0),
            cv2.COLOR_GRAY2RGB,
        )
    else:
        result = cv2.resize(image, (width, height), interpolation=way)
    if pixels.shape[2] == 3:
        return result
    mask = cv2.resize(np.ascontiguousarray(pixels[..., 3]), (width, height), interpolation=way)
    return np.dstack([result, np.where(mask > 127, np.uint8(255), np.uint8(0))])


def _count_colors(image: np.ndarray) -> int:
    """Count the distinct colors of an image `(H, W, 3)`, up to 201."""
    flat = image.reshape(-1, 3)
    ticks = np.zeros(1 << 24, bool)  # a tick for each possible colour, no sorting; untouched pages cost nothing
    for some in (flat[::61], flat):  # a photo shows in the sample that it is one
        red, green, blue = some.T.astype(np.uint32)
        ticks[red << 16 | green << 8 | blue] = True
        count = int(np.count_nonzero(ticks))
        if count > 200:
            break
    return count


def _binarize_marks(before: np.ndarray, after: np.ndarray, is_larger: bool) -> np.ndarray:
    """The resized marks `after` (H, W) as 0 and 255, thin where those `before` were."""
    opening = cv2.morphologyEx(before, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    thin = 2 * np.count_nonzero(opening < before) > np.count_nonzero(before > 127)
    if thin:
        after = _suppress_non_maxima(after)
    after = cv2.threshold(after, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)[1]
    return _thin_marks(after, is_larger) if thin else after


def _suppress_non_maxima(x: np.ndarray) -> np.ndarray:
    """x where it is the highest of its neighbours in one direction of four, 0 elsewhere."""
    highest = [cv2.dilate(x, line.astype(np.uint8)) == x for line in _DIRECTIONS]
    return np.where(np.logical_or.reduce(highest), x, np.uint8(0))


def _thin_marks(marks: np.ndarray, prune: bool) -> np.ndarray:
    """Marks (0 and 255) as lines one pixel wide; with `prune`, less the loose ends that enlarging adds."""
    marks = cv2.copyMakeBorder(marks, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    marks = _thin_until_stable(marks)
    if prune:
        marks = _thin_until_stable(
            _remove_patterns(marks, _LOOSE_END_KERNELS)
        )  # where ends forked, their root is two pixels wide
    return marks[1:-1, 1:-1]


def _thin_until_stable(marks: np.ndarray) -> np.ndarray:
    for _ in range(32):
        thinner = _remove_patterns(marks, _THINNING_KERNELS)
        if np.array_equal(thinner, marks):
            break
        marks = thinner
    return marks


def _remove_patterns(marks: np.ndarray, patterns: list[np.ndarray]) -> np.ndarray:
    """Marks less the pixels where a pattern matches, one pattern after the other."""
    for pattern in patterns:
        marks = cv2.subtract(marks, cv2.morphologyEx(marks, cv2.MORPH_HITMISS, pattern.astype(np.int32)))
    return marks


FIT_MODES = ("crop", "stretch", "fill")


def fit(pixels: np.ndarray, height: int, width: int, mode: str = "crop", place: float = 0.5) -> np.ndarray:
    """A map (H, W, 3), or (H, W, 4) with a mask as its fourth channel, uint8, at exactly (height, width).

    "crop" covers the size and keeps the middle, or with another `place` (0..1) what lies so far from the left or the
    top; "stretch" distorts; "fill" stays inside and gives the rest the median colour of the four border rows and
    columns (a mask: 255). What `resize` says of marks and colours holds. A map of
    that size is returned as it is. Raises ValueError for another `how`, shape or type, and where more than 64
    megapixels would be needed, as when a strip is to cover a square."""
    if pixels.ndim != 3 or pixels.shape[2] not in (3, 4) or 0 in pixels.shape or pixels.dtype != np.uint8:
        raise ValueError(f"a map to fit is (H, W, 3) or (H, W, 4) of uint8, not {pixels.shape} of {pixels.dtype}")
    return _fit_as(pixels, pixels.shape[:2], height, width, mode, place)


def fit_map_of_image(
    pixels: np.ndarray,
    image_size: tuple[int, int],
    height: int,
    width: int,
    mode: str = "crop",
    place: float = 0.5,
) -> np.ndarray:
    """Return a map (H, W, 3) uint8 at (height, width), of the same part of the image as `fit` leaves of an image of
    `image_size` (height, width).

    Raises ValueError as `fit` does, and where `check_same_aspect` does."""
    check_same_aspect(pixels.shape[:2], image_size)
    return _fit_as(pixels, image_size, height, width, mode, place)


# Sides are rounded to multiples of: controlnet_aux 64 (util.py, resize_image), MiDaS 32, DINOv2's patches 14, a VAE 8
SIDE_STEPS = (64, 32, 14, 8)
MIN_COARSE_SIDE = 256  # pixels: below, steps over 8 would allow nearly every shape


def check_same_aspect(map_size: tuple[int, int], image_size: tuple[int, int]) -> None:
    """Raise ValueError unless a map of this size (height, width) can show a whole image of that size.

    Its sides are those of the image times one factor, rounded to whole pixels or to multiples of one of `SIDE_STEPS`:
    controlnet_aux's maps of 640x480 are 704x512."""
    steps = [step for step in SIDE_STEPS if step == 8 or min(map_size) >= MIN_COARSE_SIDE]
    steps = [step for step in steps if not any(side % step for side in map_size)]
    is_cut_to_steps = any(max(abs(a - b) for a, b in zip(map_size, image_size, strict=True)) < step for step in steps)
    slack = max(1, *(step / 2 for step in steps)) if steps else 1
    lowest = max((side - slack) / own for side, own in zip(map_size, image_size, strict=True))
    highest = min((side + slack) / own for side, own in zip(map_size, image_size, strict=True))
    if lowest > highest and not is_cut_to_steps:
        sizes = [f"{width}x{height}" for height, width in (map_size, image_size)]
        raise ValueError(
            f"the map is {sizes[0]} pixels and its image {sizes[1]}, of another aspect ratio: "
            "make the map of the whole image"
        )


@dataclass(frozen=True)
class FitGeometry:
    """The place where `fit` lays an image: scaled to `rows` x `columns` pixels, its corner at `top` and `left`, which
    are negative where a part is cut."""

    rows: int
    columns: int
    top: int
    left: int

    @classmethod
    def compute(
        cls, height: int, width: int, target_height: int, target_width: int, mode: str = "crop", place: float = 0.5
    ) -> FitGeometry:
        """Return the geometry of an image (height, width) that is fitted. Raises ValueError as `fit` does."""
        k = _fit_scale(height, width, target_height, target_width, mode)
        if mode == "stretch":
            return cls(target_height, target_width, 0, 0)
        rows, columns = (max(1, round(side * k)) for side in (height, width))
        top, left = int(abs(rows - target_height) * place), int(abs(columns - target_width) * place)
        return cls(rows, columns, -top, -left) if mode == "crop" else cls(rows, columns, top, left)


def _fit_as(
    pixels: np.ndarray, image_size: tuple[int, ...], height: int, width: int, mode: str, place: float
) -> np.ndarray:
    """Fit a map to (height, width) as an image of `image_size` (height, width) is fitted."""
    geometry = FitGeometry.compute(image_size[0], image_size[1], height, width, mode, place)
    check_pixels(height, width, "the size to fit")
    if pixels.shape[:2] == image_size == (height, width):
        return pixels
    rows, columns = geometry.rows, geometry.columns
    if mode == "stretch":
        return resize_map(pixels, rows, columns)
    check_pixels(rows, columns, f"a map of {image_size[1]}x{image_size[0]} scaled to {mode} {width}x{height}")
    resized_pixels = resize_map(pixels, rows, columns)
    if mode == "crop":
        top, left = -geometry.top, -geometry.left
        return np.ascontiguousarray(resized_pixels[top : top + height, left : left + width])
    return _fill_border(resized_pixels, height, width, geometry.top, geometry.left)


def crop_map(
    pixels: np.ndarray,
    box: tuple[int, int, int, int],
    height: int,
    width: int,
    target: tuple[int, int, int, int],
) -> np.ndarray:
    """Return what lies in `box` (left, top, right, bottom) of a map (H, W, 3 or 4) uint8, resized to `target` of a map
    of this size, around which its border is continued. Without resizing pixels stay as they are."""
    left, top, right, bottom = box
    x, y, x_end, y_end = target
    part = resize_map(np.ascontiguousarray(pixels[top:bottom, left:right]), y_end - y, x_end - x)
    if target == (0, 0, width, height):
        return part
    return np.pad(part, ((y, height - y_end), (x, width - x_end), (0, 0)), mode="edge")


def fit_for_outpainting(pixels: np.ndarray, mask: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """An image and the mask of what is to be painted in it, both (H, W, 3), fitted by "fill": what is added around is
    white in the mask."""
    both = fit(np.concatenate([pixels, mask[..., :1]], axis=2), height, width, "fill")
    return np.ascontiguousarray(both[..., :3]), np.repeat(both[..., 3:], 3, axis=2)


def compute_fit_resolution(height: int, width: int, target_height: int, target_width: int, mode: str = "crop") -> int:
    """The `resolution` at which an image (height, width) gives a map that `fit` neither enlarges nor shrinks."""
    return max(1, round(_fit_scale(height, width, target_height, target_width, mode) * min(height, width)))


def _fit_scale(height: int, width: int, target_height: int, target_width: int, mode: str) -> float:
    check_choice("fit", mode, FIT_MODES)
    if min(height, width, target_height, target_width) < 1:
        raise ValueError(f"{width}x{height} cannot be fitted to {target_width}x{target_height}: sizes begin at 1")
    scales = target_height / height, target_width / width
    return min(scales) if mode == "fill" else max(scales)


def _fill_border(pixels: np.ndarray, height: int, width: int, top: int, left: int) -> np.ndarray:
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    color = np.median(border, axis=0).astype(np.uint8)
    if np.isin(border, (0, 255)).all():
        color = np.where(color == 255, np.uint8(255), np.uint8(0))  # half black, half white: 127 is neither
    color[3:] = 255
    canvas = np.tile(color, (height, width, 1))
    canvas[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    return canvas


def resize_for_detection(pixels: np.ndarray, resolution: int) -> tuple[np.ndarray, int, int]:
    """Resize an image `(H, W, 3)` so that its short side is `resolution` pixels (cubic when enlarged, by area when
    shrunk), and extend it on the right and below with its edge pixels to multiples of 64. Return the image, and the
    height and width before the extension. Raises ValueError as `compute_working_size` does."""
    height, width = compute_working_size(pixels.shape[0], pixels.shape[1], resolution)
    enlarging = height * width > pixels.shape[0] * pixels.shape[1]
    if (height, width) != pixels.shape[:2]:
        way = cv2.INTER_CUBIC if enlarging else cv2.INTER_AREA
        pixels = cv2.resize(pixels, (width, height), interpolation=way)
    bottom, right = -height % 64, -width % 64
    return cv2.copyMakeBorder(pixels, 0, bottom, 0, right, cv2.BORDER_REPLICATE), height, width
