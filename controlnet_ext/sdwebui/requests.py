"""img2img with a mask: what the pipeline gets to see of the picture, and how its result comes back into it. Sizes and
borders as in AUTOMATIC1111 1.10.1 (modules/processing.py, modules/masking.py)."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from ..maps.fit import fit
from .fields import Fields

FILLINGS = (("fill", "fill"), ("original", "original"), ("latent noise", "noise"), ("latent nothing", "nothing"))
PADDING, BLUR = 256, 64  # pixels at most
SQUARES = (1024, 256, 64, 16, 4, 2)  # pixels over which `filled` takes averages, one after the other
Box = tuple[int, int, int, int]  # left, top, right, bottom


@dataclass(frozen=True, eq=False)
class Repaint:
    """`image` (h, w, 3) and `mask` (h, w), white where to repaint, as large as the picture to be made. Its pixels come
    into `canvas` (H, W, 3) at `box` as far as `shows` (H, W) is white. `content` is what the masked part begins with,
    of `FILLINGS`; `only_masked`: the box is that of the mask, else the whole canvas."""

    image: np.ndarray
    mask: np.ndarray
    content: str
    canvas: np.ndarray
    shows: np.ndarray
    box: Box
    only_masked: bool
    blur: float
    padding: int
    inverted: bool

    def pasted(self, pixels: np.ndarray) -> np.ndarray:
        """The canvas with the picture made (h, w, 3)."""
        left, top, right, bottom = self.box
        result = self.canvas.copy()
        result[top:bottom, left:right] = fit(pixels, bottom - top, right - left, "crop")
        share = self.shows[..., None].astype(np.float32) / 255
        return np.rint(result * share + self.canvas * (1 - share)).astype(np.uint8)

    def part(self, pixels: np.ndarray, how: str) -> np.ndarray:
        """What a control image, which comes to the canvas by `how`, shows of the box."""
        left, top, right, bottom = self.box
        height, width = self.canvas.shape[:2]
        return np.ascontiguousarray(fit(pixels, height, width, how)[top:bottom, left:right])


def read_repaint(
    fields: Fields, image: np.ndarray, mask: np.ndarray, height: int, width: int, how: str
) -> Repaint | None:
    """What the request says of repainting `image` (H, W, 3) where `mask` (H, W, 3) is white, for pictures of that size;
    `how` the image comes to it. None where only the masked part is wanted and there is none."""
    both = fields.get("mask_blur")
    blurs = [fields.number(f"mask_blur_{axis}", default=4, low=0, high=BLUR) for axis in ("x", "y")]
    if both is not None:
        blurs = [fields.number("mask_blur", default=4, low=0, high=BLUR)] * 2
    padding = fields.whole("inpaint_full_res_padding", default=0, low=0, high=PADDING)
    content = fields.choice("inpainting_fill", among=FILLINGS, default="fill")
    only_masked = fields.flag("inpaint_full_res", default=True)
    inverted = fields.flag("inpainting_mask_invert")
    soft = _blurred(mask[..., 0], *blurs)
    if only_masked:
        if not soft.any():
            return None
        canvas, shows, box = image, soft, _box(soft, padding, height, width)
        left, top, right, bottom = box
        seen = fit(np.ascontiguousarray(image[top:bottom, left:right]), height, width, "fill")
        soft = fit(cv2.merge([soft[top:bottom, left:right]] * 3), height, width, "fill")[..., 0]
    else:
        canvas = seen = fit(image, height, width, how)
        soft = fit(cv2.merge([soft] * 3), height, width, how)[..., 0]
        shows, box = np.minimum(soft.astype(np.uint16) * 2, 255).astype(np.uint8), (0, 0, width, height)
    begins = seen if content == "original" else filled(seen, soft)
    return Repaint(begins, soft, content, canvas, shows, box, only_masked, max(blurs), padding, inverted)


def painted(fields: Fields, mask: np.ndarray, image: np.ndarray) -> np.ndarray:
    """The mask (H, W, 3) in black and white, as large as its image, inverted where the request says so."""
    sized = cv2.resize(mask, image.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    white = (cv2.cvtColor(sized, cv2.COLOR_RGB2GRAY) > 127) != fields.flag("inpainting_mask_invert")
    return cv2.merge([np.where(white, np.uint8(255), np.uint8(0))] * 3)


def filled(pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The picture (H, W, 3) with the masked part in the colours around it, the nearer the more."""
    kept = 1 - mask[..., None].astype(np.float32) / 255
    own = pixels * kept
    found = np.full_like(own, 127)
    for square in SQUARES:
        there = np.atleast_3d(_averaged(kept, square))
        near = _averaged(own, square) / np.maximum(there, 1e-6)
        found += np.minimum(4 * there, 1) * (near - found)
    return np.rint(found * (1 - kept) + own).clip(0, 255).astype(np.uint8)


def _averaged(x: np.ndarray, square: int) -> np.ndarray:
    height, width = x.shape[:2]
    small = cv2.resize(x, (max(width // square, 1), max(height // square, 1)), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)


def _blurred(mask: np.ndarray, x: float, y: float) -> np.ndarray:
    for sigma, across in ((x, True), (y, False)):
        if sigma:
            side = 2 * int(2.5 * sigma + 0.5) + 1
            mask = cv2.GaussianBlur(mask, (side, 1) if across else (1, side), sigma)
    return mask


def _box(mask: np.ndarray, padding: int, height: int, width: int) -> Box:
    """Around what is not black, with so much beside it, and of the shape of (height, width) as far as the mask goes."""
    spans = []
    for axis, limit in ((0, mask.shape[1]), (1, mask.shape[0])):
        (places,) = np.nonzero(mask.any(axis=axis))
        spans.append((max(int(places[0]) - padding, 0), min(int(places[-1]) + 1 + padding, limit)))
    (left, right), (top, bottom) = spans
    left, right = _grown(left, right, int((bottom - top) * width / height), mask.shape[1])
    top, bottom = _grown(top, bottom, int((right - left) * height / width), mask.shape[0])
    return left, top, right, bottom


def _grown(start: int, stop: int, length: int, limit: int) -> tuple[int, int]:
    """At least that long about its middle, moved to lie in 0..limit, or all of it."""
    more = max(length - (stop - start), 0)
    start, stop = start - more // 2, stop + more - more // 2
    move = max(-start, 0) - max(stop - limit, 0) if stop - start <= limit else -start
    return max(start + move, 0), min(stop + move, limit)
