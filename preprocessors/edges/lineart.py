from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ...files.weights_file import DINKSTER, HORDE, WeightsFile
from ..registry import preprocessor
from .soft_edges import extended, grey, tensor

if TYPE_CHECKING:
    from ..backends.torch import Device
    from ..library import Library

FINE = WeightsFile(
    "lllyasviel/Annotators",
    "sk_model.pth",
    folder="lineart",
    licence="MIT",
    size=17173511,
    sha256="c686ced2a666b4850b4bb6ccf0748031c3eda9f822de73a34b8979970d90f0c6",
    source=f"{HORDE}; {DINKSTER}",
)
COARSE = WeightsFile(
    "lllyasviel/Annotators",
    "sk_model2.pth",
    folder="lineart",
    licence="MIT",
    size=17173511,
    sha256="30a534781061f34e83bb9406b4335da4ff2616c95d22a585c1245aa8363e74e0",
    source=f"{HORDE}; {DINKSTER}",
)


def _lines(file: WeightsFile, device: str | Device, library: Library) -> Callable[[np.ndarray], np.ndarray]:
    """White lines on black (B, H, W) uint8 of pictures (B, H, W, 3) uint8, RGB."""
    from ...annotators import lineart

    network = library.network(file, lineart.load, device)

    def lines(images: np.ndarray) -> np.ndarray:
        height, width = images.shape[1:3]
        paper = network(tensor(extended(images, 4, least=8)) / 255)[:, 0, :height, :width].numpy()
        return 255 - grey(paper)

    return lines


@preprocessor("lineart", makes="lines", label="lineart_realistic", weights=FINE, stacks=True)
class Lineart:
    """A photograph as a fine line drawing, white on black."""

    def __init__(self, device: str | Device, library: Library):
        self.lines = _lines(FINE, device, library)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return self.lines(images)


@preprocessor("lineart_coarse", makes="lines", weights=COARSE, stacks=True)
class LineartCoarse:
    """A photograph as a line drawing of few strokes, white on black."""

    def __init__(self, device: str | Device, library: Library):
        self.lines = _lines(COARSE, device, library)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return self.lines(images)
