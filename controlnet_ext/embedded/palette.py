"""The colours that captions name, and which of them a picture shows."""

from __future__ import annotations

import cv2
import numpy as np

# sRGB 0..255. Things take the first ten; grounds may also be grey or brown.
PALETTE = {
    "red": (214, 40, 40),
    "orange": (245, 130, 32),
    "yellow": (250, 215, 50),
    "green": (50, 150, 60),
    "cyan": (60, 200, 210),
    "blue": (40, 80, 200),
    "purple": (130, 60, 170),
    "pink": (245, 140, 185),
    "white": (243, 243, 240),
    "black": (28, 28, 32),
    "grey": (128, 128, 128),
    "brown": (120, 72, 40),
}
THING_COLOURS = tuple(PALETTE)[:10]
LIGHTNESS_SHARE = 0.6  # light changes lightness more than hue, so lightness counts for less


def _lab(rgb: np.ndarray) -> np.ndarray:
    """CIE Lab (N, 3) of sRGB 0..255 (N, 3), lightness scaled by LIGHTNESS_SHARE."""
    lab = cv2.cvtColor(rgb.astype(np.float32)[None] / 255, cv2.COLOR_RGB2LAB)[0]
    return lab * np.array([LIGHTNESS_SHARE, 1, 1], np.float32)


def majority_colour(pixels: np.ndarray, mask: np.ndarray) -> str:
    """The name in THING_COLOURS nearest to most of the pixels (H, W, 3) RGB uint8 inside the mask (H, W) bool."""
    if not mask.any():
        raise ValueError("an empty mask has no colour: give a mask with at least one pixel")
    named = _lab(np.array([PALETTE[name] for name in THING_COLOURS]))
    seen = _lab(pixels[mask])
    nearest = ((seen[:, None] - named[None]) ** 2).sum(2).argmin(1)
    return THING_COLOURS[int(np.bincount(nearest, minlength=len(named)).argmax())]
