"""Axes for the host's XYZ plot."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from ..sdwebui.detect import module_list
from ..sdwebui.units import FITS, MODES
from . import host
from .fields import AXES

NUMBER = r"([+-]?\d+(?:\.\d+)?)"
RANGE = re.compile(rf"{NUMBER}-{NUMBER}(?:\({NUMBER}\)|\[(\d{{1,6}})\])?")
MOST = 1000  # values of a range
NAMES = ("xyz_grid.py", "scripts.xyz_grid")


def register() -> None:
    """Add them: now, as the host loads its own scripts first, and again before it draws its page, where not."""
    from modules import script_callbacks

    _add()
    script_callbacks.on_before_ui(_add)


def _add() -> None:
    from modules import scripts

    for loaded in scripts.scripts_data:
        if loaded.script_class.__module__ in NAMES and hasattr(loaded.module, "AxisOption"):
            there = {option.label for option in loaded.module.axis_options}
            loaded.module.axis_options.extend(o for o in options(loaded.module.AxisOption) if o.label not in there)


def options(kind: Callable[..., Any]) -> list[Any]:
    """The axes. A value sets all units; "[a, b]" sets a of the first and b of the second, and what is empty stays.
    Numbers may be ranges, as the host's own: 1-5, 1-5 (+2), 0-1 [5]."""

    def axis(label: str, field: str, read: Callable[[str], Any], choices: Callable[[], list[str]] | None = None) -> Any:
        more = {} if choices is None else {"choices": choices}
        return kind(f"[ControlNet] {label}", _same, _apply(field), prepare=lambda text: values(text, read), **more)

    return [
        axis("Enabled", "enabled", _flag, lambda: ["True", "False"]),
        axis("Model", "model", str, lambda: ["None", *host.shelf().names]),
        axis("Weight", "weight", float),
        axis("Guidance Start", "guidance_start", float),
        axis("Guidance End", "guidance_end", float),
        axis("Control Mode", "control_mode", str, lambda: [word for word, _ in MODES]),
        axis("Resize Mode", "resize_mode", str, lambda: [word for word, _ in FITS[:3]]),
        axis("Preprocessor", "module", str, lambda: module_list(True)["module_list"]),
        axis("Pre Resolution", "processor_res", int),
        axis("Pre Threshold A", "threshold_a", float),
        axis("Pre Threshold B", "threshold_b", float),
    ]


def _apply(field: str) -> Callable[[Any, Any, Any], None]:
    def apply(p: Any, value: Any, _: Any) -> None:
        setattr(p, AXES, {**vars(p).get(AXES, {}), field: value})

    return apply


def _same(value: Any) -> Any:
    return [_same(each) for each in value] if isinstance(value, list) else value


def values(text: Any, read: Callable[[str], Any]) -> list[Any]:
    """The values that a text says, separated by commas outside of brackets."""
    words = text if isinstance(text, list) else re.split(r",(?![^\[]*\])", str(text))
    found: list[Any] = []
    for word in (str(each).strip() for each in words):
        whole = word.replace(" ", "")
        steps = RANGE.fullmatch(whole) if read in (int, float) else None
        if word.startswith("[") and word.endswith("]"):
            found.append([read(each.strip()) if each.strip() else None for each in word[1:-1].split(",")])
        elif steps is not None:
            found += _range(steps, read)
        elif word:
            found.append(read(word))
    return found


def _range(steps: re.Match[str], read: Callable[[Any], Any]) -> list[Any]:
    first, last = float(steps[1]), float(steps[2])
    if steps[4]:
        return [read(value) for value in np.linspace(first, last, min(int(steps[4]), MOST))]
    by = float(steps[3] or 1) or 1.0
    count = min(int((last - first) / by + 1e-9) + 1, MOST)
    return [read(first + i * by) for i in range(max(count, 0))]


def _flag(word: str) -> bool:
    if word.casefold() not in ("true", "false"):
        raise ValueError(f"{word!r:.40} is neither True nor False")
    return word.casefold() == "true"
