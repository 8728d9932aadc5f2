"""Unguided images of recipes, whose scores are the floor: the same model, words and noise, without the units."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..generation.options import choose_device, is_network_path
from ..generation.prepare import LoadedRecipe, load_recipe
from ..generation.recipe import GenerationRecipe, ModelRef, limit_threads
from ..generation.render import render_recipe


class UnguidedRenderer:
    """Draws recipes without their units. The last model stays loaded.

    `model` is the path of the model where it lies elsewhere than a recipe says, `device` where it is drawn, by default
    that of the recipe."""

    def __init__(self, model: str | None = None, device: str | None = None):
        self._model, self._device = model, device
        self._loaded: LoadedRecipe | None = None

    def render(self, recipe: GenerationRecipe) -> np.ndarray:
        """Return the image (H, W, 3) uint8 RGB. Raises FileNotFoundError, ValueError or TypeError in one line where the
        model is not the recipe's or cannot be loaded, RuntimeError where the run fails."""
        device = choose_device(self._device or recipe.device)
        if self._model is None and is_network_path(recipe.model):
            path = recipe.model.path
            raise ValueError(f"the recipe's model lies on another machine, {path!r:.80}: name it with --model")
        bare = replace(
            recipe,
            units=(),
            model=recipe.model if self._model is None else ModelRef(self._model, recipe.model.sha256),
            device=device.partition(":")[0],
            threads=limit_threads(recipe.threads),
        )
        if self._loaded is None or not _has_same_pipeline(self._loaded.recipe, bare):
            self._loaded = load_recipe(bare, device)
            self._loaded.pipe.set_progress_bar_config(disable=True)
        return render_recipe(replace(self._loaded, recipe=bare))


def _has_same_pipeline(a: GenerationRecipe, b: GenerationRecipe) -> bool:
    def key(recipe: GenerationRecipe) -> tuple[object, ...]:
        return recipe.model.sha256, recipe.scheduler, recipe.scheduler_config, recipe.dtype, recipe.device

    return key(a) == key(b)
