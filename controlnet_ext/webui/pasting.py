"""From PNG info back to the panel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from ..server.infotext import FIELDS, read_unit_text
from ..server.modules import module
from . import host
from .originals import WORDS, brought


def pasted(place: int, parts: dict[str, Any]) -> list[tuple[Any, Any]]:
    """What the host pastes to the components of a unit: a function of the parameters of a picture for each."""
    key = f"ControlNet {place}"

    def of(name: str) -> Callable[[dict[str, Any]], Any]:
        return lambda said: _value(name, said, key)

    def pictured(name: str) -> Callable[[dict[str, Any]], Any]:
        return lambda said: _picture(name, str(said[key])) if key in said else None

    texts = [(parts[name], of(name)) for name in sorted(FIELDS)]
    return texts + [(parts[name], pictured(name)) for name in WORDS]


def _picture(field: str, text: str) -> Any:
    """The component with the saved picture; without one, an image stays and masks are taken away."""
    pixels = brought(text, field)
    return None if pixels is None and field == "image" else gr.update(value=pixels)


def _value(name: str, said: dict[str, Any], key: str) -> Any:
    """None leaves a component as it is. A picture made without the unit switches it off."""
    if key not in said:
        return False if name == "enabled" and "Steps" in said else None
    unit = read_unit_text(str(said[key]))
    if name == "enabled":
        return unit.get(name, True)
    value = unit.get(name)
    if name in ("weight_schedule", "advanced_weighting"):
        return ", ".join(map(str, value)) if isinstance(value, list) else value or ""
    try:
        if name == "module" and value is not None:
            entry = module(str(value))
            return entry.label if entry else "none"
        if name == "model" and value is not None:
            return host.shelf().find(str(value))
    except ValueError:
        return "none" if name == "module" else "None"
    return value
