"""Preprocessors as the webui's clients know them: modules by name, label or old name, with sliders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..preprocessors.library import Library
from ..preprocessors.parameters import Parameter
from ..preprocessors.registry import Preprocessor, Ready, find
from .cache import Kept

OLD = {  # names that sd-webui-controlnet had or has (@ 56cec5b), and the registry has otherwise
    "depth_leres_boost": "depth_leres++",
    "fake_scribble": "scribble_hed",
    "tile_gaussian": "blur_gaussian",
}
RESOLUTION, LOW, HIGH = 512, 64, 2048  # the slider's, and what a value outside of it becomes
OWN_SIZE = {  # which sd-webui-controlnet runs at the picture's own size
    *(
        "invert",
        "tile_resample",
        "tile_colorfix",
        "tile_colorfix+sharp",
        "inpaint",
        "inpaint_only",
        "inpaint_only+lama",
    ),
    *("recolor_luminance", "recolor_intensity"),
}
NO_SLIDERS = {"lineart_standard"}  # it shows none; 64, which webuiapi sends with everything, would be a blur
Slider = dict[str, Any]
KEPT = 3  # preprocessors that stay loaded


def module(name: str | None) -> Preprocessor | None:
    """The preprocessor, None for none. ValueError with the nearest names."""
    if name is None:
        return None
    key = name.strip().casefold()
    return None if key == "none" else find(OLD.get(key, key))


def thresholds(entry: Preprocessor) -> tuple[Parameter, ...]:
    """The parameters that threshold_a and threshold_b set: its first two numbers, except seeds and those whose default
    is no number, which no slider can show."""
    if entry.name in NO_SLIDERS:
        return ()
    return tuple(p for p in entry.parameters if p.type is not bool and p.name != "seed" and p.default is not None)[:2]


def values(entry: Preprocessor, resolution: float, a: float, b: float) -> dict[str, Any]:
    """The parameters for these sliders; what lies outside of one, such as -1, means its default."""
    found: dict[str, Any] = {}
    if entry.name not in OWN_SIZE:
        found["resolution"] = int(resolution) if LOW <= resolution <= HIGH else RESOLUTION
    for parameter, value in zip(thresholds(entry), (a, b), strict=False):
        assert parameter.range is not None
        if parameter.range.low <= value <= parameter.range.high:
            found[parameter.name] = round(value) if parameter.type is int else value
    return found


def sliders(entry: Preprocessor) -> list[Slider]:
    """Resolution, threshold_a, threshold_b as far as it has them: name, value, min, max, step."""
    found: list[Slider] = []
    if entry.name not in OWN_SIZE:
        found.append({"name": "Preprocessor Resolution", "value": RESOLUTION, "min": LOW, "max": HIGH, "step": 8})
    for p in thresholds(entry):
        assert p.range is not None
        step = 1 if p.type is int else 0.01
        name = p.name.replace("_", " ").title()
        found.append({"name": name, "value": p.default, "min": p.range.low, "max": p.range.high, "step": step})
    return found


def readied(device: str, library: Library) -> Callable[[str], Ready]:
    """What gives preprocessors by name, loaded; the last few stay so."""
    kept = Kept[Ready](KEPT)
    return lambda name: kept.get(name, lambda: find(name).ready(device, library))
