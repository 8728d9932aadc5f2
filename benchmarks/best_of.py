"""The best of N images by score against the first: the embedded model on 64 scenes that it has never seen.

    nice -n 5 python -m benchmarks.best_of runs/best_of

Each image is that of `controlnet-ext generate CAPTION --image SCENE --control canny,resolution=match --guidance 2
--steps 12 --seed 4K+i`, for scene K and i in 0..3, and the choice that of `--best-of 4`. Images that are in the folder
already are not drawn again. Prints figures as JSON: exact F1 is what is chosen by; F1 within a pixel and the share of
things in their named color show whether the choice pays elsewhere."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.embedded.scenes import EVALUATION_SEEDS
from benchmarks.embedded.scores import colour_share
from controlnet_ext.embedded.scenes import Scene, draw_scene
from controlnet_ext.files.image_reader import read_image
from controlnet_ext.files.image_writer import write_image
from controlnet_ext.generation.prepare import LoadedRecipe, fit_unit, load_recipe
from controlnet_ext.generation.recipe import GenerationRecipe, GuidanceSetup, ModelRef, UnitSpec
from controlnet_ext.generation.render import render_recipe
from controlnet_ext.maps.fidelity import bootstrap_interval
from controlnet_ext.scoring.scores import RecipeScorer, UnitScore

SIDE, GUIDANCE = 128, 2.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the images")
    parser.add_argument("--scenes", type=int, default=64)
    parser.add_argument("--count", type=int, default=4, help="images of each scene")
    parser.add_argument("--steps", type=int, default=12)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    scenes = [draw_scene(seed, SIDE) for seed in EVALUATION_SEEDS[: options.scenes]]
    images, scores, choices = [], [], []
    loaded_recipe, start = None, time.process_time()
    for k, scene in enumerate(scenes):
        recipe = make_recipe(scene, options.count * k, options.steps)
        paths = [options.folder / f"{k}_{i}.png" for i in range(options.count)]
        if not all(path.exists() for path in paths):
            loaded_recipe = draw_images(recipe, loaded_recipe, paths)
            print(f"scene {k + 1} of {len(scenes)}, {time.process_time() - start:.0f} s", file=sys.stderr, flush=True)
        scorer = RecipeScorer(recipe)
        images.append([read_image(path) for path in paths])
        scores.append([scorer.score(image) for image in images[-1]])
        choices.append(scorer.choose_best(scores[-1])[0])
    print(json.dumps(summarize(scenes, images, scores, choices), indent=1))


def make_recipe(scene: Scene, seed: int, steps: int) -> GenerationRecipe:
    spec = UnitSpec(
        model=ModelRef("embedded/canny"),
        image=scene.pixels,
        preprocessor="canny",
        parameters={"resolution": "match"},
    )
    return GenerationRecipe(
        prompt=scene.caption,
        negative_prompt="",
        seed=seed,
        steps=steps,
        width=SIDE,
        height=SIDE,
        guidance_scale=GUIDANCE,
        dtype="float32",
        device="cpu",
        threads=torch.get_num_threads(),
        model=ModelRef("embedded"),
        units=(fit_unit(spec, SIDE, SIDE),),
    )


def draw_images(recipe: GenerationRecipe, loaded_recipe: LoadedRecipe | None, paths: list[Path]) -> LoadedRecipe:
    """Draw the images that are missing, one a seed, with networks that are loaded once."""
    if loaded_recipe is None:
        loaded_recipe = load_recipe(recipe, "cpu")
        loaded_recipe.pipe.set_progress_bar_config(disable=True)
    unit = recipe.units[0].make_unit(loaded_recipe.guidance.units[0].model)
    for i, path in enumerate(paths):
        if not path.exists():
            run = replace(loaded_recipe, recipe=replace(recipe, seed=recipe.seed + i), guidance=GuidanceSetup((unit,)))
            write_image(path, render_recipe(run))
    return loaded_recipe


def summarize(
    scenes: list[Scene], images: list[list[np.ndarray]], scores: list[list[tuple[UnitScore, ...]]], choices: list[int]
) -> dict[str, Any]:
    summary: dict[str, Any] = {"scenes": len(scenes), "images": len(images[0]), "first_is_best": choices.count(0)}
    for figure in ("f1", "f1_1px"):
        table = np.array([[some[0].figures[figure] for some in of_scene] for of_scene in scores])
        best = table[np.arange(len(table)), choices]
        summary[figure] = {
            "first": describe(table[:, 0]),
            "best": describe(best),
            "gain": describe(best - table[:, 0]),
            "mean_of_all": describe(table.mean(axis=1)),
        }
    for name, places in (("first", [0] * len(scenes)), ("best", choices)):
        summary[f"colors_{name}"] = round(
            colour_share(scenes, [some[i] for some, i in zip(images, places, strict=True)]), 4
        )
    return summary


def describe(values: np.ndarray) -> str:
    interval = bootstrap_interval(values.tolist())
    return f"{interval.mean:.3f} ({interval.low:.3f}..{interval.high:.3f})"


if __name__ == "__main__":
    main()
