"""What a preprocessor gives: the image that a control model was trained to read, and its kind."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import check_choice

if TYPE_CHECKING:
    from PIL.Image import Image

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
OLD_KINDS = {"colour": "color"}  # still read


def normalize_kind(kind: str) -> str:
    """Return the present name of a kind of map; names that are no old spelling stay."""
    return OLD_KINDS.get(kind, kind)


@dataclass(frozen=True, eq=False, repr=False)
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

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, in PIL's order."""
        return self.pixels.shape[1], self.pixels.shape[0]

    @property
    def image(self) -> Image:
        """The map as a new PIL image, RGB."""
        from PIL import Image

        return Image.fromarray(self.pixels)

    def save(self, path: str | os.PathLike[str], overwrite: bool = False, sixteen_bit: bool = False) -> None:
        """Write the map to a .png, .webp or .jpg; its folder is made if need be.

        With `sixteen_bit` a PNG has the 65,536 gray levels of `pixels16`. Raises FileExistsError where the file exists,
        without `overwrite`, and ValueError for another suffix or a map without 16 bits.
        """
        from ..files.image_writer import write_image

        if sixteen_bit and self.pixels16 is None:
            raise ValueError(f"a map of {self.kind} has no 16 bits")
        os.makedirs(os.path.dirname(os.fspath(path)) or ".", exist_ok=True)
        pixels = self.pixels16 if sixteen_bit and self.pixels16 is not None else self.pixels
        write_image(path, pixels, overwrite=overwrite)

    def __repr__(self) -> str:
        width, height = self.size
        values = self.values
        if hasattr(values, "shape"):  # an array or a tensor
            more = f", values {tuple(values.shape)} {values.dtype}"
        else:
            more = "" if values is None else f", values {type(values).__name__}"
        return f"<ControlMap of {self.kind}, {width}x{height}{', 16 bits' if self.pixels16 is not None else ''}{more}>"

    def _repr_png_(self) -> bytes:
        """Return the PNG that a notebook shows."""
        from ..files.image_writer import encode_image

        return encode_image("map.png", self.pixels)


MAX_SAMPLED_SIDE = 256  # pixels of a side that are looked at
GRAY_KINDS = ("edges", "soft edges", "lines", "straight lines", "scribble", "depth")
TWO_TONE_KINDS = ("edges", "straight lines", "scribble")
DARK_KINDS = ("pose", "face")


def describe_misfit(pixels: np.ndarray, kind: str) -> str | None:
    """Return what pixels (H, W, 3) uint8 have that maps of this kind plainly have not, None where they may be one.

    It tells photos from maps, not one kind of map from another; the bounds are far from those of real maps.
    """
    step = max(1, max(pixels.shape[:2]) // MAX_SAMPLED_SIDE)
    sample = pixels[::step, ::step].reshape(-1, 3).astype(np.int16)
    brightest, darkest = sample.max(axis=1), sample.min(axis=1)
    if kind in GRAY_KINDS and (brightest - darkest).mean() > 12:
        return "colors"
    if kind in TWO_TONE_KINDS and ((brightest > 40) & (brightest < 215)).mean() > 0.5:
        return "gray tones all over"
    if kind in DARK_KINDS and (brightest > 40).mean() > 0.7:
        return "no black ground"
    if kind == "normals":
        length = np.linalg.norm(sample / 127.5 - 1, axis=1)
        lengths = length[(brightest > 8) & (length > 0.1)]  # neither black nor gray ground
        if len(lengths) and np.median(np.abs(lengths - 1)) > 0.1:
            return "colors that are no directions"
    if kind == "segmentation" and len(np.unique(sample >> 3, axis=0)) > 1000:
        return "thousands of colors"
    return None
