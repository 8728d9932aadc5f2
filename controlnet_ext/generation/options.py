"""A recipe from the options of a command line: anew, or that of a picture with changes."""

from __future__ import annotations

import os
import re
from argparse import Namespace
from dataclasses import replace
from typing import Any

from ..embedded import EMBEDDED_NAME, list_controls, resolve_embedded
from ..errors import error_prefix
from .pipeline_folder import PipelineFolder
from .prepare import fit_unit
from .recipe import ATTRIBUTES, NUMBER_FIELDS, GenerationRecipe, RecipeUnit
from .recipe_png import read_recipe
from .sources import ModelRef
from .unit_text import UNIT_SETTINGS, parse_settings, parse_unit, split_unit_text


def recipe_from_options(options: Namespace) -> tuple[GenerationRecipe, str]:
    """The recipe that the options ask for, its maps made, and the device."""
    if options.prompt is None:
        raise ValueError("no PROMPT given, and no recipe (--from)")
    if options.image is not None and not options.control:
        raise ValueError(f"--image {options.image!r} without a --control that reads it")
    if options.mask is not None and not options.control:
        raise ValueError(f"--mask {options.mask!r} without a --control that reads it")
    model = EMBEDDED_NAME if options.model is None else options.model
    resolve_embedded(model)  # that it is installed, before anything else is said of it
    words, units = _parse_fields(options), []
    for i, text in enumerate(options.control, 1):
        with error_prefix(f"unit {i}"):
            units.append(parse_unit(text, options.image, list_controls(model), options.mask))
    if "width" not in words:
        words["height"], words["width"] = PipelineFolder.find(model).size
    device = choose_device(options.device)
    defaults: dict[str, Any] = {
        ATTRIBUTES.get(name, name): NUMBER_FIELDS[name].default for name in ("steps", "guidance")
    }
    defaults |= {"negative_prompt": "", "seed": int.from_bytes(os.urandom(4), "big"), "threads": _get_torch_threads()}
    defaults |= {"dtype": "float32" if device == "cpu" else "float16", "device": device.partition(":")[0]}
    recipe = GenerationRecipe(**{**defaults, **words}, model=ModelRef(model), units=())
    made = []
    for i, its in enumerate(units, 1):
        with error_prefix(f"unit {i}"):
            made.append(fit_unit(RecipeUnit(its, its.preprocessor, its.parameters), recipe.height, recipe.width))
    return replace(recipe, units=tuple(made)), device


def recipe_from_png(options: Namespace) -> tuple[GenerationRecipe, str]:
    """The recipe in a picture, with what the options change, and the device."""
    for name in ("image", "mask"):
        if getattr(options, name) is not None:
            raise ValueError(f"--{name} with --from: the recipe holds its maps already")
    old = read_recipe(options.recipe)
    words, ingredients, moved = _parse_fields(options), list(old.units), set[int]()
    for text in options.control:
        number, changes = split_unit_text(text)
        if number not in map(str, range(1, len(ingredients) + 1)):
            raise ValueError(f"--control {number!r} with --from: expected a unit of the recipe, 1..{len(ingredients)}")
        i = int(number) - 1
        with error_prefix(f"unit {number}"):
            ingredients[i] = _apply_changes(ingredients[i], changes)
        moved |= {i} if "model" in changes else set()
    if options.model is not None:
        words["model"] = ModelRef(options.model, old.model.sha256)
    elif _is_network_path(old.model):
        raise ValueError(f"the recipe's model lies on another machine, {old.model.path!r:.80}: name it with --model")
    for i, ingredient in enumerate(ingredients):
        if i not in moved and _is_network_path(ingredient.model_ref):
            raise ValueError(
                f"the model of unit {i + 1} lies on another machine: name it with --control {i + 1},model=PATH"
            )
    device = choose_device(options.device or old.device)
    words["device"] = device.partition(":")[0]
    if "scheduler" in words:
        words["scheduler_config"] = {}
    recipe = replace(old, **words)
    if (recipe.height, recipe.width) != (old.height, old.width):
        ingredients = [fit_unit(ingredient, recipe.height, recipe.width) for ingredient in ingredients]
    return replace(recipe, units=tuple(ingredients)), device


def _apply_changes(recipe_unit: RecipeUnit, changes: dict[str, str]) -> RecipeUnit:
    allowed = ("model", *UNIT_SETTINGS)
    if odd := [key for key in changes if key not in allowed]:
        raise ValueError(f"{odd[0]!r} cannot change in a recipe, only {', '.join(allowed)}")
    values = parse_settings(changes)
    if "model" in changes:
        values["model"] = ModelRef(changes["model"], recipe_unit.model_ref.sha256)
    return replace(recipe_unit, unit=replace(recipe_unit.unit, **values))


def _parse_fields(options: Namespace) -> dict[str, Any]:
    """What of a recipe the options say, checked as far as it goes alone."""
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
    """The device, by default the fastest there is. ValueError where this machine has none of that name."""
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
    """A path that Windows would ask another machine for, and tell it who asks."""
    return ref.path[:1] in ("\\", "/") and ref.path[1:2] in ("\\", "/")
