"""What is done to a picture after its run, as sd-webui-controlnet (@ 56cec5b) does it: inpaint_only puts the original's
own pixels back, recolor the lightness of its map."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import cv2
import numpy as np

from ..maps.fit import fit as fitted
from .inpainting import BLUR, pasted

Finish = Callable[[np.ndarray], np.ndarray]  # of a picture (H, W, 3) uint8 RGB
CHANNELS = {  # of the picture in another space, which the map replaces: the space, back, and its place
    "recolor_luminance": (cv2.COLOR_RGB2LAB, cv2.COLOR_LAB2RGB, 0),
    "recolor_intensity": (cv2.COLOR_RGB2HSV, cv2.COLOR_HSV2RGB, 2),
}


def finish_of(name: str, pixels: np.ndarray, mask: np.ndarray | None, how: str, blur: int = BLUR) -> Finish | None:
    """What the preprocessor of this canonical name does with the picture; most do nothing. `pixels` are its map and
    `mask` where to repaint, both (H, W, 3), which come to the picture's size by `how`; `blur` is that of `pasted`."""
    if name in ("inpaint_only", "inpaint_only+lama") and mask is not None:
        return partial(pasted, original=pixels, mask=mask, blur=blur, fit=how)
    if name in CHANNELS:
        return partial(recoloured, grey=pixels, name=name, how=how)
    return None


def recoloured(picture: np.ndarray, grey: np.ndarray, name: str, how: str = "crop") -> np.ndarray:
    """The picture (H, W, 3) with the lightness L of CIE Lab, or the V of HSV, of a map of the preprocessor `name`."""
    to, back, place = CHANNELS[name]
    changed = cv2.cvtColor(picture, to)
    changed[..., place] = fitted(grey, picture.shape[0], picture.shape[1], how)[..., 0]
    return cv2.cvtColor(changed, back)
