"""Landscapes rendered from a heightfield: mountains, hills, deserts and islands by season, light, water and weather.

A landscape depends on its seed and size only. The terrain is eroded noise on a grid of camera columns and geometric
distances; what each ray meets first follows from the running maximum of the elevations. Depth is true (metres along the
optical axis, SKY_DEPTH for the sky), so are normals and classes, and the caption says by construction what is there:
"landscape of snowy mountains by a lake with pine trees in winter at sunset under a cloudy sky".

`python -m tools.embedded_model.landscapes sheet.png` draws a contact sheet.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from tools.embedded_model.landscape_light import draw_sky, fill_water, plant_trees, shade_ground, to_display
from tools.embedded_model.landscape_plan import CLASSES, SKY, SKY_DEPTH, WATER, choose_plan, describe
from tools.embedded_model.landscape_terrain import build_grid, cast_rays, compute_normals, distance_at

FINE = 2  # rendered this much finer, then averaged


@dataclass(frozen=True, eq=False)
class Landscape:
    """`pixels (H, W, 3)` RGB uint8; `depth (H, W)` float32 metres; `normals (H, W, 3)` float32 unit vectors (right, up,
    towards the camera), zero in the sky; `classes (H, W)` uint8, indices of CLASSES; words of the caption."""

    pixels: np.ndarray
    caption: str
    depth: np.ndarray
    normals: np.ndarray
    classes: np.ndarray
    season: str
    time: str


def render(seed: int, size: int = 256) -> Landscape:
    """The landscape of that seed, `size` pixels square: the same forever."""
    rng = np.random.default_rng((seed, 0x1A4D))
    for _ in range(8):
        landscape = _render_once(rng, size)
        sky, water = (np.mean(landscape.classes == kind) for kind in (SKY, WATER))
        if 0.08 < sky < 0.72 and (water > 0.04 or "islands" not in landscape.caption):
            break
    return landscape


def _render_once(rng: np.random.Generator, size: int) -> Landscape:
    plan = choose_plan(rng)
    fine = size * FINE
    grid, eye = build_grid(rng, plan, fine)
    hit = cast_rays(grid, plan, eye, fine)
    sky = cv2.resize(draw_sky(rng, plan, size), (fine, fine), interpolation=cv2.INTER_CUBIC)
    pixels, classes = shade_ground(rng, plan, grid, hit, sky, fine)
    depth = np.where(hit >= 0, distance_at(hit), np.float32(SKY_DEPTH))
    normals = compute_normals(grid, hit, classes)
    if plan.trees is not None:
        plant_trees(rng, plan, grid, eye, pixels, depth, normals, classes, sky)
    fill_water(rng, plan, eye, pixels, depth, classes, sky)
    image = cv2.resize(to_display(pixels, plan), (size, size), interpolation=cv2.INTER_AREA)
    pick = slice(FINE // 2, None, FINE)
    return Landscape(
        np.clip(np.rint(image), 0, 255).astype(np.uint8),
        describe(plan, np.bincount(classes.ravel(), minlength=len(CLASSES)) / classes.size),
        depth[pick, pick].copy(),
        normals[pick, pick].copy(),
        classes[pick, pick].copy(),
        plan.season,
        plan.time,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sheet", type=Path, help="image file for the contact sheet; captions go to stdout")
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--count", type=int, default=32)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--depth", action="store_true", help="below each row its depth, near white")
    options = parser.parse_args()
    scenes = [render(seed, options.size) for seed in range(options.first, options.first + options.count)]
    print(*(scene.caption for scene in scenes), sep="\n")
    rows = []
    for i in range(0, len(scenes), 8):
        images = [scene.pixels for scene in scenes[i : i + 8]]
        rows.append(np.hstack(images + [np.full_like(images[0], 255)] * (8 - len(images))))
        if options.depth:
            near = [np.clip(255 - 62 * np.log10(scene.depth / 3), 0, 255) for scene in scenes[i : i + 8]]
            near += [np.full_like(near[0], 255)] * (8 - len(near))
            rows.append(np.repeat(np.hstack(near)[..., None], 3, 2).astype(np.uint8))
    cv2.imwrite(str(options.sheet), np.vstack(rows)[..., ::-1])


if __name__ == "__main__":
    main()
