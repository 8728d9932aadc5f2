"""Callbacks of the panel's buttons and lists. They return gradio's updates, and errors as sentences."""

from __future__ import annotations

import html
import json
from typing import Any

import gradio as gr

from ..files.disk import parse_json
from ..sdwebui.control_types import list_control_types
from ..sdwebui.detect import detect_maps, render_poses
from ..sdwebui.images import decode_base64_image
from ..sdwebui.modules import RESOLUTION_SLIDER, describe_sliders, find_module
from . import host, presets
from .gradio_images import get_image_and_mask

USER_ERRORS = (ValueError, TypeError, OSError, RuntimeError)  # whose words are for the user


SLIDER_FIELDS = ("processor_res", "threshold_a", "threshold_b")  # fields of a unit, whose meaning is the module's


def update_for_control_type(control_type: str) -> list[Any]:
    """Return updates of the modules of a control type, its models for the loaded checkpoint, and the sliders. "All"
    leaves the unit unchanged, because gradio 4 calls this also when a preset or PNG info sets the type."""
    control_types = list_control_types(host.list_fitting_models())[control_type]
    if control_type == "All":
        return [
            *(gr.update(choices=control_types[f"{field}_list"]) for field in ("module", "model")),
            *[gr.update()] * 3,
        ]
    return [
        gr.update(choices=control_types["module_list"], value=control_types["default_option"]),
        gr.update(choices=control_types["model_list"], value=control_types["default_model"]),
        *update_sliders(control_types["default_option"]),
    ]


def update_with_all_choices(field: str, value: Any) -> Any:
    """Return an update of a module or model with the choices of all control types and the value itself."""
    choices = list_control_types(host.list_fitting_models())["All"][f"{field}_list"]
    return gr.update(choices=choices if value in choices else [*choices, value], value=value)


def update_sliders(module_name: str, *values: Any) -> list[Any]:
    """Return updates of the three sliders for a module, at these values; None means its default."""
    entry = find_module(module_name)
    sliders: list[Any] = list(describe_sliders(entry)) if entry else []
    if not sliders or sliders[0]["name"] != RESOLUTION_SLIDER:
        sliders = [None, *sliders]
    at = values or (None,) * len(SLIDER_FIELDS)
    return [
        _update_slider(each, value)
        for each, value in zip((*sliders, None, None)[: len(SLIDER_FIELDS)], at, strict=True)
    ]


def _update_slider(slider: dict[str, Any] | None, value: Any) -> Any:
    if slider is None:
        return gr.update(visible=False)
    bounds = {"minimum": slider["min"], "maximum": slider["max"], "step": slider["step"]}
    return gr.update(visible=True, label=slider["name"], value=slider["value"] if value is None else value, **bounds)


def refresh_models(control_type: str, choice: str) -> Any:
    """Search the folders again and return an update of the models of a control type for the loaded checkpoint."""
    host.get_model_catalog().rescan()
    names = list_control_types(host.list_fitting_models())[control_type]["model_list"]
    return gr.update(choices=names, value=choice if choice in names else "None")


def preview_map(
    image: Any, mask: Any, module_name: str, resolution: float, threshold_a: float, threshold_b: float
) -> list[Any]:
    """Return the image's map, an error message, a pose's JSON, and an update of the box that shows it."""
    pixels, strokes = get_image_and_mask(image)
    if pixels is None:
        return [None, "There is no image.", gr.update(), gr.update()]
    request: dict[str, Any] = {"controlnet_module": module_name}
    request |= {"controlnet_input_images": [pixels], "controlnet_masks": [mask if strokes is None else strokes]}
    request |= {
        "controlnet_processor_res": resolution,
        "controlnet_threshold_a": threshold_a,
        "controlnet_threshold_b": threshold_b,
    }
    try:
        answer = detect_maps(request, host.get_preprocessor_loader())
    except USER_ERRORS as error:
        return [None, html.escape(str(error)), gr.update(), gr.update()]
    poses = answer.get("poses", [])
    text = json.dumps(poses[0]) if poses else ""
    return [decode_base64_image(answer["images"][0], "the map"), "", text, gr.update(visible=bool(poses))]


def draw_pose(text: str) -> tuple[Any, str]:
    """Return the image of a pose's JSON and an error message."""
    try:
        value = parse_json((text or "").encode(), "the pose")
        answer = render_poses(value if isinstance(value, list) else [value])
        return decode_base64_image(answer["images"][0], "the pose"), ""
    except USER_ERRORS as error:
        return gr.update(), html.escape(str(error))


def use_map_as_image(pixels: Any) -> list[Any]:
    """Return updates that make the map a unit's image, without preprocessor and sliders."""
    return [gr.update()] * 6 if pixels is None else [pixels, "none", True, *update_sliders("none")]


def save_preset(name: str, *values: Any) -> tuple[Any, str]:
    """Store a preset; return an update of the list of presets and an error message."""
    try:
        presets.save(name, dict(zip(presets.PRESET_FIELDS, values, strict=True)))
    except USER_ERRORS as error:
        return gr.update(), html.escape(str(error))
    return gr.update(choices=presets.list_preset_names(), value=name.strip()), ""


def load_preset(name: str) -> list[Any]:
    """Return updates for each field of a preset, the control type "All", and an error message."""
    try:
        preset = presets.load(name)
        sliders = update_sliders(str(preset.get("module")), *map(preset.get, SLIDER_FIELDS))
    except USER_ERRORS as error:
        return [*[gr.update()] * len(presets.PRESET_FIELDS), gr.update(), html.escape(str(error))]
    updates = {key: gr.update(value=preset[key]) if key in preset else gr.update() for key in presets.PRESET_FIELDS}
    updates |= {key: update_with_all_choices(key, preset[key]) for key in ("module", "model") if key in preset}
    updates |= zip(SLIDER_FIELDS, sliders, strict=True)
    return [*updates.values(), "All", ""]


def delete_preset(name: str) -> tuple[Any, str]:
    """Delete a preset; return an update of the list of presets and an error message."""
    try:
        presets.delete(name)
    except USER_ERRORS as error:
        return gr.update(), html.escape(str(error))
    return gr.update(choices=presets.list_preset_names(), value=None), ""
