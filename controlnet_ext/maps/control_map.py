"""What a preprocessor gives: the image that a control model was trained to read, and its kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import check_choice

# Kinds of maps, and the words in the names of control models that read them (sd-webui-controlnet @ 56cec5b filters its
# list of models by these).
MODEL_NAME_WORDS = {
    "edges": ("canny",),
    "soft edges": ("softedge", "hed", "pidi"),
    "lines": ("lineart",),
    "straight lines": ("mlsd",),
    "scribble": ("scribble", "sketch"),
    "depth": ("depth",),
    "normals": ("normal",),
    "pose": ("openpose",),
    "face": ("mediapipe_face",),
    "segmentation": ("seg", "densepose"),
    "tile": ("tile", "blur"),
    "color": ("t2iadapter_color",),
    "luminance": ("recolor",),
    "shuffle": ("shuffle",),
    "inpaint": ("inpaint",),
    "embedding": ("ip-adapter", "revision", "t2iadapter_style"),
    "other": (),
}
MAP_KINDS = tuple(MODEL_NAME_WORDS)
_OLD_KINDS = {"colour": "color"}  # still read


def normalize_kind(kind: str) -> str:
    """Return the present name of a kind of map; names that are no old spelling stay."""
    return _OLD_KINDS.get(kind, kind)


@dataclass(frozen=True, eq=False)
class ControlMap:
    """A control map: `pixels` (H, W, 3) uint8 RGB, `kind` (one of KINDS), and in `values` what an image cannot hold:
    depth as floats (H, W), people with key points, an embedding; None where the image says all. `fine` is a grey
    image in 65,536 steps, (H, W) uint16, where it has them; pixels are its upper 8 bits. Raises ValueError on
    anything else."""

    pixels: np.ndarray
    kind: str
    values: Any = None
    pixels16: np.ndarray | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.pixels, np.ndarray):
            raise TypeError(f"pixels of a map are an array (H, W, 3) of uint8, not {type(self.pixels).__name__}")
        shape, dtype = self.pixels.shape, self.pixels.dtype
        if len(shape) != 3 or shape[2] != 3 or 0 in shape or dtype != np.uint8:
            raise ValueError(f"pixels {shape} {dtype} are no map: expected (H, W, 3) uint8, RGB")
        object.__setattr__(self, "kind", normalize_kind(self.kind) if isinstance(self.kind, str) else self.kind)
        check_choice("map kind", self.kind, MAP_KINDS)
        if self.pixels16 is not None and (self.pixels16.shape != shape[:2] or self.pixels16.dtype != np.uint16):
            raise ValueError(
                f"fine {self.pixels16.shape} {self.pixels16.dtype} of a map of {shape}: expected (H, W) uint16"
            )
