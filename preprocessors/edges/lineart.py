"""Line drawings of photographs: by a network (annotators/lineart.py), and without one by a blurred image's difference.

Those of anime are in `lineart_anime`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import cv2
import numpy as np

from ...files.hub import DINKSTER_HASHES, HORDE_CATALOG, WeightsFile
from ..backends.tensors import pad_to_multiple, to_batch_tensor
from ..parameters import Range
from ..registry import Traits, preprocessor
from .soft_edges import to_uint8

if TYPE_CHECKING:
    from ..backends.torch import Device
    from ..library import Library


LINEART_WEIGHTS = WeightsFile(
    "lllyasviel/Annotators",
    "sk_model.pth",
    webui_folder="lineart",
    license="MIT",
    size=17173511,
    sha256="c686ced2a666b4850b4bb6ccf0748031c3eda9f822de73a34b8979970d90f0c6",
    source=f"{HORDE_CATALOG}; {DINKSTER_HASHES}",
)
LINEART_COARSE_WEIGHTS = WeightsFile(
    "lllyasviel/Annotators",
    "sk_model2.pth",
    webui_folder="lineart",
    license="MIT",
    size=17173511,
    sha256="30a534781061f34e83bb9406b4335da4ff2616c95d22a585c1245aa8363e74e0",
    source=f"{HORDE_CATALOG}; {DINKSTER_HASHES}",
)


def _load_line_detector(
    file: WeightsFile, device: str | Device, library: Library
) -> Callable[[np.ndarray], np.ndarray]:
    """White lines on black (B, H, W) uint8 of images (B, H, W, 3) uint8, RGB."""
    from ...annotators import lineart

    network = library.load_network(file, lineart.load, device)

    def lines(images: np.ndarray) -> np.ndarray:
        height, width = images.shape[1:3]
        paper = network(to_batch_tensor(pad_to_multiple(images, 4, min_size=8)) / 255)[:, 0, :height, :width].numpy()
        return 255 - to_uint8(paper)

    return lines


@preprocessor("lineart", makes="lines", label="lineart_realistic", weights=LINEART_WEIGHTS, batched=True)
class Lineart:
    """A photograph as a fine line drawing, white on black."""

    def __init__(self, device: str | Device, library: Library):
        self.detect_lines = _load_line_detector(LINEART_WEIGHTS, device, library)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return self.detect_lines(images)


@preprocessor("lineart_coarse", makes="lines", weights=LINEART_COARSE_WEIGHTS, batched=True)
class LineartCoarse:
    """A photograph as a line drawing of few strokes, white on black."""

    def __init__(self, device: str | Device, library: Library):
        self.detect_lines = _load_line_detector(LINEART_COARSE_WEIGHTS, device, library)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return self.detect_lines(images)


# without sliders as in sd-webui-controlnet: webuiapi sends 64 with each unit, which would blur everything
@preprocessor(
    "lineart_standard",
    makes="lines",
    label="lineart_standard (from white bg & black line)",
    traits=Traits(has_threshold_sliders=False, is_default_for_kind=True),
)
def lineart_standard(
    image: np.ndarray,
    *,  # webui has no sliders for these two, so they are no threshold_a and threshold_b
    sigma: Annotated[float, Range(0.1, 100)] = 6.0,
    intensity_threshold: Annotated[float, Range(0, 255)] = 8,
) -> np.ndarray:
    """Draw lines `(H, W)`, white on black, by how much darker each pixel of an image `(H, W, 3)` is than its
    surroundings (a Gaussian of `sigma` pixels), in the channel where the difference is least; scaled so that the
    median of what exceeds `intensity_threshold` becomes 127.

    Bit-equal to controlnet_aux 0.0.10's LineartStandardDetector at the same size.
    """
    pixels = image.astype(np.float32)
    darker = (cv2.GaussianBlur(pixels, (0, 0), sigma) - pixels).min(axis=2).clip(0, 255)
    lines = darker[darker > intensity_threshold]
    middle = np.median(lines) if lines.size else 0
    return (darker / np.float32(max(16, middle)) * 127).clip(0, 255).astype(np.uint8)
