"""Recipes as text in a PNG. A recipe that is read may be hostile: all of it is checked, and nothing is run."""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import error_prefix
from ..files.disk import open_regular_file, parse_object, parse_whole_number
from ..files.image_reader import read_image
from ..files.image_writer import PNG_TEXT_LIMIT, PNG_TEXT_TOTAL_LIMIT, encode_image, read_png_text
from ..guidance.schedule import Window
from ..maps.control_map import ControlMap
from .recipe import ATTRIBUTES, NO_MODEL, NUMBER_FIELDS, GenerationRecipe, ModelRef, RecipeUnit, check_units

PNG_KEYWORD = "controlnet-ext"  # of the text; images in it have keywords that begin so
FORMAT_VERSION = 1
RECIPE_FILE_LIMIT = 2**28  # bytes of an image: 4096x4096 pixels and 64 MiB of text are half of it
MAX_WORD_LENGTH = 300  # characters of a name, a path, a version
RECIPE_FIELDS = {
    **dict.fromkeys(NUMBER_FIELDS, (int, float)),
    **dict.fromkeys(("prompt", "negative", "dtype", "device", "scheduler"), str),
    **dict.fromkeys(("model", "scheduler_config", "made_with"), dict),
    "format": int,
    "units": list,
}
UNIT_FIELDS = {
    **dict.fromkeys(("mode", "fit", "kind", "architecture"), str),
    "model": dict,
    "weight": (int, float, str),
    "window": list,
    "layers": (list, type(None)),
    "region": bool,
    "preprocessor": (str, type(None)),
    "parameters": dict,
    "mask": bool,
}


def encode_recipe(recipe: GenerationRecipe) -> dict[str, str]:
    """Return the texts of a PNG by keyword. Raises ValueError when the maps are too large for them."""
    units: list[dict[str, Any]] = []
    images: dict[str, str] = {}
    for i, unit in enumerate(recipe.units, 1):
        assert not callable(unit.weight)
        images |= _encode_image(f"{PNG_KEYWORD} unit {i} map", unit.control_map.pixels)
        if unit.region is not None:
            images |= _encode_image(f"{PNG_KEYWORD} unit {i} region", np.rint(unit.region * 255).astype(np.uint8))
        if unit.mask is not None:
            images |= _encode_image(f"{PNG_KEYWORD} unit {i} mask", unit.mask)
        units.append(
            {
                "model": _encode_model(unit.model),
                "weight": unit.weight,
                "window": [unit.window.start, unit.window.end],
                "mode": unit.mode,
                "layers": unit.layers and list(unit.layers),
                "region": unit.region is not None,
                "fit": unit.fit,
                "kind": unit.control_map.kind,
                "preprocessor": unit.preprocessor,
                "parameters": dict(unit.parameters),
                "architecture": unit.architecture,
                "mask": unit.mask is not None,
            }
        )
    words: dict[str, Any] = {"format": FORMAT_VERSION, "prompt": recipe.prompt, "negative": recipe.negative_prompt}
    words |= {name: getattr(recipe, ATTRIBUTES.get(name, name)) for name in NUMBER_FIELDS}
    words |= {name: getattr(recipe, name) for name in ("scheduler", "dtype", "device")}
    words |= {"scheduler_config": dict(recipe.scheduler_config), "made_with": dict(recipe.made_with)}
    words |= {"model": _encode_model(recipe.model), "units": units}
    texts = {PNG_KEYWORD: json.dumps(words), **images}
    if sum(map(len, texts.values())) > PNG_TEXT_TOTAL_LIMIT:
        raise ValueError(
            f"the maps of {len(units)} units take over {PNG_TEXT_TOTAL_LIMIT >> 20} MiB, more than a PNG's text"
        )
    return texts


def read_recipe(path: str | os.PathLike[str]) -> GenerationRecipe:
    """Return the recipe in a PNG.

    Raises FileNotFoundError, or ValueError in one line that begins with the file: not a PNG, damaged, without a recipe,
    of another format, or with a field that `encode_recipe` would not write."""
    name = repr(os.fspath(path))
    with open_regular_file(path) as file:
        if file.seek(0, os.SEEK_END) > RECIPE_FILE_LIMIT:
            raise ValueError(f"{name} is over {RECIPE_FILE_LIMIT >> 20} MiB, which no image with a recipe is")
    texts = read_png_text(path)
    if PNG_KEYWORD not in texts:
        raise ValueError(f"{name} holds no recipe of controlnet-ext")
    words = parse_object(texts[PNG_KEYWORD].encode(), f"{name}: its recipe")
    try:
        return _decode_recipe(words, texts)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: its recipe: {str(error)[:400]}") from error  # which may show thousands of digits


def _decode_recipe(fields: dict[str, Any], texts: Mapping[str, str]) -> GenerationRecipe:
    fields = {name: _convert_number(name, value) for name, value in fields.items()}
    if fields.get("format") != FORMAT_VERSION:
        raise ValueError(f"format {str(fields.get('format'))[:20]!r}, this version reads {FORMAT_VERSION}")
    _check_fields("the recipe", fields, RECIPE_FIELDS)
    if not re.fullmatch(r"[A-Za-z0-9]{1,80}", fields["scheduler"]):
        raise ValueError(f"scheduler {fields['scheduler'][:80]!r} is no name of a class")
    values = {ATTRIBUTES.get(name, name): fields[name] for name in RECIPE_FIELDS if name not in ("format", "units")}
    values |= {"model": _decode_model("model", fields["model"]), "units": ()}
    _check_words("made_with", fields["made_with"])
    recipe = GenerationRecipe(**values)
    check_units(len(fields["units"]), recipe.width, recipe.height)  # before a map is decoded
    units = []
    for i, unit in enumerate(fields["units"], 1):
        with error_prefix(f"unit {i}"):
            units.append(_decode_unit(i, unit, texts, recipe.height, recipe.width))
    return replace(recipe, units=tuple(units))


def _convert_number(name: str, value: Any) -> Any:
    """Return a number of the recipe that must be whole as an int, also of 20.0; any other value as it is."""
    if name != "format" and (name not in NUMBER_FIELDS or NUMBER_FIELDS[name].type is not int):
        return value
    number = parse_whole_number(value)
    return value if number is None else number


def _decode_unit(i: int, fields: Any, texts: Mapping[str, str], height: int, width: int) -> RecipeUnit:
    fields = {"mask": False, **fields} if isinstance(fields, dict) else fields  # recipes before 2026-11-23 have none
    _check_fields("it", fields, UNIT_FIELDS)
    preprocessor, parameters = fields["preprocessor"], fields["parameters"]
    if len(fields["window"]) != 2:
        raise ValueError(f"window of {len(fields['window'])} numbers, expected start and end")
    if isinstance(fields["weight"], str) and len(fields["weight"]) > MAX_WORD_LENGTH:
        raise ValueError(f"weight of {len(fields['weight'])} characters")
    _check_words("field", {"preprocessor": preprocessor or "", "architecture": fields["architecture"]})
    for name, value in parameters.items():
        if (
            len(name) > MAX_WORD_LENGTH
            or not isinstance(value, (int, float, str, type(None)))
            or len(str(value)) > MAX_WORD_LENGTH
        ):
            raise ValueError(f"parameter {name[:40]!r} is neither a number nor a word")
    pixels = _decode_image(f"{PNG_KEYWORD} unit {i} map", texts, height, width)
    region = None
    if fields["region"]:
        region = _decode_image(f"{PNG_KEYWORD} unit {i} region", texts, height, width)[..., 0].astype(np.float32) / 255
    model = _decode_model("model of a unit", fields["model"])
    settings: dict[str, Any] = {name: fields[name] for name in ("weight", "mode", "layers", "fit")}
    if fields["mask"]:
        settings["mask"] = _decode_image(f"{PNG_KEYWORD} unit {i} mask", texts, height, width)
    return RecipeUnit(
        model=model,
        control_map=ControlMap(pixels, fields["kind"]),
        window=Window(*fields["window"]),
        region=region,
        preprocessor=preprocessor,
        parameters=parameters,
        architecture=fields["architecture"],
        **settings,
    )


def _check_fields(name: str, value: object, types: Mapping[str, Any]) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {type(value).__name__}, expected an object")
    if value.keys() != types.keys():
        odd = sorted(value.keys() ^ types.keys())[0]
        raise ValueError(f"{name} {'has an unknown' if odd in value else 'lacks the'} field {odd[:40]!r}")
    for key, expected in types.items():
        if not isinstance(value[key], expected):
            raise ValueError(f"its {key} is {type(value[key]).__name__}, which it cannot be")


def _check_words(name: str, words: Mapping[str, Any]) -> None:
    for key, word in words.items():
        if not isinstance(word, str) or max(len(key), len(word)) > MAX_WORD_LENGTH or not (key + word).isprintable():
            raise ValueError(f"{name} {key[:40]!r} is not a printable text of up to {MAX_WORD_LENGTH} characters")


def _decode_model(name: str, fields: dict[str, Any]) -> ModelRef:
    _check_fields(name, fields, {"path": str, "sha256": dict})
    path, hashes = fields["path"], fields["sha256"]
    files = 0 if path == NO_MODEL and name == "model of a unit" else 1
    if not 1 <= len(path) <= 4096 or "\0" in path or not files <= len(hashes) <= 1000 * files:
        raise ValueError(f"{name} has a path of {len(path)} characters and {len(hashes)} files, which none has")
    _check_words(name, hashes)
    for file, digest in hashes.items():
        if not re.fullmatch("[0-9a-f]{64}", digest):
            raise ValueError(f"{name}: {digest!r} of {file!r} is not a sha256 in hex")
    return ModelRef(path, hashes)


def _encode_model(ref: ModelRef) -> dict[str, Any]:
    return {"path": ref.path, "sha256": dict(ref.sha256)}


def _encode_image(keyword: str, pixels: np.ndarray) -> dict[str, str]:
    """Return an image (H, W, 3) RGB or (H, W) gray, uint8, as PNG in base64, in as many texts as it takes."""
    if pixels.ndim == 3 and (pixels == pixels[..., :1]).all():
        pixels = pixels[..., 0]
    text = base64.b64encode(encode_image("map.png", pixels)).decode()
    return {
        f"{keyword} {k}": text[at : at + PNG_TEXT_LIMIT] for k, at in enumerate(range(0, len(text), PNG_TEXT_LIMIT), 1)
    }


def _decode_image(keyword: str, texts: Mapping[str, str], height: int, width: int) -> np.ndarray:
    """Return an image of this size that `_encode_image` wrote, (H, W, 3) RGB uint8."""
    pieces: list[str] = []
    while (piece := texts.get(f"{keyword} {len(pieces) + 1}")) is not None:
        pieces.append(piece)
    name = keyword.rpartition(" ")[2]
    try:
        content = base64.b64decode("".join(pieces), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"its {name} is not base64: {error}") from error
    if content[:8] != b"\x89PNG\r\n\x1a\n":
        raise ValueError(f"its {name} is missing, or not a PNG")
    pixels = read_image(content)
    if pixels.shape[:2] != (height, width):
        raise ValueError(f"its {name} is {pixels.shape[1]}x{pixels.shape[0]}, but the image {width}x{height}")
    return pixels
