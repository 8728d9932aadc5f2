"""What the panel's buttons and lists do: each answers with gradio's updates; what is wrong is a sentence."""

from __future__ import annotations

import html
import json
from typing import Any

import gradio as gr

from ..files.disk import parse_json
from ..sdwebui.control_types import control_types
from ..sdwebui.detect import detect, render_poses
from ..sdwebui.modules import module, sliders
from ..sdwebui.pictures import picture
from . import host, presets
from .gradio_images import image_of

WRONG = (ValueError, TypeError, OSError, RuntimeError)  # whose words are for the user


SLIDERS = ("processor_res", "threshold_a", "threshold_b")  # fields of a unit, whose meaning is the module's


def of_type(kind: str) -> list[Any]:
    """Modules of a control type, its models for the loaded checkpoint, and the sliders. All of them leave the unit as
    it is: gradio 4 calls this also when a preset or PNG info sets the type."""
    found = control_types(host.names())[kind]
    if kind == "All":
        return [*(gr.update(choices=found[f"{field}_list"]) for field in ("module", "model")), *[gr.update()] * 3]
    return [
        gr.update(choices=found["module_list"], value=found["default_option"]),
        gr.update(choices=found["model_list"], value=found["default_model"]),
        *sliders_of(found["default_option"]),
    ]


def among_all(field: str, value: Any) -> Any:
    """A module or model with those of all control types to choose from, and itself."""
    choices = control_types(host.names())["All"][f"{field}_list"]
    return gr.update(choices=choices if value in choices else [*choices, value], value=value)


def sliders_of(name: str, *values: Any) -> list[Any]:
    """The three sliders as a module has them, at these values, or its defaults where there are none or None."""
    entry = module(name)
    shown: list[Any] = list(sliders(entry)) if entry else []
    if not shown or shown[0]["name"] != "Preprocessor Resolution":
        shown = [None, *shown]
    at = values or (None,) * len(SLIDERS)
    return [_slider(each, value) for each, value in zip((*shown, None, None)[: len(SLIDERS)], at, strict=True)]


def _slider(said: dict[str, Any] | None, value: Any) -> Any:
    if said is None:
        return gr.update(visible=False)
    bounds = {"minimum": said["min"], "maximum": said["max"], "step": said["step"]}
    return gr.update(visible=True, label=said["name"], value=said["value"] if value is None else value, **bounds)


def refreshed(kind: str, chosen: str) -> Any:
    """The models of a control type for the loaded checkpoint, after another look at the folders."""
    host.shelf().rescan()
    names = control_types(host.names())[kind]["model_list"]
    return gr.update(choices=names, value=chosen if chosen in names else "None")


def preview(image: Any, mask: Any, name: str, resolution: float, a: float, b: float) -> list[Any]:
    """The map of the image, a sentence, and a pose's JSON with the box that shows it."""
    pixels, painted = image_of(image)
    if pixels is None:
        return [None, "There is no image.", gr.update(), gr.update()]
    asked: dict[str, Any] = {"controlnet_module": name}
    asked |= {"controlnet_input_images": [pixels], "controlnet_masks": [mask if painted is None else painted]}
    asked |= {"controlnet_processor_res": resolution, "controlnet_threshold_a": a, "controlnet_threshold_b": b}
    try:
        answer = detect(asked, host.ready())
    except WRONG as error:
        return [None, html.escape(str(error)), gr.update(), gr.update()]
    poses = answer.get("poses", [])
    text = json.dumps(poses[0]) if poses else ""
    return [picture(answer["images"][0], "the map"), "", text, gr.update(visible=bool(poses))]


def draw(text: str) -> tuple[Any, str]:
    """The picture of a pose."""
    try:
        value = parse_json((text or "").encode(), "the pose")
        answer = render_poses(value if isinstance(value, list) else [value])
        return picture(answer["images"][0], "the pose"), ""
    except WRONG as error:
        return gr.update(), html.escape(str(error))


def used(pixels: Any) -> list[Any]:
    """The map as a unit's image, which then needs no preprocessor, and no sliders."""
    return [gr.update()] * 6 if pixels is None else [pixels, "none", True, *sliders_of("none")]


def saved(name: str, *values: Any) -> tuple[Any, str]:
    """The presets with one more."""
    try:
        presets.save(name, dict(zip(presets.FIELDS, values, strict=True)))
    except WRONG as error:
        return gr.update(), html.escape(str(error))
    return gr.update(choices=presets.names(), value=name.strip()), ""


def loaded(name: str) -> list[Any]:
    """What a preset says of each of its fields, all control types, and a sentence."""
    try:
        said = presets.load(name)
        slid = sliders_of(str(said.get("module")), *map(said.get, SLIDERS))
    except WRONG as error:
        return [*[gr.update()] * len(presets.FIELDS), gr.update(), html.escape(str(error))]
    updates = {key: gr.update(value=said[key]) if key in said else gr.update() for key in presets.FIELDS}
    updates |= {key: among_all(key, said[key]) for key in ("module", "model") if key in said}
    updates |= zip(SLIDERS, slid, strict=True)
    return [*updates.values(), "All", ""]


def forgotten(name: str) -> tuple[Any, str]:
    """The presets without one."""
    try:
        presets.forget(name)
    except WRONG as error:
        return gr.update(), html.escape(str(error))
    return gr.update(choices=presets.names(), value=None), ""
