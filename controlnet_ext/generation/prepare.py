"""From a recipe to all that its picture needs. What can be refused is refused before the large files are loaded."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import cv2
import numpy as np

from ..embedded import resolve_embedded
from ..errors import error_prefix, one_line
from ..guidance.hints import HintImages
from ..guidance.schedule import Span
from ..guidance.unit import Unit
from ..guidance.weighting import layer_scales
from ..maps.control_map import ControlMap
from ..preprocessors.registry import find, find_or_none
from .inpainting import postprocess_for
from .pipeline_folder import PipelineFolder, silence_libraries
from .recipe import GenerationRecipe, RecipeUnit
from .recipe_png import encode_recipe
from .request import GuidanceSetup
from .sources import NO_MODEL, ModelRef, describe_expected_model, find_control_files, hash_files, verify_hashes

T = TypeVar("T")
LoadedNetworks = dict[str, tuple[dict[str, str], Any]]  # control models by path, with the hashes of their files


@dataclass(frozen=True, eq=False)
class LoadedRecipe:
    """A recipe with its pipeline and control models loaded. `recipe` is complete: hashes, scheduler and versions are
    filled in; `png_texts` is its text in a PNG. `warnings` are sentences on why the image may differ in its last
    bits."""

    recipe: GenerationRecipe
    png_texts: Mapping[str, str]
    warnings: tuple[str, ...]
    pipe: Any
    guidance: GuidanceSetup


def fit_unit(recipe_unit: RecipeUnit, height: int, width: int) -> RecipeUnit:
    """The ingredient with its unit's preprocessor run, and map, mask and region brought to this size."""
    unit = recipe_unit.unit
    kind = unit.image.kind if isinstance(unit.image, ControlMap) else "other"
    kind = find(unit.preprocessor).makes if unit.preprocessor else kind
    pixels, mask = HintImages(unit).fit_first_map(height, width)
    region = unit.region
    if region is not None:
        way = cv2.INTER_AREA if height * width < region.size else cv2.INTER_LINEAR
        eight_bits = np.rint(region * 255).astype(np.uint8)  # as the recipe keeps it
        region = cv2.resize(eight_bits, (width, height), interpolation=way).astype(np.float32) / 255
    unit = replace(unit, image=ControlMap(pixels, kind), inpaint=mask, region=region, preprocessor=None, parameters={})
    return replace(recipe_unit, unit=unit)


def load_recipe(recipe: GenerationRecipe, device: str) -> LoadedRecipe:
    """Load what the recipe names, on a device such as "cpu" or "cuda:1". Hashes that it holds are verified before a
    file is used; without them they are filled in. FileNotFoundError, ValueError or TypeError in one line."""
    import torch

    from .. import models
    from ..hosts.diffusers.guide import guide

    with silence_libraries():
        folder = _find_model(recipe.model, PipelineFolder.find, "--model")
        scheduler = folder.make_scheduler(recipe.scheduler)
        config = _read_scheduler_config(scheduler)
        if recipe.scheduler_config and recipe.scheduler_config != config:
            raise ValueError(f"the {type(scheduler).__name__} has other settings here than the recipe's")
        _check_steps(recipe, scheduler)
        dtype = getattr(torch, recipe.dtype)
        nets: LoadedNetworks = {}
        unet = folder.make_meta_unet() if recipe.units else None
        ingredients = tuple(
            _load_unit(
                i,
                ingredient,
                nets,
                lambda path: _bind_network(models.load(resolve_embedded(path), device, dtype), unet, path),
            )
            for i, ingredient in enumerate(recipe.units, 1)
        )
        hashes = hash_files(folder.files())
        if recipe.model.sha256:
            verify_hashes(recipe.model, hashes, "--model")
        complete = replace(
            recipe,
            model=ModelRef(recipe.model.path, hashes),
            units=ingredients,
            scheduler=type(scheduler).__name__,
            scheduler_config=config,
            made_with=_describe_versions(device),
        )
        words = encode_recipe(complete)
        pipe = folder.load(dtype, scheduler).to(device)
    pipe.set_progress_bar_config(disable=None)  # shown on terminals
    units = tuple(replace(each.unit, model=_get_model(each, nets)) for each in complete.units)
    guidance = _make_guidance_setup(complete.units, units)
    with guide(pipe, units):
        pass  # units that cannot act on this model are refused here
    return LoadedRecipe(complete, words, _compare_versions(recipe, complete), pipe, guidance)


def _make_guidance_setup(recipe_units: Sequence[RecipeUnit], units: tuple[Unit, ...]) -> GuidanceSetup:
    at_work = [(each, find_or_none(each.preprocessor)) for each in recipe_units if each.unit.weight != 0]
    steps = [postprocess_for(spec, each.pixels, each.mask, each.unit.fit) for each, spec in at_work]
    initial = next((each.pixels for each, spec in at_work if spec and spec.traits.starts_from_map), None)
    return GuidanceSetup(units, tuple(step for step in steps if step is not None), initial)


def _load_unit(i: int, recipe_unit: RecipeUnit, networks: LoadedNetworks, load: Callable[[str], Any]) -> RecipeUnit:
    """The ingredient with hashes and architecture; its network is in `nets` then, if it has one."""
    unit, source, option = recipe_unit.unit, recipe_unit.model_ref, f"--control {i},model=PATH"
    if source.path == NO_MODEL:
        if unit.after is None:
            raise ValueError(f"unit {i}: model={NO_MODEL} is for what acts after each step, such as inpaint_only")
        return replace(recipe_unit, architecture=unit.after.architecture)
    known = networks.get(source.path)
    with error_prefix(f"unit {i}"):
        hashes = known[0] if known else hash_files(_find_model(source, find_control_files, option))
        if source.sha256:
            verify_hashes(source, hashes, option)
        net = known[1] if known else load(source.path)
        if unit.layers is not None and net.skip_count is not None:
            layer_scales(1, unit.mode, unit.layers, net.skip_count, 0)
    networks[source.path] = hashes, net
    model: Any = ModelRef(source.path, hashes)
    return replace(recipe_unit, unit=replace(unit, model=model), architecture=net.architecture)


def _get_model(recipe_unit: RecipeUnit, networks: LoadedNetworks) -> Any:
    return recipe_unit.unit.after if recipe_unit.model_ref.path == NO_MODEL else networks[recipe_unit.model_ref.path][1]


def _bind_network(net: Any, unet: Any, path: str) -> Any:
    """The network; ValueError when it does not fit the UNet."""
    try:
        net.bind(unet)
    except ValueError as error:
        raise ValueError(f"{path!r} does not fit the model: {error}") from error
    return net


def _find_model(ref: ModelRef, find: Callable[[str], T], option: str) -> T:
    try:
        return find(ref.path)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error}; {describe_expected_model(ref, option)}" if ref.sha256 else str(error)
        ) from error


def _read_scheduler_config(scheduler: Any) -> dict[str, Any]:
    """A scheduler's settings, without what diffusers notes down for itself."""
    return {k: v for k, v in json.loads(scheduler.to_json_string()).items() if not k.startswith("_")}


def _check_steps(recipe: GenerationRecipe, scheduler: Any) -> None:
    """That the scheduler makes so many steps, and each unit acts in one of them."""
    from ..guidance.run import GuidanceRun

    try:
        scheduler.set_timesteps(recipe.steps)
    except (ValueError, IndexError) as error:
        raise ValueError(f"{recipe.steps} steps: {one_line(error)}") from error
    n = len(scheduler.timesteps)
    units = [ingredient.unit for ingredient in recipe.units]
    host: Any = None  # which a run asks for nothing before its first step
    GuidanceRun(units, [HintImages(unit) for unit in units], [Span(k / n, (k + 1) / n) for k in range(n)], host)


def _describe_versions(device: str) -> dict[str, str]:
    import torch

    versions = {name: importlib.metadata.version(name) for name in ("torch", "diffusers", "transformers")}
    try:
        versions["controlnet-ext"] = importlib.metadata.version("controlnet-ext")
    except importlib.metadata.PackageNotFoundError:
        versions["controlnet-ext"] = "not installed"
    kind = torch.device(device).type
    name = torch.cuda.get_device_name(device) if kind == "cuda" else torch.backends.cpu.get_cpu_capability()
    return {**versions, "device": f"{kind}, {name}"}


def _compare_versions(saved: GenerationRecipe, here: GenerationRecipe) -> tuple[str, ...]:
    if not saved.made_with:
        return ()
    return tuple(
        f"made with {name} {saved.made_with.get(name)!r}, here {version!r}: the picture may differ"
        for name, version in here.made_with.items()
        if saved.made_with.get(name) != version
    )
