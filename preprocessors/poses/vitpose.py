"""Poses of people by ViTPose, in boxes of RT-DETR; both networks are those of transformers."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from ...files.hub import HUB_FILE_LIST
from ..backends.transformers import (
    fetch_model_folder,
    import_transformers_class,
    load_transformers_network,
    make_model_files,
)
from ..registry import preprocessor
from .coco import person_from_coco
from .drawing import render_pose
from .key_points import Poses

if TYPE_CHECKING:
    from ..backends.torch import Device
    from ..library import Library

RTDETR_FILES = make_model_files(
    "PekingU/rtdetr_r50vd_coco_o365", "Apache-2.0", approx_size=172_000_000, source=f"{HUB_FILE_LIST} 457857c"
)
VITPOSE_FILES = make_model_files(
    "usyd-community/vitpose-base-simple", "Apache-2.0", approx_size=344_000_000, source=f"{HUB_FILE_LIST} a93ac0c"
)
_PERSON_CLASS, _MIN_PERSON_SCORE = 0, 0.3  # class of the detector, and how sure it must be


@preprocessor("vitpose", makes="pose", weights=(*RTDETR_FILES, *VITPOSE_FILES))
class VitPose:
    """Bodies of people, by RT-DETR and ViTPose (Xu et al., arXiv 2204.12484) of transformers 4.48 or later."""

    def __init__(self, device: str | Device, library: Library):
        self.detector = load_transformers_network(library, RTDETR_FILES, "RTDetrForObjectDetection", device)
        self.network = load_transformers_network(library, VITPOSE_FILES, "VitPoseForPoseEstimation", device)
        self.detector_processor = import_transformers_class("RTDetrImageProcessor").from_pretrained(
            fetch_model_folder(library, RTDETR_FILES)
        )
        self.pose_processor = import_transformers_class("VitPoseImageProcessor").from_pretrained(
            fetch_model_folder(library, VITPOSE_FILES)
        )

    def __call__(self, image: np.ndarray, *, scale_sticks: bool = False) -> Callable[[int, int], Any]:
        boxes = self.detect_people(image)
        people = self.estimate_points(image, boxes) if len(boxes) else []

        def result(height: int, width: int) -> tuple[np.ndarray, Poses]:
            poses = Poses(tuple(person_from_coco(one, height, width) for one in people), (), width, height)
            return render_pose(poses, height, width, scale_sticks=scale_sticks), poses

        return result

    def detect_people(self, image: np.ndarray) -> np.ndarray:
        """People's boxes (N, 4), left, top, width, height in pixels."""
        height, width = image.shape[:2]
        detections = self.detector(self.detector_processor(images=[image], return_tensors="pt")["pixel_values"])
        sure = detections["logits"][0, :, _PERSON_CLASS].sigmoid() > _MIN_PERSON_SCORE
        x, y, w, h = (detections["pred_boxes"][0, sure].numpy() * (width, height, width, height)).T
        return np.stack([x - w / 2, y - h / 2, w, h], axis=1)

    def estimate_points(self, image: np.ndarray, boxes: np.ndarray) -> list[np.ndarray]:
        """COCO's points (17, 3) of the person in each box: x and y in pixels, score."""
        pixels = self.pose_processor(images=[image], boxes=[boxes], return_tensors="pt")["pixel_values"]
        heat = SimpleNamespace(heatmaps=self.network(pixels)["heatmaps"])
        (people,) = self.pose_processor.post_process_pose_estimation(heat, boxes=[boxes])
        return [np.column_stack([one["keypoints"], one["scores"]]).astype(float) for one in people]
