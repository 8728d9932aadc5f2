"""Recipes from the options of `generate`: new ones, and those of images with changes.

Units are written as text: `canny,model=control.safetensors,weight=.8,window=0..0.6,low=50`.

The name of a preprocessor comes first, or `none` where the image is a map already, whose `kind` may be given. Then
key=value: keys of `UNIT_KEYS`, and the preprocessor's parameters. A value with commas stands in quotes, "…" or '…'.
Controls of the embedded model are names too: `depth,map=depth.png`.
"""

from __future__ import annotations

import os
import re
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import Any, cast

from ..embedded import EMBEDDED_NAME, get_control_kind, list_controls
from ..errors import error_prefix, suggest_names
from ..files.disk import open_regular_file
from ..files.image_reader import read_image, read_mask
from ..guidance.schedule import Window
from ..maps.control_map import ControlMap, normalize_kind
from ..preprocessors.registry import (
    RESOLUTION_PARAMETER,
    Preprocessor,
    find_default_preprocessor,
    find_or_none,
    find_unless_none,
)
from .pipeline_folder import PipelineFolder
from .prepare import check_control_model, fit_unit, refit_unit
from .recipe import ATTRIBUTES, NUMBER_FIELDS, GenerationRecipe, ModelRef, RecipeUnit, UnitSpec
from .recipe_png import read_recipe

UNIT_SETTINGS = ("weight", "window", "mode", "layers")  # how a unit acts, whatever its map
UNIT_KEYS = ("model", "image", "map", "kind", "mask", *UNIT_SETTINGS, "region", "fit")
_PART_PATTERN = re.compile(r"""\s*(?:([\w.-]+)\s*=\s*)?(?:"([^"]*)"|'([^']*)'|([^,"'\s][^,]*|))\s*(,|$)""")


def parse_unit(
    text: str,
    image: str | None = None,
    models: Mapping[str, str] = MappingProxyType({}),
    mask: str | None = None,
    map_image: str | None = None,
) -> UnitSpec:
    """Return the unit that a text describes.

    Where the text names none, `image` is the image or `map_image` the map, `mask` is the mask of units that inpaint,
    and `models` has the model by control, such as "depth": by the name of the control or by the kind of its maps.
    Raises ValueError or TypeError in one line: an unknown preprocessor, key or parameter with the nearest names, a key
    given twice, an invalid value."""
    name, values = split_unit_text(text)
    spec = _find_preprocessor(name, models)
    own = [] if spec is None else [p.name for p in (*spec.parameters, RESOLUTION_PARAMETER)]
    for key in values:
        if key not in UNIT_KEYS and key not in own:
            message = f"{key!r} is unknown to {name}"
            raise ValueError(
                suggest_names(message, key, UNIT_KEYS)
                if spec is None
                else spec.suggest_parameter(message, key, UNIT_KEYS)
            )
    if "kind" in values and spec is not None:
        raise ValueError(f"kind {values['kind']!r} of a map that {spec.name} makes, whose maps are {spec.makes!r}")
    kind = values.get("kind") if spec is None else spec.makes
    model = values.get("model") or _find_model(name, kind, models)
    if model is None:
        hint = f" (the embedded model has its own for {', '.join(models)})" if models else ""
        raise ValueError(f"no control model given{hint}: name one with model=PATH")
    source, is_map = _find_source(values, image, map_image)
    if is_map and spec is not None:
        _check_given_map(spec, [key for key in values if key in own])
    white = values.get("mask", mask if spec is not None and spec.takes_mask else None)
    if white is None and spec is not None and spec.traits.restores_unmasked:
        raise ValueError(
            f"{spec.name} needs to know where to paint: give a mask, white there, with mask=PATH or --mask"
        )
    is_map = is_map or spec is None
    return UnitSpec(
        model=ModelRef(model),
        image=ControlMap(read_image(source), normalize_kind(kind)) if is_map and kind else source,
        **parse_settings(values),
        inpaint=white,
        region=read_mask(values["region"]) if "region" in values else None,
        fit=cast(Any, values.get("fit", "crop")),
        preprocessor=None if spec is None or is_map else spec.name,
        parameters={} if is_map else _parse_parameters(spec, {key: v for key, v in values.items() if key in own}),
    )


def _find_preprocessor(name: str, models: Mapping[str, str]) -> Preprocessor | None:
    """Return the preprocessor of a name, None for "none". A control of `models` that is no preprocessor stands for the
    one that front ends choose first for its maps. Raises ValueError with the nearest names."""
    kind = get_control_kind(name) if name in models and find_or_none(name) is None else None
    return find_unless_none(name) if kind is None else find_default_preprocessor(kind)


def _find_model(name: str, kind: str | None, models: Mapping[str, str]) -> str | None:
    """Return the model of the control of this name, else of the first that reads maps of this kind."""
    fitting = (path for control, path in models.items() if kind is not None and get_control_kind(control) == kind)
    return models.get(name) or next(fitting, None)


def _find_source(values: Mapping[str, str], image: str | None, map_image: str | None) -> tuple[str, bool]:
    """Return the file that a unit reads, and whether it holds the map itself. Raises ValueError for none or two."""
    keys = [key for key in ("image", "map") if key in values]
    paths = {"image": image, "map": map_image} if not keys else {key: values[key] for key in keys}
    sources = [(path, key == "map") for key, path in paths.items() if path is not None]
    if len(sources) > 1:
        raise ValueError(
            "image and map: a unit reads an image, of which its preprocessor makes the map, or the map itself; name "
            "one of the two with image=PATH or map=PATH"
        )
    if not sources:
        raise ValueError(
            "no image given: name one with image=PATH, or for all units with --image; a finished map with map=PATH or "
            "--map"
        )
    return sources[0]


def _check_given_map(spec: Preprocessor, parameters: Sequence[str]) -> None:
    """Raise ValueError where a preprocessor has more to do than its map, which is given, or parameters for it."""
    if parameters:
        raise ValueError(
            f"{parameters[0]} is for {spec.name} to make a map, which is given already: leave one of the two"
        )
    if (
        spec.needs_mask
        or spec.traits.acts_after_step
        or spec.traits.changes_finished_image
        or spec.traits.starts_from_map
    ):
        raise ValueError(f"{spec.name} does more than make a map: give its image with image=PATH or --image, not a map")


def split_unit_text(text: str) -> tuple[str, dict[str, str]]:
    """Return the first word, and the values by key. Raises ValueError with the part that is malformed."""
    parts, at = [], 0
    while at <= len(text):
        match = _PART_PATTERN.match(text, at)
        if match is None:
            raise ValueError(f"{text[at:]!r}: quotes must enclose a whole value, and end")
        key, *quotes, plain, _ = match.groups()
        parts.append((key, plain.strip() if plain is not None else next(q for q in quotes if q is not None)))
        at = match.end() + (match[5] == "")
    (key, name), *rest = parts
    if key or not name:
        raise ValueError(f"{text!r} does not begin with the name of a preprocessor, or none for a map, and a comma")
    values: dict[str, str] = {}
    for key, value in rest:
        if not key:
            raise ValueError(f"{value!r} is not key=value; a value with commas stands in quotes")
        if key in values:
            raise ValueError(f"{key} is given twice, as {values[key]!r} and {value!r}")
        values[key] = value
    return name, values


def parse_settings(values: dict[str, str]) -> dict[str, Any]:
    """Return the values of `UNIT_SETTINGS` that are given, as `Unit` takes them. Raises ValueError or TypeError on
    invalid ones."""
    settings: dict[str, Any] = {key: values[key] for key in UNIT_SETTINGS if key in values}
    if "weight" in settings and "@" not in settings["weight"]:
        settings["weight"] = _parse_number("weight", settings["weight"])
    if "window" in settings:
        start, dots, end = settings["window"].partition("..")
        if not dots:
            raise ValueError(f"window {settings['window']!r}: expected start..end, such as 0..0.6")
        settings["window"] = Window(_parse_number("window start", start), _parse_number("window end", end))
    if "layers" in settings:
        settings["layers"] = [_parse_number("layers", factor) for factor in settings["layers"].split(",")]
    return settings


def _parse_number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{name} {text!r} is not a number") from None


def _parse_parameters(spec: Preprocessor | None, texts: dict[str, str]) -> dict[str, Any]:
    if spec is None:
        return {}
    match = {"resolution": "match"} if texts.get("resolution") == "match" else {}
    return {**spec.parse({key: text for key, text in texts.items() if key not in match}), **match}


def recipe_from_options(options: Namespace) -> tuple[GenerationRecipe, str, PipelineFolder]:
    """Return the recipe that the options of `generate` describe, its maps made, the device, and the model's folder.

    Raises FileNotFoundError, ValueError or TypeError in one line."""
    if options.prompt is None:
        raise ValueError("no PROMPT given, and no recipe (--from)")
    for name in ("image", "map", "mask"):
        if getattr(options, name) is not None and not options.control:
            raise ValueError(f"--{name} {getattr(options, name)!r} without a --control that reads it")
    field_values, specs = _parse_fields(options), []
    model = EMBEDDED_NAME if options.model is None else options.model
    folder = PipelineFolder.find(model)
    for i, text in enumerate(options.control, 1):
        with error_prefix(f"unit {i}"):
            specs.append(parse_unit(text, options.image, list_controls(model), options.mask, options.map))
            _check_files(specs[-1])
        check_control_model(specs[-1].model, i)
    if "width" not in field_values:
        field_values["height"], field_values["width"] = folder.size
    device = choose_device(options.device)
    defaults: dict[str, Any] = {"steps": NUMBER_FIELDS["steps"].default}
    defaults |= {"guidance_scale": NUMBER_FIELDS["guidance"].default}
    defaults |= {"negative_prompt": "", "seed": int.from_bytes(os.urandom(4), "big"), "threads": _get_torch_threads()}
    defaults |= {"dtype": "float32" if device == "cpu" else "float16", "device": device.partition(":")[0]}
    recipe = GenerationRecipe(**{**defaults, **field_values}, model=ModelRef(model), units=())
    units = []
    for i, spec in enumerate(specs, 1):
        with error_prefix(f"unit {i}"), _suggest_map(spec):
            units.append(fit_unit(spec, recipe.height, recipe.width))
    return replace(recipe, units=tuple(units)), device, folder


@contextmanager
def _suggest_map(spec: UnitSpec) -> Iterator[None]:
    """Add to a FileNotFoundError of the preprocessor's weights that a finished map needs none."""
    try:
        yield
    except FileNotFoundError as error:
        preprocessor = find_or_none(spec.preprocessor)
        if preprocessor is None or not preprocessor.weights:
            raise
        raise FileNotFoundError(f"{error}; or give the finished map with map=PATH or --map") from error


def _check_files(spec: UnitSpec) -> None:
    """Raise FileNotFoundError or ValueError unless the images that a unit names are files: before torch is imported,
    which takes seconds."""
    for image in (spec.image, spec.inpaint):
        if isinstance(image, str):
            with open_regular_file(image):
                pass


def recipe_from_png(options: Namespace) -> tuple[GenerationRecipe, str, None]:
    """Return the recipe in a PNG with what the options of `generate` change, and the device. The folder of its model is
    not looked at yet.

    Raises FileNotFoundError, ValueError or TypeError in one line."""
    for name in ("image", "map", "mask"):
        if getattr(options, name) is not None:
            raise ValueError(f"--{name} with --from: the recipe holds its maps already")
    saved_recipe = read_recipe(options.recipe)
    field_values, units, new_models = _parse_fields(options), list(saved_recipe.units), set[int]()
    for text in options.control:
        number, changes = split_unit_text(text)
        if number not in map(str, range(1, len(units) + 1)):
            raise ValueError(f"--control {number!r} with --from: expected a unit of the recipe, 1..{len(units)}")
        i = int(number) - 1
        with error_prefix(f"unit {number}"):
            units[i] = _apply_changes(units[i], changes)
        new_models |= {i} if "model" in changes else set()
    if options.model is not None:
        field_values["model"] = ModelRef(options.model, saved_recipe.model.sha256)
    elif is_network_path(saved_recipe.model):
        raise ValueError(
            f"the recipe's model lies on another machine, {saved_recipe.model.path!r:.80}: name it with --model"
        )
    for i, unit in enumerate(units):
        if i not in new_models and is_network_path(unit.model):
            raise ValueError(
                f"the model of unit {i + 1} lies on another machine: name it with --control {i + 1},model=PATH"
            )
    device = choose_device(options.device or saved_recipe.device)
    field_values["device"] = device.partition(":")[0]
    if "scheduler" in field_values:
        field_values["scheduler_config"] = {}
    recipe = replace(saved_recipe, **field_values)
    if (recipe.height, recipe.width) != (saved_recipe.height, saved_recipe.width):
        units = [refit_unit(unit, recipe.height, recipe.width) for unit in units]
    return replace(recipe, units=tuple(units)), device, None


def _apply_changes(recipe_unit: RecipeUnit, changes: dict[str, str]) -> RecipeUnit:
    names = ("model", *UNIT_SETTINGS)
    if odd := [key for key in changes if key not in names]:
        raise ValueError(f"{odd[0]!r} cannot change in a recipe, only {', '.join(names)}")
    values = parse_settings(changes)
    if "model" in changes:
        values["model"] = ModelRef(changes["model"], recipe_unit.model.sha256)
    return replace(recipe_unit, **values)


def _parse_fields(options: Namespace) -> dict[str, Any]:
    """Return the recipe's fields that the options state, each checked by itself."""
    texts = {name: getattr(options, name) for name in ("prompt", "negative", "scheduler", "dtype")}
    words: dict[str, Any] = {ATTRIBUTES.get(name, name): word for name, word in texts.items() if word is not None}
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


def is_network_path(ref: ModelRef) -> bool:
    """Return True for a path that Windows would ask another machine for, and tell it who asks."""
    return ref.path[:1] in ("\\", "/") and ref.path[1:2] in ("\\", "/")
