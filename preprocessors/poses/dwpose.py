"""Poses of people by DWPose and RTMPose, and of animals by RTMPose: boxes, then key points, by ONNX networks.

The networks' inputs and outputs are read in `rtmpose`; `drawing` draws the poses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ...files.hub import HUB_COMMIT_PAGE, WeightsFile
from ..backends.onnx import load_onnx_network
from ..registry import preprocessor
from .coco import MIN_KEY_POINT_SCORE, person_from_coco
from .drawing import render_pose
from .key_points import Animal, Poses, key_points_from_pixels
from .rtmpose import ANIMAL_CLASSES, PERSON_CLASSES, detect_boxes, detect_key_points

if TYPE_CHECKING:
    from ..backends.torch import Device
    from ..library import Library


YOLOX_WEIGHTS = WeightsFile(
    "yzd-v/DWPose",
    "yolox_l.onnx",
    webui_folder="openpose",
    license="Apache-2.0",
    size=216746733,
    sha256="7860ae79de6c89a3c1eb72ae9a2756c0ccfbe04b7791bb5880afabd97855a411",
    source="ClockZinc/dwpose-for-controlnet @ 818a5a05760c, a copy",
)
DWPOSE_WEIGHTS = WeightsFile(
    "yzd-v/DWPose",
    "dw-ll_ucoco_384.onnx",
    webui_folder="openpose",
    license="Apache-2.0",
    size=134399116,
    sha256="724f4ff2439ed61afb86fb8a1951ec39c6220682803b4a8bd4f598cd913b1843",
    source="yzd-v/DWPose @ f7c16a3d45ad",
)
RTMPOSE_WEIGHTS = WeightsFile("bukuroo/RTMPose-ONNX", "rtmpose-m.onnx", webui_folder="openpose", license="Apache-2.0")


@preprocessor("dw_openpose_full", makes="pose", weights=(YOLOX_WEIGHTS, DWPOSE_WEIGHTS))
class DwPose:
    """Bodies, hands and faces of people, by DWPose: a detector, then the points in each box.

    Where no person is detected the map is empty; sd-webui-controlnet looks at the whole image if it holds another
    thing."""

    def __init__(self, device: str | Device, library: Library):
        self.detector = load_onnx_network(library, YOLOX_WEIGHTS, device)
        self.network = load_onnx_network(library, DWPOSE_WEIGHTS, device)

    def __call__(
        self,
        image: np.ndarray,
        *,
        body: bool = True,
        hands: bool = True,
        face: bool = True,
        scale_sticks: bool = False,
    ) -> Callable[[int, int], Any]:
        people = detect_key_points(self.network, image, detect_boxes(self.detector, image, PERSON_CLASSES))

        def result(height: int, width: int) -> tuple[np.ndarray, Poses]:
            poses = Poses(tuple(person_from_coco(one, height, width) for one in people), (), width, height)
            return render_pose(
                poses, height, width, body=body, hands=hands, face=face, scale_sticks=scale_sticks
            ), poses

        return result


@preprocessor("rtmpose", makes="pose", weights=(YOLOX_WEIGHTS, RTMPOSE_WEIGHTS))
class RtmPose:
    """Bodies of people, by RTMPose: a detector, then the points in each box."""

    def __init__(self, device: str | Device, library: Library):
        self.detector = load_onnx_network(library, YOLOX_WEIGHTS, device)
        self.network = load_onnx_network(library, RTMPOSE_WEIGHTS, device)

    def __call__(self, image: np.ndarray, *, scale_sticks: bool = False) -> Callable[[int, int], Any]:
        people = detect_key_points(self.network, image, detect_boxes(self.detector, image, PERSON_CLASSES))

        def result(height: int, width: int) -> tuple[np.ndarray, Poses]:
            poses = Poses(tuple(person_from_coco(one, height, width) for one in people), (), width, height)
            return render_pose(poses, height, width, scale_sticks=scale_sticks), poses

        return result


RTMPOSE_ANIMAL_WEIGHTS = WeightsFile(
    "bdsqlsz/qinglong_controlnet-lllite",
    "Annotators/rtmpose-m_simcc-ap10k_pt-aic-coco_210e-256x256-7a041aa1_20230206.onnx",
    webui_folder="openpose",
    license="Apache-2.0",
    size=54478120,
    sha256="1cfd1c86e0d9e5d5f95178bcd95ee9a4e8386a624cd3c57519f27ff58cac7f28",
    source=f"{HUB_COMMIT_PAGE} d2ecf9c",
)


@preprocessor("animal_openpose", makes="pose", weights=(YOLOX_WEIGHTS, RTMPOSE_ANIMAL_WEIGHTS))
class AnimalPose:
    """Animals as lines, by RTMPose trained on AP-10K. Points that score below 0.3 are absent, and lines that need them;
    the ComfyUI pack draws all."""

    def __init__(self, device: str | Device, library: Library):
        self.detector = load_onnx_network(library, YOLOX_WEIGHTS, device)
        self.network = load_onnx_network(library, RTMPOSE_ANIMAL_WEIGHTS, device)

    def __call__(self, image: np.ndarray) -> Callable[[int, int], Any]:
        animals = detect_key_points(self.network, image, detect_boxes(self.detector, image, ANIMAL_CLASSES))
        animals[animals[..., 2] < MIN_KEY_POINT_SCORE] = np.nan

        def result(height: int, width: int) -> tuple[np.ndarray, Poses]:
            parts = (Animal(key_points_from_pixels(one.tolist(), height, width)) for one in animals)
            poses = Poses((), tuple(parts), width, height)
            return render_pose(poses, height, width), poses

        return result
