"""Axes for the host's XYZ plot."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from ..sdwebui.detect import list_modules
from ..sdwebui.units import CONTROL_MODES, RESIZE_MODES
from . import host
from .inputs import AXES_ATTRIBUTE

NUMBER_PATTERN = r"([+-]?\d+(?:\.\d+)?)"
RANGE_PATTERN = re.compile(rf"{NUMBER_PATTERN}-{NUMBER_PATTERN}(?:\({NUMBER_PATTERN}\)|\[(\d{{1,6}})\])?")
MAX_RANGE_VALUES = 1000  # values of a range
XYZ_MODULE_NAMES = ("xyz_grid.py", "scripts.xyz_grid")


def register() -> None:
    """Add the axes to the host's XYZ script: at once, since the host loads its own scripts first, and again before it
    draws its page."""
    from modules import script_callbacks

    _add_axes()
    script_callbacks.on_before_ui(_add_axes)


def _add_axes() -> None:
    from modules import scripts

    for script_data in scripts.scripts_data:
        if script_data.script_class.__module__ in XYZ_MODULE_NAMES and hasattr(script_data.module, "AxisOption"):
            there = {option.label for option in script_data.module.axis_options}
            script_data.module.axis_options.extend(
                o for o in create_axis_options(script_data.module.AxisOption) if o.label not in there
            )


def create_axis_options(option_class: Callable[..., Any]) -> list[Any]:
    """Return the axes. A value sets all units; "[a, b]" sets a for the first and b for the second, and empty entries
    leave a unit unchanged. Numbers may be ranges in the host's syntax: 1-5, 1-5 (+2), 0-1 [5]."""

    def axis(label: str, field: str, read: Callable[[str], Any], choices: Callable[[], list[str]] | None = None) -> Any:
        more = {} if choices is None else {"choices": choices}
        return option_class(
            f"[ControlNet] {label}",
            _copy_nested,
            _make_apply(field),
            prepare=lambda text: parse_axis_values(text, read),
            **more,
        )

    return [
        axis("Enabled", "enabled", _parse_bool, lambda: ["True", "False"]),
        axis("Model", "model", str, lambda: ["None", *host.get_model_catalog().names]),
        axis("Weight", "weight", float),
        axis("Guidance Start", "guidance_start", float),
        axis("Guidance End", "guidance_end", float),
        axis("Control Mode", "control_mode", str, lambda: [word for word, _ in CONTROL_MODES]),
        axis("Resize Mode", "resize_mode", str, lambda: [word for word, _ in RESIZE_MODES[:3]]),
        axis("Preprocessor", "module", str, lambda: list_modules(True)["module_list"]),
        axis("Pre Resolution", "processor_res", int),
        axis("Pre Threshold A", "threshold_a", float),
        axis("Pre Threshold B", "threshold_b", float),
    ]


def _make_apply(field: str) -> Callable[[Any, Any, Any], None]:
    def apply(p: Any, value: Any, _: Any) -> None:
        setattr(p, AXES_ATTRIBUTE, {**vars(p).get(AXES_ATTRIBUTE, {}), field: value})

    return apply


def _copy_nested(value: Any) -> Any:
    return [_copy_nested(each) for each in value] if isinstance(value, list) else value


def parse_axis_values(text: Any, convert: Callable[[str], Any]) -> list[Any]:
    """Return the values in a text, separated by commas outside of brackets. Raises what `convert` raises."""
    words = text if isinstance(text, list) else re.split(r",(?![^\[]*\])", str(text))
    numbers: list[Any] = []
    for word in (str(each).strip() for each in words):
        whole = word.replace(" ", "")
        steps = RANGE_PATTERN.fullmatch(whole) if convert in (int, float) else None
        if word.startswith("[") and word.endswith("]"):
            numbers.append([convert(each.strip()) if each.strip() else None for each in word[1:-1].split(",")])
        elif steps is not None:
            numbers += _expand_range(steps, convert)
        elif word:
            numbers.append(convert(word))
    return numbers


def _expand_range(match: re.Match[str], convert: Callable[[Any], Any]) -> list[Any]:
    first, last = float(match[1]), float(match[2])
    if match[4]:
        return [convert(value) for value in np.linspace(first, last, min(int(match[4]), MAX_RANGE_VALUES))]
    by = float(match[3] or 1) or 1.0
    count = min(int((last - first) / by + 1e-9) + 1, MAX_RANGE_VALUES)
    return [convert(first + i * by) for i in range(max(count, 0))]


def _parse_bool(word: str) -> bool:
    if word.casefold() not in ("true", "false"):
        raise ValueError(f"{word!r:.40} is neither True nor False")
    return word.casefold() == "true"
