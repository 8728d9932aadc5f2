from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ...files.hub import DINKSTER, HORDE, WeightsFile
from ..registry import preprocessor
from .soft_edges import extended, grey, safe, scribble, tensor

if TYPE_CHECKING:
    from ..backends.torch import Device
    from ..library import Library

HED = WeightsFile(
    "lllyasviel/Annotators",
    "ControlNetHED.pth",
    folder="hed",
    licence="Apache-2.0",
    size=29444406,
    sha256="5ca93762ffd68a29fee1af9d495bf6aab80ae86f08905fb35472a083a4c7a8fa",
    source=f"{HORDE}; {DINKSTER}",
)


def _edges(device: str | Device, library: Library) -> Callable[[np.ndarray], np.ndarray]:
    """HED's edges (B, H, W) in 0..1, all depths together, of pictures (B, H, W, 3) uint8, RGB."""
    from ...annotators import hed

    network = library.network(HED, hed.load, device)

    def edges(images: np.ndarray) -> np.ndarray:
        height, width = images.shape[1:3]
        return hed.together(network(tensor(extended(images, 1, least=16))))[:, 0, :height, :width].numpy()

    return edges


@preprocessor("hed", makes="soft edges", label="softedge_hed", weights=HED, stacks=True)
class Hed:
    """HED's edges, white on black."""

    def __init__(self, device: str | Device, library: Library):
        self.edges = _edges(device, library)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return grey(self.edges(images))


@preprocessor("hed_safe", makes="soft edges", label="softedge_hedsafe", weights=HED, stacks=True)
class HedSafe:
    """HED's edges in the steps 0, 127 and 255."""

    def __init__(self, device: str | Device, library: Library):
        self.edges = _edges(device, library)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return grey(safe(self.edges(images)))


@preprocessor("scribble_hed", makes="scribble", weights=HED, stacks=True)
class HedScribble:
    """A drawing along HED's edges, 0 or 255."""

    def __init__(self, device: str | Device, library: Library):
        self.edges = _edges(device, library)

    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        return [scribble(edges) for edges in grey(self.edges(images))]
