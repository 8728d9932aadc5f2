from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ...files.hub import HORDE, WeightsFile
from ..backends.transformers import normalised
from ..edges.soft_edges import extended
from ..registry import preprocessor
from .normals_of_depth import coloured

if TYPE_CHECKING:
    from ..backends.torch import Device
    from ..library import Library

BAE = WeightsFile(
    "lllyasviel/Annotators",
    "scannet.pt",
    folder="normal_bae",
    licence="MIT",
    size=290767728,
    sha256="03dbf1600c51ee3d45c29f77b77bf1a3b7a24c3452dba62a4ae658f37330c209",
    source=f"{HORDE}; lllyasviel/Annotators @ 1e70a29f5d06",
)


@preprocessor("normal_bae", makes="normals", weights=BAE, stacks=True)
class NormalBae:
    """Normals for ControlNet 1.1. The map's values are the unit normals (H, W, 3), left, up and to the viewer."""

    def __init__(self, device: str | Device, library: Library):
        from ...annotators import normal_bae

        self.network = library.network(BAE, normal_bae.load, device)

    def __call__(self, images: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        height, width = images.shape[1:3]
        n = self.network(normalised(extended(images, 32) / 255))[-1][:, :3, :height, :width]
        return [(coloured(one), one) for one in n.permute(0, 2, 3, 1).numpy()]
