"""Soft edges by TEED, and Anyline, which adds fine lines to them; the network is in annotators/teed.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import cv2
import numpy as np

from ...files.hub import DINKSTER_HASHES, HORDE_CATALOG, WeightsFile
from ..backends.tensors import pad_to_multiple, to_batch_tensor
from ..parameters import Range
from ..registry import preprocessor
from .lineart import lineart_standard
from .soft_edges import quantize_edges, to_uint8

if TYPE_CHECKING:
    from ..backends.torch import Device
    from ..library import Library

TEED_WEIGHTS = WeightsFile(
    "bdsqlsz/qinglong_controlnet-lllite",
    "Annotators/7_model.pth",
    webui_folder="TEED",
    license="MIT",
    size=247232,
    sha256="b9037964149c55156c6adbffdfbd7e8ca7d2ef2a4d90573520efa7f3a1aacf06",
    source=f"{HORDE_CATALOG}; {DINKSTER_HASHES}",
)
MTEED_WEIGHTS = WeightsFile(
    "TheMistoAI/MistoLine",
    "Anyline/MTEED.pth",
    webui_folder="TEED",
    # LICENSE of TheMistoAI/ComfyUI-Anyline @ 40d7b290fe82, with the same file; README of MistoLine @ 0e532135a450
    license="MIT by ComfyUI-Anyline's LICENSE, non-commercial by MistoLine's README",
    size=248298,
    sha256="a3c2d8a8ce9422555c787160bd46362d761325a565333c0e3f6a53e0bae2abdb",
    source=DINKSTER_HASHES,
)
MIN_SPECK_PIXELS = 12  # pixels: Anyline drops objects of fewer than 36 in an array of 3 equal channels


def _load_edge_detector(
    file: WeightsFile, device: str | Device, library: Library
) -> Callable[[np.ndarray, int], np.ndarray]:
    """TEED's edges (B, H, W) uint8 of images (B, H, W, 3) uint8, RGB: the sigmoid of the mean of its four logits, in
    `steps` steps, or as they are if that is 0."""
    from ...annotators import teed

    network = library.load_network(file, teed.load, device)

    def edges(images: np.ndarray, steps: int) -> np.ndarray:
        height, width = images.shape[1:3]
        logits = sum(network(to_batch_tensor(pad_to_multiple(images, 4)))) / 4
        soft = logits.sigmoid()[:, 0, :height, :width].numpy()
        return to_uint8(quantize_edges(soft, steps) if steps else soft)

    return edges


@preprocessor("softedge_teed", makes="soft edges", weights=TEED_WEIGHTS, batched=True)
class Teed:
    """TEED's edges, white on black, in `safe_steps` steps, or soft with 0."""

    def __init__(self, device: str | Device, library: Library):
        self.detect_edges = _load_edge_detector(TEED_WEIGHTS, device, library)

    def __call__(self, images: np.ndarray, safe_steps: Annotated[int, Range(0, 10)] = 2) -> np.ndarray:
        return self.detect_edges(images, safe_steps)


@preprocessor("softedge_anyline", makes="soft edges", weights=MTEED_WEIGHTS, batched=True)
class Anyline:
    """Anyline: MTEED's edges with the lines of lineart_standard laid over them as light over light. Made for a
    resolution of 1280.

    As in TheMistoAI's own (custom nodes of ComfyUI): lines over a Gaussian of 2 pixels, threshold 3, specks dropped.
    sd-webui-controlnet and controlnet_aux 0.0.10 merge wrongly, the first so that no line is left."""

    def __init__(self, device: str | Device, library: Library):
        self.detect_edges = _load_edge_detector(MTEED_WEIGHTS, device, library)

    def __call__(self, images: np.ndarray, safe_steps: Annotated[int, Range(0, 10)] = 2) -> list[np.ndarray]:
        return [
            blend_screen(edges, extract_lines(image))
            for edges, image in zip(self.detect_edges(images, safe_steps), images, strict=True)
        ]


def extract_lines(image: np.ndarray) -> np.ndarray:
    """The lines of an image (H, W, 3), (H, W) uint8, less those of fewer than 12 pixels that touch side by side."""
    lines = lineart_standard(image, sigma=2.0, intensity_threshold=3)
    _, labels, stats, _ = cv2.connectedComponentsWithStats((lines > 0).astype(np.uint8), connectivity=4)
    large = stats[:, cv2.CC_STAT_AREA] >= MIN_SPECK_PIXELS
    return np.where(large[labels], lines, np.uint8(0))


def blend_screen(base: np.ndarray, top: np.ndarray) -> np.ndarray:
    """1 - (1 - base)(1 - top), both (H, W) uint8 for 0..1."""
    dark = (255 - base.astype(np.float32)) * (255 - top.astype(np.float32)) / 255
    return (255 - dark).astype(np.uint8)
