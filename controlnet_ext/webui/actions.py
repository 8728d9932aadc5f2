"""What the panel's buttons and lists do: each answers with gradio's updates; what is wrong is a sentence."""

from __future__ import annotations

import html
import json
from typing import Any

import gradio as gr

from preprocessors.disk import parse_json

from ..server.control_api import detect, render_poses
from ..server.control_types import control_types
from ..server.modules import module, sliders
from ..server.pictures import picture
from . import host, presets
from .drawn import image_of

WRONG = (ValueError, TypeError, OSError, RuntimeError)  # whose words are for the user


def of_type(kind: str) -> list[Any]:
    """Modules and models of a control type."""
    found = control_types(host.shelf().names)[kind]
    return [
        gr.update(choices=found["module_list"], value=found["default_option"]),
        gr.update(choices=found["model_list"], value=found["default_model"]),
    ]


def sliders_of(name: str) -> list[Any]:
    """The three sliders as a module has them."""
    entry = module(name)
    shown: list[Any] = list(sliders(entry)) if entry else []
    if not shown or shown[0]["name"] != "Preprocessor Resolution":
        shown = [None, *shown]
    return [gr.update(visible=False) if each is None else _slider(each) for each in (*shown, None, None)[:3]]


def _slider(said: dict[str, Any]) -> Any:
    bounds = {"minimum": said["min"], "maximum": said["max"], "step": said["step"]}
    return gr.update(visible=True, label=said["name"], value=said["value"], **bounds)


def refreshed(kind: str, chosen: str) -> Any:
    """The models of a control type, after another look at the folders."""
    host.shelf().rescan()
    names = control_types(host.shelf().names)[kind]["model_list"]
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
    """The map as a unit's image, which then needs no preprocessor."""
    return [gr.update()] * 3 if pixels is None else [pixels, "none", True]


def saved(name: str, *values: Any) -> tuple[Any, str]:
    """The presets with one more."""
    try:
        presets.save(name, dict(zip(presets.FIELDS, values, strict=True)))
    except WRONG as error:
        return gr.update(), html.escape(str(error))
    return gr.update(choices=presets.names(), value=name.strip()), ""


def loaded(name: str) -> list[Any]:
    """What a preset says of each of its fields, and a sentence."""
    try:
        said = presets.load(name)
    except WRONG as error:
        return [*[gr.update()] * len(presets.FIELDS), html.escape(str(error))]
    return [*(gr.update(value=said[key]) if key in said else gr.update() for key in presets.FIELDS), ""]


def forgotten(name: str) -> tuple[Any, str]:
    """The presets without one."""
    try:
        presets.forget(name)
    except WRONG as error:
        return gr.update(), html.escape(str(error))
    return gr.update(choices=presets.names(), value=None), ""
