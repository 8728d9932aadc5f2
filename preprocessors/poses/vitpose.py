from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from ...files.hub import LIST
from ..backends.transformers import folder, model_files, transformers_class, transformers_network
from ..registry import preprocessor
from .coco import person
from .drawing import drawn
from .key_points import Poses

if TYPE_CHECKING:
    from ..backends.torch import Device
    from ..library import Library

DETECTOR = model_files("PekingU/rtdetr_r50vd_coco_o365", "Apache-2.0", about=172_000_000, source=f"{LIST} 457857c")
VITPOSE = model_files("usyd-community/vitpose-base-simple", "Apache-2.0", about=344_000_000, source=f"{LIST} a93ac0c")
_PERSON, _SURE = 0, 0.3  # class of the detector, and how sure it must be


@preprocessor("vitpose", makes="pose", weights=(*DETECTOR, *VITPOSE))
class VitPose:
    """Bodies of people, by RT-DETR and ViTPose (Xu et al., arXiv 2204.12484) of transformers 4.48 or later."""

    def __init__(self, device: str | Device, library: Library):
        self.detector = transformers_network(library, DETECTOR, "RTDetrForObjectDetection", device)
        self.network = transformers_network(library, VITPOSE, "VitPoseForPoseEstimation", device)
        self.detector_input = transformers_class("RTDetrImageProcessor").from_pretrained(folder(library, DETECTOR))
        self.network_input = transformers_class("VitPoseImageProcessor").from_pretrained(folder(library, VITPOSE))

    def __call__(self, image: np.ndarray, *, scale_sticks: bool = False) -> Callable[[int, int], Any]:
        boxes = self.boxes(image)
        people = self.points(image, boxes) if len(boxes) else []

        def result(height: int, width: int) -> tuple[np.ndarray, Poses]:
            poses = Poses(tuple(person(one, height, width) for one in people), (), width, height)
            return drawn(poses, height, width, scale_sticks=scale_sticks), poses

        return result

    def boxes(self, image: np.ndarray) -> np.ndarray:
        """People's boxes (N, 4), left, top, width, height in pixels."""
        height, width = image.shape[:2]
        found = self.detector(self.detector_input(images=[image], return_tensors="pt")["pixel_values"])
        sure = found["logits"][0, :, _PERSON].sigmoid() > _SURE
        x, y, w, h = (found["pred_boxes"][0, sure].numpy() * (width, height, width, height)).T
        return np.stack([x - w / 2, y - h / 2, w, h], axis=1)

    def points(self, image: np.ndarray, boxes: np.ndarray) -> list[np.ndarray]:
        """COCO's points (17, 3) of the person in each box: x and y in pixels, score."""
        pixels = self.network_input(images=[image], boxes=[boxes], return_tensors="pt")["pixel_values"]
        heat = SimpleNamespace(heatmaps=self.network(pixels)["heatmaps"])
        (people,) = self.network_input.post_process_pose_estimation(heat, boxes=[boxes])
        return [np.column_stack([one["keypoints"], one["scores"]]).astype(float) for one in people]
