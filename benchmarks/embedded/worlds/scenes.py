"""Held-out scenes of the worlds at a model's size, with the maps that its controls are given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from controlnet_ext.embedded.scenes import HELD_OUT_SEEDS, Scene
from controlnet_ext.maps.resize import fit
from tools.embedded_model.judges import read_labels
from tools.embedded_model.render_worlds import list_file, read_rows
from tools.embedded_model.world_sets import DOMAINS, SEEDS, renderer

from ..scenes import edges

DRAWN = ("shapes", "people")  # of which the masks of things are known, which are drawn again from the seeds
CONTROLS = {  # the domains that a control is measured on
    "canny": DOMAINS,
    "depth": DOMAINS,
    "segmentation": ("landscapes",),
    "pose": ("people",),
}
OBJECT_SEEDS = {"held_out": HELD_OUT_SEEDS[10_000:], "choosing": HELD_OUT_SEEDS[100_000:]}  # of captions alone
OBJECT_SIDE = 64  # pixels, of scenes whose caption alone is wanted


@dataclass(frozen=True, eq=False)
class SceneSet:
    """Scenes of a domain: the seeds of their noise, captions, images (N, S, S, 3) uint8 RGB, by control the maps
    (S, S, 3) uint8 RGB, and what was drawn, of shapes and people."""

    domain: str
    seeds: Sequence[int]
    captions: Sequence[str]
    images: np.ndarray
    maps: dict[str, list[np.ndarray]]
    scenes: Sequence[Scene] = ()

    @classmethod
    def read(cls, worlds: Path, domain: str, split: str, count: int, side: int) -> SceneSet:
        """Read the first `count` scenes of a rendered set."""
        rows, folder = read_rows(worlds, domain, split)[:count], list_file(worlds, domain, split).parent
        images = [read_scaled(folder / row["file_name"], side) for row in rows]
        maps = {"canny": [edges(image) for image in images]}
        for control, domains in CONTROLS.items():
            if control != "canny" and domain in domains:
                maps[control] = [fit(read_rgb(folder / row[control]), side, side, "crop") for row in rows]
        seeds, captions = SEEDS[split][:count], [row["text"] for row in rows]
        scenes: list[Scene] = []
        if domain in DRAWN:
            render, size = renderer(domain, worlds), len(read_rgb(folder / rows[0]["file_name"]))
            scenes = [resize_scene(render(seed, size), side) for seed in seeds]
            if [scene.caption for scene in scenes] != captions:
                raise ValueError(f"{worlds}: {domain}, {split}, are not the scenes of their seeds; render them again")
        return cls(domain, seeds, captions, np.stack(images), maps, scenes)

    def rotate(self) -> SceneSet:
        """Return the set with each scene replaced by the next one, the last by the first."""
        order = [*range(1, len(self.seeds)), 0]
        maps = {control: [each[i] for i in order] for control, each in self.maps.items()}
        scenes = [self.scenes[i] for i in order] if self.scenes else ()
        seeds, captions = ([each[i] for i in order] for each in (self.seeds, self.captions))
        return SceneSet(self.domain, seeds, captions, self.images[order], maps, scenes)


def check_set(worlds: Path, domain: str, split: str, count: int) -> None:
    """Raise ValueError if a rendered set has fewer scenes."""
    there = len(read_rows(worlds, domain, split))
    if there < count:
        raise ValueError(
            f"{there} scenes of {domain}, {split}, in {worlds}, of {count}: run tools.embedded_model.render_worlds "
            f"{domain} {worlds} --split {split} --count {count} first"
        )


def read_rgb(path: Path) -> np.ndarray:
    """Read an image or a map (H, W, 3) uint8 RGB. Raises FileNotFoundError."""
    pixels = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    if pixels is None:
        raise FileNotFoundError(f"{path} is no image")
    return pixels


def read_scaled(path: Path, side: int) -> np.ndarray:
    """Read a square image (side, side, 3) uint8 RGB."""
    image = read_rgb(path)
    return cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA if len(image) > side else cv2.INTER_CUBIC)


def resize_scene(scene: Scene, side: int) -> Scene:
    """Return a scene whose masks (side, side) and points have another size; its pixels and depth stay."""
    factor = side / len(scene.pixels)
    things = tuple(
        replace(
            thing,
            mask=cv2.resize(thing.mask.astype(np.uint8), (side, side), interpolation=cv2.INTER_NEAREST) > 0,
            points=None if thing.points is None else thing.points * factor,
        )
        for thing in scene.things
    )
    return replace(scene, things=things)


def list_single_things(worlds: Path, split: str, count: int) -> tuple[list[int], list[str]]:
    """Return seeds and captions of `count` held-out scenes of one thing that are in no set."""
    render, seeds, captions = renderer("things", worlds), [], []
    for seed in OBJECT_SEEDS[split]:
        caption = render(seed, OBJECT_SIDE).caption
        if read_labels(caption)["thing"] is not None:
            seeds.append(seed)
            captions.append(caption)
            if len(seeds) == count:
                break
    return seeds, captions
