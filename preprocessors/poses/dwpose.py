""""""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ...files.hub import ADDED, WeightsFile
from ..backends.onnx import onnx_network
from ..registry import preprocessor
from .coco import SCORE, person
from .drawing import drawn
from .key_points import Animal, Poses, found
from .rtmpose import ANIMALS, PEOPLE, boxes, points

if TYPE_CHECKING:
    from ..backends.torch import Device
    from ..library import Library


DETECTOR = WeightsFile(
    "yzd-v/DWPose",
    "yolox_l.onnx",
    folder="openpose",
    licence="Apache-2.0",
    size=216746733,
    sha256="7860ae79de6c89a3c1eb72ae9a2756c0ccfbe04b7791bb5880afabd97855a411",
    source="ClockZinc/dwpose-for-controlnet @ 818a5a05760c, a copy",
)
WHOLE_BODY = WeightsFile(
    "yzd-v/DWPose",
    "dw-ll_ucoco_384.onnx",
    folder="openpose",
    licence="Apache-2.0",
    size=134399116,
    sha256="724f4ff2439ed61afb86fb8a1951ec39c6220682803b4a8bd4f598cd913b1843",
    source="yzd-v/DWPose @ f7c16a3d45ad",
)
BODY = WeightsFile("bukuroo/RTMPose-ONNX", "rtmpose-m.onnx", folder="openpose", licence="Apache-2.0")


@preprocessor("dw_openpose_full", makes="pose", weights=(DETECTOR, WHOLE_BODY))
class DwPose:
    """Bodies, hands and faces of people, by DWPose: a detector, then the points in each box.

    Where no person is detected the map is empty; sd-webui-controlnet looks at the whole picture if it holds another
    thing."""

    def __init__(self, device: str | Device, library: Library):
        self.detector = onnx_network(library, DETECTOR, device)
        self.network = onnx_network(library, WHOLE_BODY, device)

    def __call__(
        self,
        image: np.ndarray,
        *,
        body: bool = True,
        hands: bool = True,
        face: bool = True,
        scale_sticks: bool = False,
    ) -> Callable[[int, int], Any]:
        people = points(self.network, image, boxes(self.detector, image, PEOPLE))

        def result(height: int, width: int) -> tuple[np.ndarray, Poses]:
            poses = Poses(tuple(person(one, height, width) for one in people), (), width, height)
            return drawn(poses, height, width, body=body, hands=hands, face=face, scale_sticks=scale_sticks), poses

        return result


@preprocessor("rtmpose", makes="pose", weights=(DETECTOR, BODY))
class RtmPose:
    """Bodies of people, by RTMPose: a detector, then the points in each box."""

    def __init__(self, device: str | Device, library: Library):
        self.detector = onnx_network(library, DETECTOR, device)
        self.network = onnx_network(library, BODY, device)

    def __call__(self, image: np.ndarray, *, scale_sticks: bool = False) -> Callable[[int, int], Any]:
        people = points(self.network, image, boxes(self.detector, image, PEOPLE))

        def result(height: int, width: int) -> tuple[np.ndarray, Poses]:
            poses = Poses(tuple(person(one, height, width) for one in people), (), width, height)
            return drawn(poses, height, width, scale_sticks=scale_sticks), poses

        return result


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
