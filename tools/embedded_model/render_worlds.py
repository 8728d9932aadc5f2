"""Render the worlds once, as images with their maps: `python -m tools.embedded_model.render_worlds landscapes WORLDS`.

The scenes of a set lie in WORLDS/images/DOMAIN/training/ as 000000.jpg beside 000000_depth.png and, for landscapes,
000000_classes.png, for shapes with a person 000000_pose.png; WORLDS/images/DOMAIN/training.jsonl lists them with their
captions for `control_lists` and for `encode_worlds`. What is listed is kept, so a run that was stopped goes on; maps
that an earlier version of this tool has not drawn are added with `--add-maps`. Training and held-out seeds are
disjoint. `people` are shapes that all have a person.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from controlnet_ext.preprocessors.poses.drawing import render_pose
from controlnet_ext.preprocessors.poses.key_points import KeyPoint, Person, Poses

from controlnet_ext.embedded.scenes import Scene, Thing
from controlnet_ext.maps.resize import resize_map
from tools.embedded_model.landscape_plan import CLASSES, SKY_DEPTH
from tools.embedded_model.landscapes import Landscape
from tools.embedded_model.world_sets import PART, PERSON, RENDERED, SEEDS, find_person, renderer

SIZE = 192
FARTHEST_DEPTH = 20_000.0  # metres that are almost black
NEAREST_DEPTH = 2.0  # metres that are white in a map of depth, however near the scene begins
POSE_SCALES = (1, 2, 3)  # of the images that maps of pose are drawn for, by row
# RGB of ADE20K's palette for sky, water, mountain, snow (which ADE20K has not: white), grass, sand, tree
CLASS_COLORS = dict(
    zip(
        CLASSES,
        ((6, 230, 230), (61, 230, 250), (143, 255, 140), (255, 255, 255), (4, 250, 7), (160, 150, 20), (4, 200, 3)),
        strict=True,
    )
)


def draw_depth_map(depth: np.ndarray) -> np.ndarray:
    """Return a map (H, W) uint8 of metres (H, W): white is the nearest, black the sky. It falls with the logarithm of
    the distance, so that ridges kilometres away differ, as they do in maps of depth networks; the inverse would be 0
    beyond a hundred metres."""
    nearest = max(depth.min(), NEAREST_DEPTH)
    share = np.log(FARTHEST_DEPTH / np.clip(depth, nearest, FARTHEST_DEPTH)) / np.log(FARTHEST_DEPTH / nearest)
    return np.where(depth < SKY_DEPTH, np.round(1 + 254 * share), 0).astype(np.uint8)


def draw_class_map(classes: np.ndarray) -> np.ndarray:
    """Return the colors (H, W, 3) uint8 RGB of indices of CLASSES (H, W)."""
    return np.array(list(CLASS_COLORS.values()), np.uint8)[classes]


def read_class_map(colors: np.ndarray) -> np.ndarray:
    """Return the indices of CLASSES (H, W) uint8 of a map (H, W, 3) uint8 RGB that `draw_class_map` drew."""
    matches = [(colors == color).all(2) for color in CLASS_COLORS.values()]
    return np.argmax(matches, 0).astype(np.uint8)


def draw_pose_map(person: Thing, scale: int) -> np.ndarray:
    """Return the map (H, W, 3) uint8 RGB of the points of a person that are visible, as preprocessors draw it of an
    image `scale` times as large, resized as guidance resizes it: sticks have 8 pixels in an image of any size."""
    assert person.points is not None
    size = len(person.mask)
    reach = 2 * round(size / 64) + 1  # a point on the edge of a limb belongs to it
    near = cv2.dilate(person.mask.astype(np.uint8), np.ones((reach, reach), np.uint8))
    body = [
        KeyPoint(x / size, y / size) if 0 <= x < size and 0 <= y < size and near[int(y), int(x)] else None
        for x, y in person.points.tolist()
    ]
    side = size * scale
    return resize_map(render_pose(Poses([Person(body)], (), side, side), side, side), size, size)


def write_pose(scene: Scene, folder: Path, name: str) -> dict[str, str]:
    """Write the map of pose of a scene if it has a person; return its entry of the row, or none."""
    person = find_person(scene)
    if person is None:
        return {}
    entry = {"pose": f"{name}_pose.png"}
    scale = POSE_SCALES[int(Path(name).name) % len(POSE_SCALES)]
    cv2.imwrite(str(folder / entry["pose"]), draw_pose_map(person, scale)[..., ::-1])
    return entry


def write_scene(scene: Any, folder: Path, name: str) -> dict[str, str]:
    """Write a scene as an image with its maps; return its row of the list, with paths below `folder`. `name` ends in
    the number of the row."""
    row = {"file_name": f"{name}.jpg", "text": scene.caption, "depth": f"{name}_depth.png"}
    cv2.imwrite(str(folder / row["file_name"]), scene.pixels[..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, 95))
    cv2.imwrite(str(folder / row["depth"]), draw_depth_map(scene.depth))
    if isinstance(scene, Landscape):
        row["segmentation"] = f"{name}_classes.png"
        cv2.imwrite(str(folder / row["segmentation"]), draw_class_map(scene.classes)[..., ::-1])
    return row | write_pose(scene, folder, name) if isinstance(scene, Scene) else row


def list_file(worlds: Path, domain: str, split: str) -> Path:
    """The list of a set."""
    return worlds / "images" / domain / f"{split}.jsonl"


def read_rows(worlds: Path, domain: str, split: str) -> list[dict[str, str]]:
    """The rows of the list of a set, in the order of their seeds; none if nothing is rendered."""
    path = list_file(worlds, domain, split)
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def render_set(worlds: Path, domain: str, split: str, seeds: Sequence[int], size: int) -> None:
    """Render the scenes of these seeds that are not listed yet, 128 at a time."""
    path, render = list_file(worlds, domain, split), renderer(domain, worlds)
    (path.parent / split).mkdir(parents=True, exist_ok=True)
    for first in range(len(read_rows(worlds, domain, split)), len(seeds), PART):
        part = seeds[first : first + PART]
        rows = [write_scene(render(seed, size), path.parent, f"{split}/{first + i:06d}") for i, seed in enumerate(part)]
        with path.open("a") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))
        print(f"{first + len(part)} of {len(seeds)} {domain}", flush=True)


def add_maps(worlds: Path, domain: str, split: str, seeds: Sequence[int]) -> int:
    """Draw the maps of pose that listed scenes lack, and list them; return how many. Images are not rendered again.

    Raises ValueError if a row is not the scene of its seed.
    """
    path, render, added = list_file(worlds, domain, split), renderer(domain, worlds), {}
    for number, row in enumerate(read_rows(worlds, domain, split)):
        if PERSON in row["text"].split() and "pose" not in row:
            size = len(cv2.imread(str(path.parent / row["depth"]), cv2.IMREAD_GRAYSCALE))
            scene = render(seeds[number], size)
            if scene.caption != row["text"]:
                raise ValueError(f"{row['file_name']} is {row['text']!r}, but its seed gives {scene.caption!r}")
            added[number] = write_pose(scene, path.parent, f"{split}/{number:06d}")
    if added:
        rows = read_rows(worlds, domain, split)  # again: it may have grown
        part = path.with_suffix(".part")
        part.write_text("".join(json.dumps(row | added.get(i, {})) + "\n" for i, row in enumerate(rows)))
        part.rename(path)
    return len(added)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("domain", choices=RENDERED)
    parser.add_argument("worlds", type=Path, help="what fetch.py filled; outside the repository")
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--size", type=int, default=SIZE, help="pixels")
    parser.add_argument("--split", choices=SEEDS, default="training")
    parser.add_argument("--add-maps", action="store_true", help="only draw maps of pose that listed scenes lack")
    options = parser.parse_args()
    if options.add_maps:
        count = add_maps(options.worlds, options.domain, options.split, SEEDS[options.split])
        print(f"{count} maps of pose added")
    else:
        render_set(options.worlds, options.domain, options.split, SEEDS[options.split][: options.count], options.size)


if __name__ == "__main__":
    main()
