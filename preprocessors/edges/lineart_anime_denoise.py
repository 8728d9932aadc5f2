from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

from ...files.weights_file import DINKSTER, HORDE, WeightsFile
from ..registry import preprocessor
from .soft_edges import extended, tensor

if TYPE_CHECKING:
    from ..backends.torch import Device
    from ..library import Library

MANGA = WeightsFile(
    "lllyasviel/Annotators",
    "erika.pth",
    folder="manga_line",
    licence="MIT",
    size=172789563,
    sha256="badbd6baf013cefbd98993307b02cc14a26c770d067416e4fdecc8720b88feeb",
    source=f"{HORDE}; {DINKSTER}",
)


@preprocessor("lineart_anime_denoise", makes="lines", weights=MANGA, stacks=True)
class LineartAnimeDenoise:
    """The structural lines of manga and anime, without screen tones, white on black, found in the picture's grey."""

    def __init__(self, device: str | Device, library: Library):
        from ...annotators import manga_line

        self.network = library.network(MANGA, manga_line.load, device)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        height, width = images.shape[1:3]
        grey = np.stack([cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in extended(images, 16)])
        paper = self.network(tensor(grey[..., None]))[:, 0, :height, :width].numpy()
        return 255 - paper.clip(0, 255).astype(np.uint8)
