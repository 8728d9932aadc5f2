"""People whom a small OpenPose and our grouping find, beside the true ones of COCO.

    python -m benchmarks.pose_quality --assets FOLDER

FOLDER holds truth/pose/coco, images with their people, and weights/openpose_mnv2small.onnx. Each true person with
five points or more gets the one of the people found who has most of the points right; COCO has no neck. PCK is the
share of true points that are nearer than a part of the longer side of the person's box.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
from controlnet_ext.preprocessors.poses.openpose_grouping import group_bodies

from .pose_grouping import network, people

HEIGHTS = (184, 368, 552)  # of the network's input, in pixels; OpenPose's own is 368, ControlNet's annotator's 184
PARTS = (0.1, 0.2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--assets", type=Path, required=True)
    options = parser.parse_args()
    folder = options.assets / "truth" / "pose" / "coco"
    truth = json.loads((folder / "test_coco.json").read_text())
    images = [(cv2.imread(str(folder / one["file_name"])), people(truth, one["id"])) for one in truth["images"]]
    net = cv2.dnn.readNetFromONNX(str(options.assets / "weights" / "openpose_mnv2small.onnx"))
    for height in HEIGHTS:
        bodies = [group_bodies(*network(net, image, height)) for image, _ in images]
        shares = [pck(bodies, [true for _, true in images], part) for part in PARTS]
        counts = f"{sum(map(len, bodies))} people found of {sum(len(true) for _, true in images)}"
        print(
            f"{height} pixels high: " + ", ".join(f"PCK@{p} {s:.3f}" for p, s in zip(PARTS, shares, strict=True)),
            counts,
            sep=", ",
        )


def pck(bodies: list[list[np.ndarray]], true: list[list[tuple[np.ndarray, list[float]]]], part: float) -> float:
    """The share of the true points (18, 2) of all images that are found within that part of their box."""
    right, of = 0, 0
    for persons, expected in zip(bodies, true, strict=True):
        for points, box in expected:
            is_visible = ~np.isnan(points[:, 0])
            is_visible[1] = False  # the neck
            near = [(np.hypot(*(one[:, :2] - points).T)[is_visible] < part * max(box[2:])).sum() for one in persons]
            right, of = right + max(near, default=0), of + is_visible.sum()
    return right / of


if __name__ == "__main__":
    main()
