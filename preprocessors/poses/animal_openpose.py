from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ...files.weights_file import ADDED, WeightsFile
from ..backends.onnx import onnx_network
from ..registry import preprocessor
from .coco import SCORE
from .drawing import drawn
from .dwpose import DETECTOR
from .key_points import Animal, Poses, found
from .rtmpose import ANIMALS, boxes
from .simcc import points

if TYPE_CHECKING:
    from ..backends.torch import Device
    from ..library import Library

ANIMAL = WeightsFile(
    "bdsqlsz/qinglong_controlnet-lllite",
    "Annotators/rtmpose-m_simcc-ap10k_pt-aic-coco_210e-256x256-7a041aa1_20230206.onnx",
    folder="openpose",
    licence="Apache-2.0",
    size=54478120,
    sha256="1cfd1c86e0d9e5d5f95178bcd95ee9a4e8386a624cd3c57519f27ff58cac7f28",
    source=f"{ADDED} d2ecf9c",
)


@preprocessor("animal_openpose", makes="pose", weights=(DETECTOR, ANIMAL))
class AnimalPose:
    """Animals as lines, by RTMPose trained on AP-10K. Points that score below 0.3 are absent, and lines that need them;
    the ComfyUI pack draws all."""

    def __init__(self, device: str | Device, library: Library):
        self.detector = onnx_network(library, DETECTOR, device)
        self.network = onnx_network(library, ANIMAL, device)

    def __call__(self, image: np.ndarray) -> Callable[[int, int], Any]:
        animals = points(self.network, image, boxes(self.detector, image, ANIMALS))
        animals[animals[..., 2] < SCORE] = np.nan

        def result(height: int, width: int) -> tuple[np.ndarray, Poses]:
            parts = (Animal(found(one.tolist(), height, width)) for one in animals)
            poses = Poses((), tuple(parts), width, height)
            return drawn(poses, height, width), poses

        return result
