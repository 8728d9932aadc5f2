"""Units as text: `canny,model=control.safetensors,weight=.8,window=0..0.6,low=50`.

The name of a preprocessor comes first, or `none` where the image is a map already, whose `kind` may be given. Then
key=value: keys of `UNIT_KEYS`, and the preprocessor's parameters. A value with commas stands in quotes, "…" or '…'."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, cast

import cv2
import numpy as np

from ..errors import suggest_names
from ..files.image_reader import read_image
from ..guidance.after_steps import post_step_for
from ..guidance.schedule import Window
from ..maps.control_map import ControlMap
from ..preprocessors.registry import RESOLUTION_PARAMETER, Preprocessor, find
from .recipe import UnitSpec
from .sources import ModelRef

UNIT_SETTINGS = ("weight", "window", "mode", "layers")  # how a unit acts, whatever its map
UNIT_KEYS = ("model", "image", "kind", "mask", *UNIT_SETTINGS, "region", "fit")
_PART_PATTERN = re.compile(r"""\s*(?:([\w.-]+)\s*=\s*)?(?:"([^"]*)"|'([^']*)'|([^,"'\s][^,]*|))\s*(,|$)""")


def parse_unit(
    text: str,
    image: str | None = None,
    models: Mapping[str, str] = MappingProxyType({}),
    mask: str | None = None,
) -> UnitSpec:
    """Return the unit that a text describes.

    Where the text names none, `image` is the image, `models` has the model by preprocessor, and `mask` is the mask of
    units that inpaint. Raises ValueError or TypeError in one line: an unknown preprocessor, key or parameter with the
    nearest names, a key given twice, an invalid value."""
    name, values = split_unit_text(text)
    makes = None if name.casefold() == "none" else find(name)
    own = [] if makes is None else [p.name for p in (*makes.parameters, RESOLUTION_PARAMETER)]
    for key in values:
        if key not in UNIT_KEYS and key not in own:
            raise ValueError(suggest_names(f"{key!r} is unknown to {name}", key, [*UNIT_KEYS, *own]))
    model = values.get("model", models.get(makes.name) if makes else None)
    if model is None:
        known = f" (the embedded model has its own for {', '.join(models)})" if models else ""
        raise ValueError(f"no control model given{known}: name one with model=PATH")
    picture = values.get("image", image)
    if picture is None:
        raise ValueError("no image given: name one with image=PATH, or for all units with --image")
    if "kind" in values and makes is not None:
        raise ValueError(f"kind {values['kind']!r} of a map that {makes.name} makes, whose maps are {makes.makes!r}")
    white = values.get("mask", mask if makes is not None and makes.makes == "inpaint" else None)
    after = post_step_for(makes, {})
    if white is None and makes is not None and after is not None and after.needs_mask:
        raise ValueError(
            f"{makes.name} needs to know where to paint: give a mask, white there, with mask=PATH or --mask"
        )
    return UnitSpec(
        model=ModelRef(model),
        image=ControlMap(read_image(picture), values["kind"]) if "kind" in values else picture,
        **parse_settings(values),
        inpaint=white,
        region=_read_region(values["region"]) if "region" in values else None,
        fit=cast(Any, values.get("fit", "crop")),
        preprocessor=None if makes is None else makes.name,
        parameters=_parse_parameters(makes, {key: value for key, value in values.items() if key in own}),
    )


def split_unit_text(text: str) -> tuple[str, dict[str, str]]:
    """Return the first word, and the values by key. Raises ValueError with the part that is malformed."""
    found, at = [], 0
    while at <= len(text):
        match = _PART_PATTERN.match(text, at)
        if match is None:
            raise ValueError(f"{text[at:]!r}: quotes must enclose a whole value, and end")
        key, *quoted, plain, _ = match.groups()
        found.append((key, plain.strip() if plain is not None else next(q for q in quoted if q is not None)))
        at = match.end() + (match[5] == "")
    (key, name), *rest = found
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
    found: dict[str, Any] = {key: values[key] for key in UNIT_SETTINGS if key in values}
    if "weight" in found and "@" not in found["weight"]:
        found["weight"] = _parse_number("weight", found["weight"])
    if "window" in found:
        start, dots, end = found["window"].partition("..")
        if not dots:
            raise ValueError(f"window {found['window']!r}: expected start..end, such as 0..0.6")
        found["window"] = Window(_parse_number("window start", start), _parse_number("window end", end))
    if "layers" in found:
        found["layers"] = [_parse_number("layers", factor) for factor in found["layers"].split(",")]
    return found


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


def _read_region(path: str) -> np.ndarray:
    return cv2.cvtColor(read_image(path), cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
