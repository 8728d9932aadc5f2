"""People out of heat maps: our grouping beside controlnet_aux's Body on the same maps, and how many points are right.

    python benchmarks/pose_grouping.py --assets FOLDER [--runs 5]

FOLDER holds truth/pose/coco, images with their people, and weights/openpose_mnv2small.onnx, a small OpenPose. Maps
are (1) that network's, of an input 184 pixels high as controlnet_aux has it, (2) those that a perfect network would
give of the true people there, so that there are people to put together. Both go from maps at an eighth of the input to
places in the image. Then the small network's people at 552 pixels, where it is at its best, beside the true ones: PCK
is the share of points nearer than a tenth of the box's longer side. One thread; runs alternate, the first of each is
warm-up.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from controlnet_ext.preprocessors.poses.openpose_grouping import group_bodies

COCO = (0, None, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)  # COCO's points in OpenPose's order
LIMBS = (  # points, and the field along them: CMU's poseParameters.cpp
    *((1, 2, 12), (2, 3, 14), (3, 4, 16), (1, 5, 20), (5, 6, 22), (6, 7, 24), (1, 8, 0), (8, 9, 2), (9, 10, 4)),
    *((1, 11, 6), (11, 12, 8), (12, 13, 10), (1, 0, 28), (0, 14, 30), (14, 16, 34), (0, 15, 32), (15, 17, 36)),
)
Maps = tuple[np.ndarray, np.ndarray, tuple[int, int], tuple[int, int]]  # heat, fields, inside, size of the image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--assets", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    folder = options.assets / "truth" / "pose" / "coco"
    truth = json.loads((folder / "test_coco.json").read_text())
    images = [(cv2.imread(str(folder / one["file_name"])), people(truth, one["id"])) for one in truth["images"]]
    net = cv2.dnn.readNetFromONNX(str(options.assets / "weights" / "openpose_mnv2small.onnx"))
    print(f"{platform.machine()}, Python {platform.python_version()}, OpenCV {cv2.__version__}, numpy {np.__version__}")
    print(f"median (least to most) of {options.runs} runs in turn, after 1, all {len(images)} images")
    compare("small network", [network(net, image, 184) for image, _ in images], options.runs)
    compare("true people", [perfect(image, true) for image, true in images], options.runs)
    right, of = 0, 0
    for image, true in images:
        bodies = group_bodies(*network(net, image, 552))
        for points, box in true:
            is_visible = ~np.isnan(points[:, 0])
            is_visible[1] = False  # COCO has no neck
            near = [(np.hypot(*(one[:, :2] - points).T)[is_visible] < 0.1 * max(box[2:])).sum() for one in bodies]
            right, of = right + max(near, default=0), of + is_visible.sum()
    print(f"PCK of the small network at 552 pixels: {right / of:.3f} of {of} points")


def people(truth: dict, image: int) -> list[tuple[np.ndarray, list[float]]]:
    """Points (18, 2) in pixels, NaN where not labelled, and box, of those with five points or more."""
    people_of_image = []
    for one in truth["annotations"]:
        if one["image_id"] == image and one["num_keypoints"] >= 5:
            points = np.array(one["keypoints"], float).reshape(17, 3)
            points[points[:, 2] == 0] = np.nan
            openpose = np.array([points[i or 0, :2] for i in COCO])
            openpose[1] = points[[5, 6], :2].mean(axis=0)
            people_of_image.append((openpose, one["bbox"]))
    return people_of_image


def network(net: cv2.dnn.Net, image: np.ndarray, height: int) -> Maps:
    size = image.shape[:2]
    inside = height, int(size[1] * height / size[0])
    way = cv2.INTER_AREA if height < size[0] else cv2.INTER_LANCZOS4
    input = cv2.resize(image, inside[::-1], interpolation=way)
    bottom, right = (-side % 16 for side in inside)
    input = cv2.copyMakeBorder(input, 0, bottom, 0, right, cv2.BORDER_CONSTANT, value=(128,) * 3)
    net.setInput(input.transpose(2, 0, 1)[None].astype(np.float32))
    heat, fields = net.forward(["heatmap", "paf"])
    rows, columns = (-(-side // 8) for side in inside)
    return heat[0, :, :rows, :columns], fields[0, :, :rows, :columns], inside, size


def perfect(image: np.ndarray, true: list[tuple[np.ndarray, list[float]]]) -> Maps:
    size = image.shape[:2]
    inside = 184, int(size[1] * (0.5 * 368 / size[0]))
    rows, columns = (-(-side // 8) for side in inside)
    y, x = np.mgrid[:rows, :columns].astype(np.float32)
    heat, fields = np.zeros((19, rows, columns), np.float32), np.zeros((38, rows, columns), np.float32)
    for points, _ in true:
        cells = points * 23 / size[0] - 0.5
        for part, (px, py) in enumerate(cells):
            if not np.isnan(px):
                heat[part] = np.maximum(heat[part], np.exp(-((x - px) ** 2 + (y - py) ** 2)))
        for a, b, field in LIMBS:
            way = cells[b] - cells[a]
            length = np.hypot(*way)
            if length > 0:  # not NaN
                along = ((x - cells[a][0]) * way[0] + (y - cells[a][1]) * way[1]) / length
                across = ((x - cells[a][0]) * way[1] - (y - cells[a][1]) * way[0]) / length
                near = (along > -1) & (along < length + 1) & (abs(across) < 1)
                fields[field][near], fields[field + 1][near] = way / length
    return heat, fields, inside, size


def compare(name: str, maps: list[Maps], runs: int) -> None:
    groupings: dict[str, Callable[..., list[np.ndarray]]] = {"ours": group_bodies}
    try:
        groupings["controlnet_aux"] = controlnet_aux()
    except (ImportError, RuntimeError) as error:
        print(f"controlnet_aux is left out: {error}")
    times: dict[str, list[float]] = {key: [] for key in groupings}
    results = {}
    for _ in range(runs + 1):
        for key, grouping in groupings.items():
            begin = time.perf_counter()
            results[key] = [grouping(*one) for one in maps]
            times[key].append(time.perf_counter() - begin)
    for key, (_, *samples) in times.items():
        count = sum(map(len, results[key]))
        middle, least, most = (1e3 * of(samples) for of in (statistics.median, min, max))
        print(f"{name}, {key}: {middle:.0f} ms ({least:.0f} to {most:.0f}), {count} people")
    if len(groupings) == 2:
        ratio = statistics.median(b / a for a, b in zip(times["ours"][1:], times["controlnet_aux"][1:], strict=True))
        same = all(
            len(a) == len(b)
            and all(np.array_equal(p[:, :2], q[:, :2], equal_nan=True) for p, q in zip(a, b, strict=True))
            for a, b in zip(*results.values(), strict=True)
        )
        print(f"{name}: {ratio:.0f} times as fast, {'the same people' if same else 'OTHER PEOPLE'}")


def controlnet_aux() -> Callable[..., list[np.ndarray]]:
    warnings.simplefilter("ignore")
    import torch
    from controlnet_aux.open_pose.body import Body

    torch.set_num_threads(1)

    class FixedOutput(torch.nn.Module):
        def __init__(self, heat: np.ndarray, fields: np.ndarray):
            super().__init__()
            self.maps = torch.tensor(fields)[None], torch.tensor(heat)[None]
            self.device = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.maps

    def grouping(heat: np.ndarray, fields: np.ndarray, inside: object, size: tuple[int, int]) -> list[np.ndarray]:
        body = Body.__new__(Body)
        body.model = FixedOutput(heat, fields)
        candidate, subset = body(np.zeros((*size, 3), np.uint8))  # a resize of this image is in its time: 1 ms
        absent = [np.nan] * 3
        return [np.array([candidate[int(i)][:3] if i >= 0 else absent for i in row[:18]]) for row in subset]

    return grouping


if __name__ == "__main__":
    main()
