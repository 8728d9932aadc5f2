"""Render the worlds once, as images with their maps: `python -m tools.embedded_model.render_worlds landscapes WORLDS`.

The scenes of a set lie in WORLDS/images/DOMAIN/training/ as 000000.jpg beside 000000_depth.png and, for landscapes,
000000_classes.png; WORLDS/images/DOMAIN/training.jsonl lists them with their captions for `controlnet-ext train` and
for `encode_worlds`. What is listed is kept, so a run that was stopped goes on. Training and held-out seeds are
disjoint.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from tools.embedded_model.landscapes import CLASSES, SKY_DEPTH, Landscape
from tools.embedded_model.world_sets import DOMAINS, PART, SEEDS, renderer

SIZE = 192
NEAREST_DEPTH = 2.0  # metres that are white in a map of depth, however near the scene begins
# RGB of ADE20K's palette for sky, water, mountain, snow (which ADE20K has not: white), grass, sand, tree
CLASS_COLORS = dict(
    zip(
        CLASSES,
        ((6, 230, 230), (61, 230, 250), (143, 255, 140), (255, 255, 255), (4, 250, 7), (160, 150, 20), (4, 200, 3)),
        strict=True,
    )
)


def draw_depth_map(depth: np.ndarray) -> np.ndarray:
    """Return inverse depth (H, W) uint8 of metres (H, W): white is the nearest, black the sky, as MiDaS has it."""
    inverse = np.where(depth < SKY_DEPTH, 1 / np.maximum(depth, NEAREST_DEPTH), 0)
    return np.round(255 * inverse / max(inverse.max(), 1e-9)).astype(np.uint8)


def draw_class_map(classes: np.ndarray) -> np.ndarray:
    """Return the colors (H, W, 3) uint8 RGB of indices of CLASSES (H, W)."""
    return np.array(list(CLASS_COLORS.values()), np.uint8)[classes]


def write_scene(scene: Any, folder: Path, name: str) -> dict[str, str]:
    """Write a scene as an image with its maps; return its row of the list, with paths below `folder`."""
    row = {"file_name": f"{name}.jpg", "text": scene.caption, "depth": f"{name}_depth.png"}
    cv2.imwrite(str(folder / row["file_name"]), scene.pixels[..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, 95))
    cv2.imwrite(str(folder / row["depth"]), draw_depth_map(scene.depth))
    if isinstance(scene, Landscape):
        row["segmentation"] = f"{name}_classes.png"
        cv2.imwrite(str(folder / row["segmentation"]), draw_class_map(scene.classes)[..., ::-1])
    return row


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("domain", choices=DOMAINS)
    parser.add_argument("worlds", type=Path, help="what fetch.py filled; outside the repository")
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--size", type=int, default=SIZE, help="pixels")
    parser.add_argument("--split", choices=SEEDS, default="training")
    options = parser.parse_args()
    render_set(options.worlds, options.domain, options.split, SEEDS[options.split][: options.count], options.size)


if __name__ == "__main__":
    main()
