"""From all that a picture needs to the picture."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..errors import one_line
from ..preprocessors.registry import find_or_none
from .inpainting import make_initial_latents, postprocess_for
from .prepare import LoadedRecipe
from .recipe import GenerationRecipe


def render(loaded: LoadedRecipe) -> np.ndarray:
    """The picture (H, W, 3) uint8 RGB. ValueError when a unit cannot act on this model, RuntimeError in one line for
    what goes wrong in the run."""
    import torch

    from ..hosts.diffusers.guide import guide

    recipe, pipe = loaded.recipe, loaded.pipe
    pipe.set_progress_bar_config(disable=None)  # shown on terminals
    at_work = [each for each in recipe.units if each.unit.weight != 0]
    specs = [find_or_none(each.preprocessor) for each in at_work]
    filled = next(
        (e.pixels for e, spec in zip(at_work, specs, strict=True) if spec and spec.traits.starts_from_map), None
    )
    generator, begins = torch.Generator().manual_seed(recipe.seed), dict[str, Any]()
    with _deterministic_torch(recipe), guide(pipe, loaded.units):
        try:
            if filled is not None:
                begins["latents"] = make_initial_latents(pipe, filled, recipe.height, recipe.width, generator)
            result = pipe(
                recipe.prompt,
                negative_prompt=recipe.negative or None,
                height=recipe.height,
                width=recipe.width,
                num_inference_steps=recipe.steps,
                guidance_scale=recipe.guidance,
                generator=generator,
                output_type="np",
                **begins,
            )
        except (ValueError, TypeError, RuntimeError) as error:
            raise RuntimeError(one_line(error, 500)) from error
    if any(getattr(result, "nsfw_content_detected", None) or ()):
        raise RuntimeError("the model's safety checker withheld the picture; try another seed or prompt")
    picture = result.images[0]
    if not np.isfinite(picture).all():
        raise RuntimeError(f"the picture holds NaN: the model overflows in {recipe.dtype}, try --dtype float32")
    pixels = (picture * 255).round().astype(np.uint8)  # as diffusers does it
    for each, spec in zip(at_work, specs, strict=True):
        finish = postprocess_for(spec, each.pixels, each.mask, each.unit.fit)
        pixels = pixels if finish is None else finish(pixels)
    return pixels


@contextmanager
def _deterministic_torch(recipe: GenerationRecipe) -> Iterator[None]:
    """Torch's settings on which the bits depend."""
    import torch

    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.set_num_threads(recipe.threads)
    if recipe.device != "cpu":  # on a CPU all that a pipeline does is, and this would also fill fresh memory
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts; torch asks for it
        torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(strict, warn_only=warn_only)
        torch.set_num_threads(threads)
