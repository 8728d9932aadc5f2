"""Preprocessors as clients of the webui know them: modules by name, label or alias, with sliders; and how they are
loaded and cached."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from typing import Any

import numpy as np

from ..guidance.hints import PreprocessorCall
from ..maps.control_map import ControlMap
from ..preprocessors.cache import LRUCache
from ..preprocessors.library import Library
from ..preprocessors.parameters import Parameter, Range
from ..preprocessors.registry import LoadedPreprocessor, Preprocessor, find, find_unless_none

_LOG = logging.getLogger(__name__)
USE_DEFAULT = -1  # the value of a slider that a client leaves to the preprocessor
DEFAULT_RESOLUTION, MIN_RESOLUTION, MAX_RESOLUTION = (
    512,
    64,
    2048,
)  # the slider's, and what a value outside of it becomes
Slider = dict[str, Any]
RESOLUTION_SLIDER = "Resolution"  # the slider's name, as sd-webui-controlnet @ 56cec5b has it
MAX_LOADED_PREPROCESSORS = 3  # preprocessors that stay loaded

UNSUPPORTED_MODULES = {  # modules of sd-webui-controlnet that are not here yet, by the beginning of the name
    "ip-adapter": "IP-Adapter",
    "instant_id": "Instant-ID",
    "reference_": "Reference",
    "revision_": "Revision",
    "clip_vision": "T2I-Adapter",  # of its style model; the label is t2ia_style_clipvision
    "t2ia_style": "T2I-Adapter",
}
UNSUPPORTED_CONTROL_TYPES = ("IP-Adapter", "Instant-ID", "Reference", "Revision")


def find_module(name: str | None) -> Preprocessor | None:
    """Return the preprocessor of a name, label or alias in any case; None for None and "none". Raises ValueError for
    modules of sd-webui-controlnet that are not here yet, and with the closest names for others that are unknown."""
    if name is None:
        return None
    name = name.strip()
    for start, control_type in UNSUPPORTED_MODULES.items():
        if name.casefold().startswith(start):
            raise ValueError(
                f"preprocessor {name!r} of control type {control_type} is not supported yet: choose another, or switch "
                "the unit off"
            )
    return find_unless_none(name)


def get_threshold_parameters(spec: Preprocessor) -> tuple[Parameter, ...]:
    """Return the parameters that threshold_a and threshold_b set: the first two numbers, except seeds and parameters
    without a numeric default, which no slider can show."""
    if not spec.traits.has_threshold_sliders:
        return ()
    return tuple(p for p in spec.parameters if p.type is not bool and p.name != "seed" and p.default is not None)[:2]


def parameters_from_sliders(
    spec: Preprocessor, resolution: float, threshold_a: float, threshold_b: float
) -> dict[str, Any]:
    """Return the values of parameters by name for these sliders; a value outside a slider's range means its default,
    which is logged unless it is -1."""
    parameters: dict[str, Any] = {}
    if spec.traits.has_resolution_slider:
        bounds = Range(MIN_RESOLUTION, MAX_RESOLUTION)
        is_valid = _check_slider(spec, "processor_res", int(resolution), bounds, DEFAULT_RESOLUTION)
        parameters["resolution"] = int(resolution) if is_valid else DEFAULT_RESOLUTION
    fields = ("threshold_a", threshold_a), ("threshold_b", threshold_b)
    for parameter, (field, value) in zip(get_threshold_parameters(spec), fields, strict=False):
        assert parameter.range is not None
        if _check_slider(spec, field, value, parameter.range, parameter.default):
            parameters[parameter.name] = round(value) if parameter.type is int else value
    values = {p.name: parameters.get(p.name, p.default) for p in get_threshold_parameters(spec)}
    if {"low", "high"} <= set(values) and values["low"] > values["high"]:
        # as OpenCV takes those of Canny in sd-webui-controlnet
        parameters |= {"low": values["high"], "high": values["low"]}
    return parameters


def _check_slider(spec: Preprocessor, field: str, value: float, bounds: Range, default: float) -> bool:
    is_valid = bounds.low <= value <= bounds.high
    if not is_valid and value != USE_DEFAULT:
        _LOG.warning("[%s.%s] Invalid value(%s), using default value %s.", spec.name, field, value, default)
    return is_valid


def describe_sliders(spec: Preprocessor) -> list[Slider]:
    """Return the sliders that a preprocessor has of resolution, threshold_a and threshold_b: name, value, min, max,
    step."""
    sliders: list[Slider] = []
    if spec.traits.has_resolution_slider:
        sliders.append(
            {
                "name": RESOLUTION_SLIDER,
                "value": DEFAULT_RESOLUTION,
                "min": MIN_RESOLUTION,
                "max": MAX_RESOLUTION,
                "step": 8,
            }
        )
    for p in get_threshold_parameters(spec):
        assert p.range is not None
        step = 1 if p.type is int else 0.01
        name = p.name.replace("_", " ").title()
        sliders.append({"name": name, "value": p.default, "min": p.range.low, "max": p.range.high, "step": step})
    return sliders


def create_preprocessor_loader(device: str, library: Library) -> Callable[[str], LoadedPreprocessor]:
    """Return a function that loads a preprocessor by name; the last few stay loaded."""
    cache = LRUCache[LoadedPreprocessor](MAX_LOADED_PREPROCESSORS)
    return lambda name: cache.get_or_create(name, lambda: find(name).load(device, library))


def cache_maps(
    load_preprocessor: Callable[[str], PreprocessorCall], capacity: int
) -> Callable[[str], PreprocessorCall]:
    """Wrap a loader of preprocessors by name: the maps of the last `capacity` calls are returned without another run.
    Calls are equal when preprocessor, pixels, mask and parameters are."""
    maps = LRUCache[ControlMap](max(capacity, 0))

    def load(name: str) -> PreprocessorCall:
        def run(image: np.ndarray, mask: np.ndarray | None = None, /, **values: Any) -> ControlMap:
            key = name, _hash_array(image), _hash_array(mask), *sorted(values.items())
            return maps.get_or_create(key, lambda: load_preprocessor(name)(image, mask, **values))

        return run

    return load


def _hash_array(pixels: np.ndarray | None) -> tuple[Any, ...]:
    return () if pixels is None else (pixels.shape, hashlib.sha256(pixels.tobytes()).digest())
