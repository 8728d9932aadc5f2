"""PNG info in the panel: a unit's text becomes values of its components."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from ..sdwebui.infotext import UNIT_TEXT_FIELDS, parse_unit_text
from ..sdwebui.modules import find_module
from . import host
from .actions import SLIDER_FIELDS, update_sliders, update_with_all_choices
from .inputs import INPUT_LABELS, load_saved_input


def create_paste_fields(unit_index: int, components: dict[str, Any]) -> list[tuple[Any, Any]]:
    """Return, for the components of a unit, functions of an image's parameters that the host pastes with; they leave
    components unchanged where the settings say so."""
    key = f"ControlNet {unit_index}"

    def if_enabled(function: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], Any]:
        return lambda params: function(params) if host.get_setting("control_net_sync_field_args", True) else None

    def of(name: str) -> Callable[[dict[str, Any]], Any]:
        return lambda params: _read_component_value(name, params, key)

    def image_reader(name: str) -> Callable[[dict[str, Any]], Any]:
        return lambda params: _update_image(name, str(params[key])) if key in params else None

    texts = [(components[name], of(name)) for name in sorted(UNIT_TEXT_FIELDS)]
    types = [(components["type"], lambda params: "All" if key in params else None)]
    fields = types + texts + [(components[name], image_reader(name)) for name in INPUT_LABELS]
    return [(component, if_enabled(function)) for component, function in fields]


def _update_image(field: str, text: str) -> Any:
    """An update with the saved image; without one, an image stays and masks are removed."""
    pixels = load_saved_input(text, field)
    return None if pixels is None and field == "image" else gr.update(value=pixels)


def _read_component_value(name: str, parameters: dict[str, Any], key: str) -> Any:
    """A component's value; None leaves it unchanged. Parameters without the unit switch it off."""
    if key not in parameters:
        return False if name == "enabled" and "Steps" in parameters else None
    unit = parse_unit_text(str(parameters[key]))
    if name == "enabled":
        return unit.get(name, True)
    value = unit.get(name)
    if name in SLIDER_FIELDS and "module" in unit:
        return _update_pasted_slider(name, unit)
    if name in ("weight_schedule", "advanced_weighting"):
        return ", ".join(map(str, value)) if isinstance(value, list) else value or ""
    try:
        if name == "module" and value is not None:
            entry = find_module(str(value))
            return update_with_all_choices(name, entry.label if entry else "none")
        if name == "model" and value is not None:
            return update_with_all_choices(name, host.get_model_catalog().resolve_name(str(value)))
    except ValueError:
        return update_with_all_choices(name, "none" if name == "module" else "None")
    return value


def _update_pasted_slider(name: str, unit: dict[str, Any]) -> Any:
    """A slider as the module has it, at the value of the text; only the value for an unknown module."""
    try:
        return update_sliders(str(unit["module"]), *map(unit.get, SLIDER_FIELDS))[SLIDER_FIELDS.index(name)]
    except ValueError:
        return unit.get(name)
