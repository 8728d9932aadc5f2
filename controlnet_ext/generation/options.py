"""Recipes from the options of `generate`: new ones, and those of images with changes."""

from __future__ import annotations

import os
import re
from argparse import Namespace
from dataclasses import replace
from typing import Any

from ..embedded import EMBEDDED_NAME, list_controls
from ..errors import error_prefix
from .pipeline_folder import PipelineFolder
from .prepare import fit_unit, refit_unit
from .recipe import ATTRIBUTES, NUMBER_FIELDS, GenerationRecipe, RecipeUnit
from .recipe_png import read_recipe
from .sources import ModelRef
from .unit_text import UNIT_SETTINGS, parse_settings, parse_unit, split_unit_text


def recipe_from_options(options: Namespace) -> tuple[GenerationRecipe, str, PipelineFolder]:
    """Return the recipe that the options of `generate` describe, its maps made, the device, and the model's folder.

    Raises FileNotFoundError, ValueError or TypeError in one line."""
    if options.prompt is None:
        raise ValueError("no PROMPT given, and no recipe (--from)")
    for name in ("image", "mask"):
        if getattr(options, name) is not None and not options.control:
            raise ValueError(f"--{name} {getattr(options, name)!r} without a --control that reads it")
    given, specs = _parse_fields(options), []
    model = EMBEDDED_NAME if options.model is None else options.model
    folder = PipelineFolder.find(model)
    for i, text in enumerate(options.control, 1):
        with error_prefix(f"unit {i}"):
            specs.append(parse_unit(text, options.image, list_controls(model), options.mask))
    if "width" not in given:
        given["height"], given["width"] = folder.size
    device = choose_device(options.device)
    defaults: dict[str, Any] = {"steps": NUMBER_FIELDS["steps"].default}
    defaults |= {"guidance_scale": NUMBER_FIELDS["guidance"].default}
    defaults |= {"negative_prompt": "", "seed": int.from_bytes(os.urandom(4), "big"), "threads": _get_torch_threads()}
    defaults |= {"dtype": "float32" if device == "cpu" else "float16", "device": device.partition(":")[0]}
    recipe = GenerationRecipe(**{**defaults, **given}, model=ModelRef(model), units=())
    units = []
    for i, spec in enumerate(specs, 1):
        with error_prefix(f"unit {i}"):
            units.append(fit_unit(spec, recipe.height, recipe.width))
    return replace(recipe, units=tuple(units)), device, folder


def recipe_from_png(options: Namespace) -> tuple[GenerationRecipe, str, None]:
    """Return the recipe in a PNG with what the options of `generate` change, and the device. The folder of its model is
    not looked at yet.

    Raises FileNotFoundError, ValueError or TypeError in one line."""
    for name in ("image", "mask"):
        if getattr(options, name) is not None:
            raise ValueError(f"--{name} with --from: the recipe holds its maps already")
    saved = read_recipe(options.recipe)
    given, units, renamed = _parse_fields(options), list(saved.units), set[int]()
    for text in options.control:
        number, changes = split_unit_text(text)
        if number not in map(str, range(1, len(units) + 1)):
            raise ValueError(f"--control {number!r} with --from: expected a unit of the recipe, 1..{len(units)}")
        i = int(number) - 1
        with error_prefix(f"unit {number}"):
            units[i] = _apply_changes(units[i], changes)
        renamed |= {i} if "model" in changes else set()
    if options.model is not None:
        given["model"] = ModelRef(options.model, saved.model.sha256)
    elif _is_network_path(saved.model):
        raise ValueError(f"the recipe's model lies on another machine, {saved.model.path!r:.80}: name it with --model")
    for i, unit in enumerate(units):
        if i not in renamed and _is_network_path(unit.model):
            raise ValueError(
                f"the model of unit {i + 1} lies on another machine: name it with --control {i + 1},model=PATH"
            )
    device = choose_device(options.device or saved.device)
    given["device"] = device.partition(":")[0]
    if "scheduler" in given:
        given["scheduler_config"] = {}
    recipe = replace(saved, **given)
    if (recipe.height, recipe.width) != (saved.height, saved.width):
        units = [refit_unit(unit, recipe.height, recipe.width) for unit in units]
    return replace(recipe, units=tuple(units)), device, None


def _apply_changes(recipe_unit: RecipeUnit, changes: dict[str, str]) -> RecipeUnit:
    allowed = ("model", *UNIT_SETTINGS)
    if odd := [key for key in changes if key not in allowed]:
        raise ValueError(f"{odd[0]!r} cannot change in a recipe, only {', '.join(allowed)}")
    values = parse_settings(changes)
    if "model" in changes:
        values["model"] = ModelRef(changes["model"], recipe_unit.model.sha256)
    return replace(recipe_unit, **values)


def _parse_fields(options: Namespace) -> dict[str, Any]:
    """Return the recipe's fields that the options state, each checked by itself."""
    given = {name: getattr(options, name) for name in ("prompt", "negative", "scheduler", "dtype")}
    words: dict[str, Any] = {ATTRIBUTES.get(name, name): word for name, word in given.items() if word is not None}
    for name in ("seed", "steps", "guidance"):
        if getattr(options, name) is not None:
            words[ATTRIBUTES.get(name, name)] = NUMBER_FIELDS[name].parse(getattr(options, name))
    if options.size is not None:
        sides = re.fullmatch(r"(\d{1,9})x(\d{1,9})", options.size)
        if sides is None:
            raise ValueError(f"size {options.size!r}: expected WIDTHxHEIGHT in pixels, such as 512x768")
        words |= {name: NUMBER_FIELDS[name].parse(sides[k]) for k, name in enumerate(("width", "height"), 1)}
    return words


def choose_device(name: str | None) -> str:
    """Return the device of this name, by default the fastest one. Raises ValueError where this machine has none."""
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if not re.fullmatch(r"cpu|mps|cuda(:\d{1,2})?", name):
        raise ValueError(f"device {name!r}: expected cpu, cuda, cuda:1 or mps")
    kind, _, index = name.partition(":")
    count = {"cpu": 1, "mps": int(torch.backends.mps.is_available()), "cuda": torch.cuda.device_count()}[kind]
    if int(index or 0) >= count:
        raise ValueError(f"this machine has no device {name}; --device cpu works everywhere, with other last bits")
    return name


def _get_torch_threads() -> int:
    import torch

    return torch.get_num_threads()


def _is_network_path(ref: ModelRef) -> bool:
    """Return True for a path that Windows would ask another machine for, and tell it who asks."""
    return ref.path[:1] in ("\\", "/") and ref.path[1:2] in ("\\", "/")
