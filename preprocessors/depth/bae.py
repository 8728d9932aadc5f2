"""Normals by NormalBae (Bae et al., ICCV 2021), whose network is in annotators/normal_bae.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ...files.hub import HORDE_CATALOG, WeightsFile
from ..backends.tensors import pad_to_multiple
from ..backends.transformers import normalize_imagenet
from ..registry import Traits, preprocessor
from .normals_of_depth import encode_normals

if TYPE_CHECKING:
    from ..backends.torch import Device
    from ..library import Library

NORMAL_BAE_WEIGHTS = WeightsFile(
    "lllyasviel/Annotators",
    "scannet.pt",
    webui_folder="normal_bae",
    license="MIT",
    size=290767728,
    sha256="03dbf1600c51ee3d45c29f77b77bf1a3b7a24c3452dba62a4ae658f37330c209",
    source=f"{HORDE_CATALOG}; lllyasviel/Annotators @ 1e70a29f5d06",
)


@preprocessor(
    "normal_bae", makes="normals", weights=NORMAL_BAE_WEIGHTS, batched=True, traits=Traits(is_default_for_kind=True)
)
class NormalBae:
    """Normals for ControlNet 1.1. The map's values are the unit normals (H, W, 3), left, up and to the viewer."""

    def __init__(self, device: str | Device, library: Library):
        from ...annotators import normal_bae

        self.network = library.load_network(NORMAL_BAE_WEIGHTS, normal_bae.load, device)

    def __call__(self, images: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        height, width = images.shape[1:3]
        n = self.network(normalize_imagenet(pad_to_multiple(images, 32) / 255))[-1][:, :3, :height, :width]
        return [(encode_normals(one), one) for one in n.permute(0, 2, 3, 1).numpy()]
