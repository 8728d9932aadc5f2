"""Soft edges and scribbles by HED, whose network is in annotators/hed.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ...files.hub import DINKSTER_HASHES, HORDE_CATALOG, WeightsFile
from ..backends.tensors import pad_to_multiple, to_batch_tensor
from ..registry import preprocessor
from .soft_edges import quantize_edges, scribble_from_edges, to_uint8

if TYPE_CHECKING:
    from ..backends.torch import Device
    from ..library import Library

HED_WEIGHTS = WeightsFile(
    "lllyasviel/Annotators",
    "ControlNetHED.pth",
    webui_folder="hed",
    license="Apache-2.0",
    size=29444406,
    sha256="5ca93762ffd68a29fee1af9d495bf6aab80ae86f08905fb35472a083a4c7a8fa",
    source=f"{HORDE_CATALOG}; {DINKSTER_HASHES}",
)


def _load_edge_detector(device: str | Device, library: Library) -> Callable[[np.ndarray], np.ndarray]:
    """HED's edges (B, H, W) in 0..1, all depths together, of images (B, H, W, 3) uint8, RGB."""
    from ...annotators import hed

    network = library.load_network(HED_WEIGHTS, hed.load, device)

    def edges(images: np.ndarray) -> np.ndarray:
        height, width = images.shape[1:3]
        return hed.fuse_side_outputs(network(to_batch_tensor(pad_to_multiple(images, 1, min_size=16))))[
            :, 0, :height, :width
        ].numpy()

    return edges


@preprocessor("hed", makes="soft edges", label="softedge_hed", weights=HED_WEIGHTS, batched=True)
class Hed:
    """HED's edges, white on black."""

    def __init__(self, device: str | Device, library: Library):
        self.detect_edges = _load_edge_detector(device, library)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return to_uint8(self.detect_edges(images))


@preprocessor("hed_safe", makes="soft edges", label="softedge_hedsafe", weights=HED_WEIGHTS, batched=True)
class HedSafe:
    """HED's edges in the steps 0, 127 and 255."""

    def __init__(self, device: str | Device, library: Library):
        self.detect_edges = _load_edge_detector(device, library)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return to_uint8(quantize_edges(self.detect_edges(images)))


@preprocessor("scribble_hed", makes="scribble", weights=HED_WEIGHTS, batched=True, aliases=("fake_scribble",))
class HedScribble:
    """A drawing along HED's edges, 0 or 255."""

    def __init__(self, device: str | Device, library: Library):
        self.detect_edges = _load_edge_detector(device, library)

    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        return [scribble_from_edges(edges) for edges in to_uint8(self.detect_edges(images))]
