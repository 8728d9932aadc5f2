"""From PNG info back to the panel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from ..sdwebui.infotext import FIELDS, read_unit_text
from ..sdwebui.modules import module
from . import host, settings
from .actions import SLIDERS, among_all, sliders_of
from .images import WORDS, brought


def pasted(place: int, parts: dict[str, Any]) -> list[tuple[Any, Any]]:
    """What the host pastes to the components of a unit: a function of the parameters of a picture for each, which
    leaves it as it is where the settings say so."""
    key = f"ControlNet {place}"

    def wanted(function: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], Any]:
        return lambda said: function(said) if settings.value("control_net_sync_field_args", True) else None

    def of(name: str) -> Callable[[dict[str, Any]], Any]:
        return lambda said: _value(name, said, key)

    def pictured(name: str) -> Callable[[dict[str, Any]], Any]:
        return lambda said: _picture(name, str(said[key])) if key in said else None

    texts = [(parts[name], of(name)) for name in sorted(FIELDS)]
    types = [(parts["type"], lambda said: "All" if key in said else None)]
    found = types + texts + [(parts[name], pictured(name)) for name in WORDS]
    return [(component, wanted(function)) for component, function in found]


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
    if name in SLIDERS and "module" in unit:
        return _slider(name, unit)
    if name in ("weight_schedule", "advanced_weighting"):
        return ", ".join(map(str, value)) if isinstance(value, list) else value or ""
    try:
        if name == "module" and value is not None:
            entry = module(str(value))
            return among_all(name, entry.label if entry else "none")
        if name == "model" and value is not None:
            return among_all(name, host.shelf().find(str(value)))
    except ValueError:
        return among_all(name, "none" if name == "module" else "None")
    return value


def _slider(name: str, unit: dict[str, Any]) -> Any:
    """A slider as the module has it, at the value of the text; as it is where nobody knows the module."""
    try:
        return sliders_of(str(unit["module"]), *map(unit.get, SLIDERS))[SLIDERS.index(name)]
    except ValueError:
        return unit.get(name)
