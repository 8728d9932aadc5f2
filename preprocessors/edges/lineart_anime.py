"""Line drawings of anime and manga, by the networks in annotators/lineart_anime.py and annotators/manga_line.py.

Those of photographs are in `lineart`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

from ...files.hub import DINKSTER_HASHES, HORDE_CATALOG, WeightsFile
from ..backends.tensors import pad_to_multiple, to_batch_tensor
from ..registry import preprocessor

if TYPE_CHECKING:
    from ..backends.torch import Device
    from ..library import Library


LINEART_ANIME_WEIGHTS = WeightsFile(
    "lllyasviel/Annotators",
    "netG.pth",
    webui_folder="lineart_anime",
    license="MIT",
    size=217631959,
    sha256="ccabdcc3f5cf3c07cf65d58776acb21df7dfda825cdc70c9766a93fd62bfc488",
    source=f"{HORDE_CATALOG}; {DINKSTER_HASHES}",
)
SIZE_MULTIPLE = 256  # of both sides, which the network halves eight times


@preprocessor("lineart_anime", makes="lines", weights=LINEART_ANIME_WEIGHTS, batched=True)
class LineartAnime:
    """Anime as a line drawing, white on black. As ControlNet does it, the network sees the image distorted to
    multiples of 256."""

    def __init__(self, device: str | Device, library: Library):
        from ...annotators import lineart_anime

        self.network = library.load_network(LINEART_ANIME_WEIGHTS, lineart_anime.load, device)

    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        size = images.shape[2], images.shape[1]
        input_size = tuple(-(-side // SIZE_MULTIPLE) * SIZE_MULTIPLE for side in size)
        batch = np.stack([cv2.resize(image, input_size, interpolation=cv2.INTER_CUBIC) for image in images])
        papers = self.network(to_batch_tensor(batch) / 127.5 - 1)[:, 0].numpy() * 127.5 + 127.5
        papers = [cv2.resize(paper, size, interpolation=cv2.INTER_CUBIC) for paper in papers]
        return [255 - paper.clip(0, 255).astype(np.uint8) for paper in papers]


MANGA_LINE_WEIGHTS = WeightsFile(
    "lllyasviel/Annotators",
    "erika.pth",
    webui_folder="manga_line",
    license="MIT",
    size=172789563,
    sha256="badbd6baf013cefbd98993307b02cc14a26c770d067416e4fdecc8720b88feeb",
    source=f"{HORDE_CATALOG}; {DINKSTER_HASHES}",
)


@preprocessor("lineart_anime_denoise", makes="lines", weights=MANGA_LINE_WEIGHTS, batched=True)
class LineartAnimeDenoise:
    """The structural lines of manga and anime, without screen tones, white on black, found in the image's grey."""

    def __init__(self, device: str | Device, library: Library):
        from ...annotators import manga_line

        self.network = library.load_network(MANGA_LINE_WEIGHTS, manga_line.load, device)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        height, width = images.shape[1:3]
        gray = np.stack([cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in pad_to_multiple(images, 16)])
        paper = self.network(to_batch_tensor(gray[..., None]))[:, 0, :height, :width].numpy()
        return 255 - paper.clip(0, 255).astype(np.uint8)
