"""From a recipe to all that its picture needs. What can be refused is refused before the large files are loaded."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import cv2
import numpy as np

from ..embedded import place
from ..guidance.contract import Span
from ..guidance.hints import Maps
from ..guidance.unit import Unit, named
from ..guidance.weighting import scales
from ..maps.control_map import ControlMap
from ..preprocessors.registry import find
from .pipeline_folder import PipelineFolder, quiet
from .recipe import Ingredient, Recipe
from .recipe_png import texts
from .sources import NOTHING, Source, control_files, hashed, verify, wanted

T = TypeVar("T")
Nets = dict[str, tuple[dict[str, str], Any]]  # control models by path, with the hashes of their files


@dataclass(frozen=True, eq=False)
class Prepared:
    """All that a picture needs, loaded. `texts` is its recipe for the PNG, complete; `remarks` say why the picture may
    not be that of the recipe to the bit."""

    recipe: Recipe
    texts: Mapping[str, str]
    remarks: tuple[str, ...]
    pipe: Any
    units: tuple[Unit, ...]


def fitted(ingredient: Ingredient, height: int, width: int) -> Ingredient:
    """The ingredient with its unit's preprocessor run, and map, mask and region brought to this size."""
    unit = ingredient.unit
    kind = unit.image.kind if isinstance(unit.image, ControlMap) else "other"
    kind = find(unit.preprocessor).makes if unit.preprocessor else kind
    pixels, mask = Maps(unit).picture(height, width)
    region = unit.region
    if region is not None:
        way = cv2.INTER_AREA if height * width < region.size else cv2.INTER_LINEAR
        eight_bits = np.rint(region * 255).astype(np.uint8)  # as the recipe keeps it
        region = cv2.resize(eight_bits, (width, height), interpolation=way).astype(np.float32) / 255
    unit = replace(unit, image=ControlMap(pixels, kind), inpaint=mask, region=region, preprocessor=None, parameters={})
    return replace(ingredient, unit=unit)


def prepare(recipe: Recipe, device: str) -> Prepared:
    """Load what the recipe names, on a device such as "cpu" or "cuda:1". Hashes that it holds are verified before a
    file is used; without them they are filled in. FileNotFoundError, ValueError or TypeError in one line."""
    import torch

    from .. import models

    with quiet():
        folder = _found(recipe.model, PipelineFolder.find, "--model")
        scheduler = folder.scheduler(recipe.scheduler)
        config = _config(scheduler)
        if recipe.scheduler_config and recipe.scheduler_config != config:
            raise ValueError(f"the {type(scheduler).__name__} has other settings here than the recipe's")
        _check_steps(recipe, scheduler)
        dtype = getattr(torch, recipe.dtype)
        nets: Nets = {}
        unet = folder.unet() if recipe.ingredients else None
        ingredients = tuple(
            _loaded(i, ingredient, nets, lambda path: _fitting(models.load(place(path), device, dtype), unet, path))
            for i, ingredient in enumerate(recipe.ingredients, 1)
        )
        hashes = hashed(folder.files())
        if recipe.model.sha256:
            verify(recipe.model, hashes, "--model")
        complete = replace(
            recipe,
            model=Source(recipe.model.path, hashes),
            ingredients=ingredients,
            scheduler=type(scheduler).__name__,
            scheduler_config=config,
            made_with=_made_with(device),
        )
        words = texts(complete)
        pipe = folder.load(dtype, scheduler).to(device)
    units = tuple(replace(each.unit, model=_model_of(each, nets)) for each in complete.ingredients)
    return Prepared(complete, words, _remarks(recipe, complete), pipe, units)


def _loaded(i: int, ingredient: Ingredient, nets: Nets, load: Callable[[str], Any]) -> Ingredient:
    """The ingredient with hashes and architecture; its network is in `nets` then, if it has one."""
    unit, source, option = ingredient.unit, ingredient.source, f"--control {i},model=PATH"
    if source.path == NOTHING:
        if unit.after is None:
            raise ValueError(f"unit {i}: model={NOTHING} is for what acts after each step, such as inpaint_only")
        return replace(ingredient, architecture=unit.after.architecture)
    known = nets.get(source.path)
    with named(f"unit {i}"):
        hashes = known[0] if known else hashed(_found(source, control_files, option))
        if source.sha256:
            verify(source, hashes, option)
        net = known[1] if known else load(source.path)
        if unit.layers is not None and hasattr(net, "layout"):
            scales(1, unit.mode, unit.layers, len(net.layout.skips), 0)
    nets[source.path] = hashes, net
    model: Any = Source(source.path, hashes)
    return replace(ingredient, unit=replace(unit, model=model), architecture=net.architecture)


def _model_of(ingredient: Ingredient, nets: Nets) -> Any:
    return ingredient.unit.after if ingredient.source.path == NOTHING else nets[ingredient.source.path][1]


def _fitting(net: Any, unet: Any, path: str) -> Any:
    """The network; ValueError when it does not fit the UNet."""
    try:
        if hasattr(net, "settle"):
            net.settle(unet)
    except ValueError as error:
        raise ValueError(f"{path!r} does not fit the model: {error}") from error
    return net


def _found(source: Source, find: Callable[[str], T], option: str) -> T:
    try:
        return find(source.path)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; {wanted(source, option)}" if source.sha256 else str(error)) from error


def _config(scheduler: Any) -> dict[str, Any]:
    """A scheduler's settings, without what diffusers notes down for itself."""
    return {k: v for k, v in json.loads(scheduler.to_json_string()).items() if not k.startswith("_")}


def _check_steps(recipe: Recipe, scheduler: Any) -> None:
    """That the scheduler makes so many steps, and each unit acts in one of them."""
    from ..guidance.run import Run

    try:
        scheduler.set_timesteps(recipe.steps)
    except (ValueError, IndexError) as error:
        raise ValueError(f"{recipe.steps} steps: {' '.join(str(error).split())}") from error
    n = len(scheduler.timesteps)
    units = [ingredient.unit for ingredient in recipe.ingredients]
    host: Any = None  # which a run asks for nothing before its first step
    Run(units, [Maps(unit) for unit in units], [Span(k / n, (k + 1) / n) for k in range(n)], host)


def _made_with(device: str) -> dict[str, str]:
    import torch

    versions = {name: importlib.metadata.version(name) for name in ("torch", "diffusers", "transformers")}
    try:
        versions["controlnet-ext"] = importlib.metadata.version("controlnet-ext")
    except importlib.metadata.PackageNotFoundError:
        versions["controlnet-ext"] = "not installed"
    kind = torch.device(device).type
    name = torch.cuda.get_device_name(device) if kind == "cuda" else torch.backends.cpu.get_cpu_capability()
    return {**versions, "device": f"{kind}, {name}"}


def _remarks(asked: Recipe, here: Recipe) -> tuple[str, ...]:
    if not asked.made_with:
        return ()
    return tuple(
        f"made with {name} {asked.made_with.get(name)!r}, here {version!r}: the picture may differ"
        for name, version in here.made_with.items()
        if asked.made_with.get(name) != version
    )
