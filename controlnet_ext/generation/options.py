"""A recipe from the options of a command line: anew, or that of a picture with changes."""

from __future__ import annotations

import os
import re
from argparse import Namespace
from dataclasses import replace
from typing import Any

from ..embedded import NAME, controls, place
from ..guidance.unit import named
from .pipeline_folder import PipelineFolder
from .prepare import fitted
from .recipe import NUMBERS, Ingredient, Recipe
from .recipe_png import read_recipe
from .sources import Source
from .unit_text import SETTINGS, parts, settings, unit


def asked(options: Namespace) -> tuple[Recipe, str]:
    """The recipe that the options ask for, its maps made, and the device."""
    if options.prompt is None:
        raise ValueError("no PROMPT given, and no recipe (--from)")
    if options.image is not None and not options.control:
        raise ValueError(f"--image {options.image!r} without a --control that reads it")
    if options.mask is not None and not options.control:
        raise ValueError(f"--mask {options.mask!r} without a --control that reads it")
    model = NAME if options.model is None else options.model
    place(model)  # that it is installed, before anything else is said of it
    words, units = _words(options), []
    for i, text in enumerate(options.control, 1):
        with named(f"unit {i}"):
            units.append(unit(text, options.image, controls(model), options.mask))
    if "width" not in words:
        words["height"], words["width"] = PipelineFolder.find(model).size
    device = chosen_device(options.device)
    defaults: dict[str, Any] = {name: NUMBERS[name].default for name in ("steps", "guidance")}
    defaults |= {"negative": "", "seed": int.from_bytes(os.urandom(4), "big"), "threads": _threads()}
    defaults |= {"dtype": "float32" if device == "cpu" else "float16", "device": device.partition(":")[0]}
    recipe = Recipe(**{**defaults, **words}, model=Source(model), ingredients=())
    made = []
    for i, its in enumerate(units, 1):
        with named(f"unit {i}"):
            made.append(fitted(Ingredient(its, its.preprocessor, its.parameters), recipe.height, recipe.width))
    return replace(recipe, ingredients=tuple(made)), device


def again(options: Namespace) -> tuple[Recipe, str]:
    """The recipe in a picture, with what the options change, and the device."""
    for name in ("image", "mask"):
        if getattr(options, name) is not None:
            raise ValueError(f"--{name} with --from: the recipe holds its maps already")
    old = read_recipe(options.recipe)
    words, ingredients, moved = _words(options), list(old.ingredients), set[int]()
    for text in options.control:
        number, changes = parts(text)
        if number not in map(str, range(1, len(ingredients) + 1)):
            raise ValueError(f"--control {number!r} with --from: expected a unit of the recipe, 1..{len(ingredients)}")
        i = int(number) - 1
        with named(f"unit {number}"):
            ingredients[i] = _changed(ingredients[i], changes)
        moved |= {i} if "model" in changes else set()
    if options.model is not None:
        words["model"] = Source(options.model, old.model.sha256)
    elif _is_elsewhere(old.model):
        raise ValueError(f"the recipe's model lies on another machine, {old.model.path!r:.80}: name it with --model")
    for i, ingredient in enumerate(ingredients):
        if i not in moved and _is_elsewhere(ingredient.source):
            raise ValueError(
                f"the model of unit {i + 1} lies on another machine: name it with --control {i + 1},model=PATH"
            )
    device = chosen_device(options.device or old.device)
    words["device"] = device.partition(":")[0]
    if "scheduler" in words:
        words["scheduler_config"] = {}
    recipe = replace(old, **words)
    if (recipe.height, recipe.width) != (old.height, old.width):
        ingredients = [fitted(ingredient, recipe.height, recipe.width) for ingredient in ingredients]
    return replace(recipe, ingredients=tuple(ingredients)), device


def _changed(ingredient: Ingredient, changes: dict[str, str]) -> Ingredient:
    allowed = ("model", *SETTINGS)
    if odd := [key for key in changes if key not in allowed]:
        raise ValueError(f"{odd[0]!r} cannot change in a recipe, only {', '.join(allowed)}")
    values = settings(changes)
    if "model" in changes:
        values["model"] = Source(changes["model"], ingredient.source.sha256)
    return replace(ingredient, unit=replace(ingredient.unit, **values))


def _words(options: Namespace) -> dict[str, Any]:
    """What of a recipe the options say, checked as far as it goes alone."""
    given = {name: getattr(options, name) for name in ("prompt", "negative", "scheduler", "dtype")}
    words: dict[str, Any] = {name: word for name, word in given.items() if word is not None}
    for name in ("seed", "steps", "guidance"):
        if getattr(options, name) is not None:
            words[name] = NUMBERS[name].parse(getattr(options, name))
    if options.size is not None:
        sides = re.fullmatch(r"(\d{1,9})x(\d{1,9})", options.size)
        if sides is None:
            raise ValueError(f"size {options.size!r}: expected WIDTHxHEIGHT in pixels, such as 512x768")
        words |= {name: NUMBERS[name].parse(sides[k]) for k, name in enumerate(("width", "height"), 1)}
    return words


def chosen_device(name: str | None) -> str:
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


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def _is_elsewhere(source: Source) -> bool:
    """A path that Windows would ask another machine for, and tell it who asks."""
    return source.path[:1] in ("\\", "/") and source.path[1:2] in ("\\", "/")
