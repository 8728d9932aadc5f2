"""Surfaces of people by DensePose, from a TorchScript file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from ...files.hub import HUB_FILE_LIST, WeightsFile
from ..backends.tensors import pad_to_multiple
from ..backends.torchscript import load_torchscript_network
from ..registry import Traits, preprocessor
from .transformers_segmentation import upsample_argmax

if TYPE_CHECKING:
    from torch import Tensor

    from ..backends.torch import Device
    from ..library import Library

DENSEPOSE_WEIGHTS = WeightsFile(
    "LayerNorm/DensePose-TorchScript-with-hint-image",
    "densepose_r50_fpn_dl.torchscript",
    webui_folder="densepose",
    license="Apache-2.0",
    approx_size=265_000_000,
    sha256="4f7260daa498ce8d4b4679f0692ef2f1f426e39121a907181eab37b8b0585878",
    source=f"the Hub's page of the file @ 779f201; {HUB_FILE_LIST} 6544642",
)
# Güler et al., DensePose, arXiv 1802.00434, by the numbers of its surfaces (detectron2, projects/DensePose,
# densepose/evaluation/densepose_coco_evaluation.py)
BODY_PARTS = (
    "background", "torso", "torso", "right hand", "left hand", "left foot", "right foot", "upper leg right",
    "upper leg left", "upper leg right", "upper leg left", "lower leg right", "lower leg left", "lower leg right",
    "lower leg left", "upper arm left", "upper arm right", "upper arm left", "upper arm right", "lower arm left",
    "lower arm right", "lower arm left", "lower arm right", "head", "head",
)  # fmt: skip
_MAX_ASPECT_RATIO = 100  # how many times as long as wide an image may be for the network


@dataclass(frozen=True, eq=False)
class DensePoseSurfaces:
    """The surfaces of people in an image: `labels (H, W)` uint8 holds the number of the body part, 0 where there is
    none, named `names[number]`; `uv (H, W, 2)` float32 the place on it."""

    labels: np.ndarray
    uv: np.ndarray
    names: tuple[str, ...] = BODY_PARTS


def _detect_surfaces(network: Callable[[np.ndarray], tuple[Any, ...]], image: np.ndarray) -> DensePoseSurfaces:
    """The surfaces of all people in an image (H, W, 3) uint8, RGB, of whom the later found hide the others."""
    height, width = image.shape[:2]
    boxes, coarse, fine, u, v = network(pad_to_multiple(image[None], 1, -(-max(height, width) // _MAX_ASPECT_RATIO))[0])
    labels, uv = np.zeros((height, width), np.uint8), np.zeros((height, width, 2), np.float32)
    for i, box in enumerate(boxes):
        left, top = box[:2].long().tolist()
        across, down = (box[2:] - box[:2]).long().tolist()
        if across <= 0 or down <= 0:
            continue
        parts = upsample_argmax(fine[i : i + 1], down, across)[0] * (
            upsample_argmax(coarse[i : i + 1], down, across)[0] > 0
        )
        surface = np.zeros((down, across, 2), np.float32)
        for part in np.unique(parts[parts > 0]).tolist():
            here = parts == part
            for axis, x in enumerate((u, v)):
                surface[here, axis] = _upsample(x[i : i + 1, part : part + 1], down, across)[here]
        cut = slice(max(-top, 0), max(height - top, 0)), slice(max(-left, 0), max(width - left, 0))
        place = slice(max(top, 0), max(top + down, 0)), slice(max(left, 0), max(left + across, 0))
        mask = parts[cut] > 0
        labels[place][mask], uv[place][mask] = parts[cut][mask], surface[cut][mask]
    return DensePoseSurfaces(labels, uv)


def _upsample(x: Tensor, height: int, width: int) -> np.ndarray:
    from torch.nn.functional import interpolate

    return interpolate(x.float(), (height, width), mode="bilinear", align_corners=False)[0, 0].numpy()


def compute_part_colors(colormap: int) -> np.ndarray:
    """The colours (25, 3) uint8, RGB, of the parts in one of OpenCV's tables."""
    levels = (np.arange(len(BODY_PARTS)) * (255 / 24)).astype(np.uint8)
    return cv2.applyColorMap(levels[:, None], colormap)[:, 0, ::-1]


def make_densepose_preprocessor(get_colors: Callable[[], np.ndarray]) -> type:
    """Make a class for `preprocessor` whose maps show surfaces in these colors, `(parts, 3)` uint8."""

    class DensePose:
        """The parts of people's surfaces, each in its color. Needs torchvision. Values: `DensePoseSurfaces`."""

        def __init__(self, device: str | Device, library: Library):
            self.network = load_torchscript_network(library, DENSEPOSE_WEIGHTS, device)

        def __call__(self, image: np.ndarray) -> Callable[[int, int], tuple[np.ndarray, DensePoseSurfaces]]:
            surfaces = _detect_surfaces(self.network, image)

            def result(height: int, width: int) -> tuple[np.ndarray, DensePoseSurfaces]:
                labels, uv = (np.ascontiguousarray(x[:height, :width]) for x in (surfaces.labels, surfaces.uv))
                surface = DensePoseSurfaces(labels, uv)
                return get_colors()[surface.labels], surface

            return result

    return DensePose


def make_viridis_colors() -> np.ndarray:
    """Return the colors of the parts, `(parts, 3)` uint8: purple torsos to yellow heads on viridis's first purple."""
    return compute_part_colors(cv2.COLORMAP_VIRIDIS)


def make_parula_colors() -> np.ndarray:
    """Return the colors of the parts, `(parts, 3)` uint8: blue torsos to yellow heads on black."""
    return np.concatenate([np.zeros((1, 3), np.uint8), compute_part_colors(cv2.COLORMAP_PARULA)[1:]])


SIDED_PARTS = Traits(mirroring="sided")  # a left arm has another color than a right one

# sd-webui-controlnet's label has "pruple"
preprocessor(
    "densepose",
    makes="segmentation",
    label="densepose (pruple bg & purple torso)",
    weights=DENSEPOSE_WEIGHTS,
    traits=SIDED_PARTS,
)(make_densepose_preprocessor(make_viridis_colors))
preprocessor(
    "densepose_parula",
    makes="segmentation",
    label="densepose_parula (black bg & blue torso)",
    weights=DENSEPOSE_WEIGHTS,
    traits=SIDED_PARTS,
)(make_densepose_preprocessor(make_parula_colors))
