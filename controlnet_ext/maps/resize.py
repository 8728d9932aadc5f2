"""Maps are not photos: resizing one softly makes half-edges and classes that do not exist. This keeps what marks
are."""

from __future__ import annotations

import cv2
import numpy as np

# Golay's L, the structuring elements that thin a mark from eight sides, and E, a loose end. 1: part of the mark,
# -1: not, 0: either.
_SIDE = np.array([[-1, -1, -1], [0, 1, 0], [1, 1, 1]]), np.array([[0, -1, -1], [1, 1, -1], [0, 1, 0]])
_END = np.array([[-1, -1, -1], [-1, 1, -1], [0, 0, -1]]), np.array([[-1, -1, -1], [-1, 1, -1], [-1, 0, 0]])
_SIDES = [np.rot90(kernel, turn) for turn in range(4) for kernel in _SIDE]
_ENDS = [np.rot90(kernel, turn) for turn in range(4) for kernel in _END]
_DIRECTIONS = [np.diag((1, 1, 1)), np.fliplr(np.diag((1, 1, 1))), np.ones((1, 3)), np.ones((3, 1))]


def resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """The map (H, W, 3 or 4) uint8 at (height, width), the same array if it has that size.

    Fewer than 200 colours are classes and stay exactly those colours. Black and white stays 0 and 255, and where most
    marks are one pixel wide they stay so. All else is averaged when it shrinks and cubic when it grows. A fourth
    channel, a mask, goes the same way and becomes 0 or 255. Rules: sd-webui-controlnet @ 56cec5b, its high-quality
    resize. Three deviations: two colours that are not greys count as classes (there: black and white); outside the
    picture there is no mark (there: a line along the border is thinned away); after pruning, lines are thinned again
    (a room's edges enlarged 3 times: 26 squares of 2x2 pixels left, now 0)."""
    if pixels.shape[:2] == (height, width):
        return pixels
    growth = height * width - pixels.shape[0] * pixels.shape[1]
    picture = np.ascontiguousarray(pixels[..., :3])
    colours = _colours(picture)
    greys = colours == 2 and bool((picture == picture[..., :1]).all())
    soft = cv2.INTER_AREA if growth < 0 else cv2.INTER_CUBIC
    way = cv2.INTER_NEAREST if 1 < colours < 200 and not greys else soft
    if greys and picture.min() < 16 and picture.max() > 240:
        marks = np.ascontiguousarray(picture[..., 0])
        result = cv2.cvtColor(
            _marks(marks, cv2.resize(marks, (width, height), interpolation=way), growth > 0), cv2.COLOR_GRAY2RGB
        )
    else:
        result = cv2.resize(picture, (width, height), interpolation=way)
    if pixels.shape[2] == 3:
        return result
    mask = cv2.resize(np.ascontiguousarray(pixels[..., 3]), (width, height), interpolation=way)
    return np.dstack([result, np.where(mask > 127, np.uint8(255), np.uint8(0))])


def _colours(picture: np.ndarray) -> int:
    """How many colours a picture (H, W, 3) has; of more than 200 only that it has so many."""
    flat = picture.reshape(-1, 3)
    seen = np.zeros(1 << 24, bool)  # a tick for each possible colour, no sorting; untouched pages cost nothing
    for some in (flat[::61], flat):  # a photo shows in the sample that it is one
        red, green, blue = some.T.astype(np.uint32)
        seen[red << 16 | green << 8 | blue] = True
        count = int(np.count_nonzero(seen))
        if count > 200:
            break
    return count


def _marks(before: np.ndarray, after: np.ndarray, larger: bool) -> np.ndarray:
    """The resized marks `after` (H, W) as 0 and 255, thin where those `before` were."""
    opened = cv2.morphologyEx(before, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    thin = 2 * np.count_nonzero(opened < before) > np.count_nonzero(before > 127)
    if thin:
        after = _ridges(after)
    after = cv2.threshold(after, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)[1]
    return _thinned(after, larger) if thin else after


def _ridges(x: np.ndarray) -> np.ndarray:
    """x where it is the highest of its neighbours in one direction of four, 0 elsewhere."""
    highest = [cv2.dilate(x, line.astype(np.uint8)) == x for line in _DIRECTIONS]
    return np.where(np.logical_or.reduce(highest), x, np.uint8(0))


def _thinned(marks: np.ndarray, prune: bool) -> np.ndarray:
    """Marks (0 and 255) as lines one pixel wide; with `prune`, less the loose ends that enlarging adds."""
    marks = cv2.copyMakeBorder(marks, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    marks = _lines(marks)
    if prune:
        marks = _lines(_without(marks, _ENDS))  # where ends forked, their root is two pixels wide
    return marks[1:-1, 1:-1]


def _lines(marks: np.ndarray) -> np.ndarray:
    for _ in range(32):
        thinner = _without(marks, _SIDES)
        if np.array_equal(thinner, marks):
            break
        marks = thinner
    return marks


def _without(marks: np.ndarray, patterns: list[np.ndarray]) -> np.ndarray:
    """Marks less the pixels where a pattern matches, one pattern after the other."""
    for pattern in patterns:
        marks = cv2.subtract(marks, cv2.morphologyEx(marks, cv2.MORPH_HITMISS, pattern.astype(np.int32)))
    return marks
