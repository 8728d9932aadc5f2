"""Pixels of the worlds for the autoencoder: `python -m tools.embedded_model.world_sets things FOLDER --count 1000`.

A set lies in FOLDER/DOMAIN/ in parts of 128 scenes: `training-000000.npy` holds pixels (128, H, W, 3) RGB uint8. Parts
that are there are kept, so a run that was stopped goes on. Training and held-out seeds are disjoint. What the base and
its controls learn on is many more scenes, with captions and maps: `render_worlds`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from controlnet_ext.embedded.scenes import HELD_OUT_SEEDS, TRAINING_SEEDS, Scene, Thing, draw_scene
from tools.embedded_model.landscapes import render as render_landscape
from tools.embedded_model.things import ThingRenderer

SHAPE_STYLE = "flat drawing of"
DOMAINS = ("shapes", "things", "landscapes")
RENDERED = (*DOMAINS, "people")  # people are shapes again: more scenes with a person, for its pose
# Nothing is chosen on the first 256 held-out scenes, on which figures are taken.
SEEDS = {"training": TRAINING_SEEDS, "held_out": HELD_OUT_SEEDS, "choosing": HELD_OUT_SEEDS[2000:3000]}
PART = 128
PERSON = "person"  # the kind of thing that has key points
PEOPLE_STRIDE = 25_000  # from a scene of shapes to the one that is tried next


def renderer(domain: str, folder: Path) -> Callable[[int, int], Any]:
    """Return `render(seed, size)`, which gives an object with `pixels`, `caption` and `depth`."""
    if domain == "things":
        return ThingRenderer(folder / "emoji").render
    return {"shapes": _render_shapes, "people": _render_people, "landscapes": render_landscape}[domain]


def find_person(scene: Scene) -> Thing | None:
    """Return the person of a scene of shapes, None if it has none."""
    return next((thing for thing in scene.things if thing.kind == PERSON), None)


def _render_shapes(seed: int, size: int) -> Scene:
    scene = draw_scene(seed, size)
    return replace(scene, caption=f"{SHAPE_STYLE} {scene.caption}")


def _render_people(seed: int, size: int) -> Scene:
    """The first scene with a person of the seeds that lie one stride, two strides and so on behind."""
    seeds = next(seeds for seeds in (TRAINING_SEEDS, HELD_OUT_SEEDS) if seed in seeds)
    later = range(seed + PEOPLE_STRIDE, seeds.stop, PEOPLE_STRIDE)
    return _render_shapes(next(each for each in later if find_person(draw_scene(each, 32)) is not None), size)


def open_pixels(folder: Path, domain: str, split: str) -> list[np.ndarray]:
    """All parts of a set, mapped into memory: each (128, H, W, 3) RGB uint8."""
    parts = sorted((folder / domain).glob(f"{split}-??????.npy"))
    return [np.load(part, mmap_mode="r") for part in parts]


def write_part(render: Callable[[int, int], Any], seeds: range, size: int, stem: Path) -> None:
    """Render the scenes of these seeds into the file of one part."""
    part = stem.with_suffix(".part")
    with part.open("wb") as file:
        np.save(file, np.stack([render(seed, size).pixels for seed in seeds]))
    part.rename(stem.with_suffix(".npy"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("domain", choices=DOMAINS)
    parser.add_argument("folder", type=Path, help="what fetch.py filled; outside the repository")
    parser.add_argument("--count", type=int, default=1024)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--split", choices=SEEDS, default="training")
    options = parser.parse_args()
    render = renderer(options.domain, options.folder)
    (options.folder / options.domain).mkdir(parents=True, exist_ok=True)
    seeds = SEEDS[options.split][: options.count]
    for first in range(0, len(seeds), PART):
        stem = options.folder / options.domain / f"{options.split}-{first:06d}"
        if not stem.with_suffix(".npy").exists():
            write_part(render, seeds[first : first + PART], options.size, stem)
            print(f"{min(first + PART, len(seeds))} of {len(seeds)} {options.domain}", flush=True)


if __name__ == "__main__":
    main()
