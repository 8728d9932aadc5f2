"""Normals by DSINE (Bae and Davison, CVPR 2024), whose network is in annotators/dsine.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import numpy as np

from ...files.hub import HUB_COMMIT_PAGE, WeightsFile
from ..backends.transformers import normalize_imagenet
from ..parameters import Range
from ..registry import preprocessor
from .normals_of_depth import encode_normals

if TYPE_CHECKING:
    from ..backends.torch import Device
    from ..library import Library

DSINE_WEIGHTS = WeightsFile(
    "bdsqlsz/qinglong_controlnet-lllite",
    "Annotators/dsine.pt",
    webui_folder="normal_dsine",
    license="Imperial College London's, non-commercial",
    size=291298581,
    sha256="629472c66ea9ec83bab6ba7c957ad7d983bb9c91063a54ad74ff5b8229cbf22f",
    source=f"{HUB_COMMIT_PAGE} 5e7baad",
)


@preprocessor("normal_dsine", makes="normals", weights=DSINE_WEIGHTS, batched=True)
class NormalDsine:
    """Normals for ControlNet 1.1, refined `iterations` times, of a camera whose longer side spans `fov` degrees. The
    map's values are the unit normals (H, W, 3), left, up and to the viewer. As in its authors' code the image stands
    in the middle of black up to multiples of 32."""

    def __init__(self, device: str | Device, library: Library):
        from ...annotators import dsine

        self.network = library.load_network(DSINE_WEIGHTS, dsine.load, device)

    def __call__(
        self,
        images: np.ndarray,
        fov: Annotated[float, Range(1, 170)] = 60,
        iterations: Annotated[int, Range(1, 20)] = 5,
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        import torch

        height, width = images.shape[1:3]
        top, left = -height % 32 // 2, -width % 32 // 2
        sides = (0, 0), (top, -height % 32 - top), (left, -width % 32 - left), (0, 0)
        focal = max(height, width) / 2 / np.tan(np.radians(fov) / 2)
        camera = torch.tensor([focal, left + width / 2, top + height / 2], dtype=torch.float32)
        n = self.network(normalize_imagenet(np.pad(images, sides) / 255), camera, torch.tensor(iterations))[-1]
        n = n[:, :, top : top + height, left : left + width].permute(0, 2, 3, 1).numpy()
        return [(encode_normals(one), one) for one in n]
