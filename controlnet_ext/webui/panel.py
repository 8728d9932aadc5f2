"""The panel: a tab for each unit. Works with gradio 3.41 (stable-diffusion-webui 1.10) and 4.40."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
import numpy as np

from ..server.control_api import detect, module_list
from ..server.control_types import control_types
from ..server.modules import module, sliders
from ..server.pictures import picture
from ..server.webui_unit import FITS, MODES, PASSES, UNIONS
from . import host

FIELDS = (
    *("enabled", "image", "module", "model", "weight", "weight_schedule", "guidance_start", "guidance_end"),
    *("control_mode", "resize_mode", "hr_option", "processor_res", "threshold_a", "threshold_b", "pixel_perfect"),
    *("low_vram", "union_control_type", "advanced_weighting", "effective_region_mask", "save_detected_map"),
)
OLD = gr.__version__.startswith("3.")


@dataclass
class Panel:
    """All components in the order of FIELDS, unit after unit, and what PNG info is pasted to: (component, name)."""

    components: list[Any]
    pasted: list[tuple[Any, Any]]


def rows(args: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """The units that the components' values say."""
    for begin in range(0, len(args) - len(FIELDS) + 1, len(FIELDS)):
        said = dict(zip(FIELDS, args[begin : begin + len(FIELDS)], strict=True))
        yield {**said, "image": drawn(said["image"]), "advanced_weighting": _numbers(said["advanced_weighting"])}


def drawn(value: Any) -> Any:
    """What the drawing component holds: {"image", "mask"} of arrays, whichever gradio made it."""
    if isinstance(value, Mapping) and "background" in value:
        layers = [layer for layer in value.get("layers") or () if layer is not None]
        painted = [np.where(layer[..., 3:] > 0, np.uint8(255), np.uint8(0)).repeat(3, 2) for layer in layers]
        return {"image": value["background"], "mask": np.maximum.reduce(painted) if painted else None}
    return value


def _numbers(text: Any) -> list[float] | None:
    words = str(text or "").replace(",", " ").split()
    try:
        return [float(word) for word in words] or None
    except ValueError as error:
        raise ValueError(f"layer weights {text!r:.60}: expected numbers, such as 1, 0.8, 0.5") from error


def build(script: Any, is_img2img: bool, units: int) -> Panel:
    """Draw the panel in the host's page."""
    panel = Panel([], [])
    with gr.Accordion("ControlNet", open=False, elem_id=script.elem_id("panel")), gr.Tabs():
        for i in range(units):
            with gr.Tab(f"Unit {i}", elem_id=script.elem_id(f"tab_{i}")):
                parts = Parts(script, i, is_img2img).parts
                panel.components += [parts[name] for name in FIELDS]
    return panel


class Parts:
    """The components of one unit."""

    def __init__(self, script: Any, place: int, is_img2img: bool):
        self._id = lambda name: script.elem_id(f"{name}_{place}")
        self.parts: dict[str, Any] = {}
        types, models = control_types(host.shelf().names), ["None", *host.shelf().names]
        with gr.Row():
            self.parts["image"] = _canvas("Image", self._id("image"))
            self._preview = gr.Image(label="Map", interactive=False, elem_id=self._id("preview"))
        self._message = gr.HTML(elem_id=self._id("message"))
        with gr.Row():
            self._flag("enabled", "Enable", False)
            self._flag("pixel_perfect", "Pixel Perfect", False)
            self._flag("low_vram", "Low VRAM", False)
            self._flag("save_detected_map", "Append map to results", True)
        self._type = gr.Radio(list(types), value="All", label="Control Type", elem_id=self._id("type"))
        with gr.Row():
            names = list(module_list(True)["module_list"])
            self._choice("module", "Preprocessor", names, "none")
            self._run = (
                gr.Button("💥", elem_id=self._id("run"), tooltip="Run preprocessor")
                if OLD
                else gr.Button("💥", elem_id=self._id("run"))
            )
            self._choice("model", "Model", models, "None")
            self._refresh = gr.Button("🔄", elem_id=self._id("refresh"))
        with gr.Row():
            self._slider("weight", "Control Weight", 0, 2, 0.05, 1)
            self._slider("guidance_start", "Starting Control Step", 0, 1, 0.01, 0)
            self._slider("guidance_end", "Ending Control Step", 0, 1, 0.01, 1)
        self._slider("processor_res", "Preprocessor Resolution", 64, 2048, 8, 512, visible=False)
        self._slider("threshold_a", "Threshold A", 0, 1, 0.01, 0.5, visible=False)
        self._slider("threshold_b", "Threshold B", 0, 1, 0.01, 0.5, visible=False)
        self._words("control_mode", "Control Mode", MODES, "Balanced")
        self._words("resize_mode", "Resize Mode", FITS[:3], "Crop and Resize")
        self._words("hr_option", "Hires. fix", PASSES, "Both", visible=not is_img2img)
        with gr.Accordion("More", open=False):
            self._words("union_control_type", "Union Type", UNIONS, "Unknown")
            for name, label, example in (
                ("weight_schedule", "Weight over the steps, instead of the weight", "0.2@0, 1@0.3, 0@0.8"),
                (
                    "advanced_weighting",
                    "Weights of the layers, instead of weight and mode",
                    "13, SDXL 10, T2I 4 numbers",
                ),
            ):
                self.parts[name] = gr.Textbox(label=label, placeholder=example, elem_id=self._id(name))
            region: Any = {"source": "upload"} if OLD else {"sources": ["upload"]}
            self.parts["effective_region_mask"] = gr.Image(
                label="Effective Region Mask", type="numpy", elem_id=self._id("region"), **region
            )
        self._wire()

    def _flag(self, name: str, label: str, value: bool) -> None:
        self.parts[name] = gr.Checkbox(value, label=label, elem_id=self._id(name))

    def _choice(self, name: str, label: str, words: list[str], value: str) -> None:
        self.parts[name] = gr.Dropdown(words, value=value, label=label, elem_id=self._id(name))

    def _words(self, name: str, label: str, words: Any, value: str, visible: bool = True) -> None:
        choices = [word for word, _ in words]
        self.parts[name] = gr.Radio(choices, value=value, label=label, visible=visible, elem_id=self._id(name))

    def _slider(self, name: str, label: str, low: float, high: float, step: float, value: float, **more: Any) -> None:
        self.parts[name] = gr.Slider(low, high, value=value, step=step, label=label, elem_id=self._id(name), **more)

    def _wire(self) -> None:
        parts = self.parts
        slid = [parts[name] for name in ("processor_res", "threshold_a", "threshold_b")]
        self._type.change(_of_type, [self._type], [parts["module"], parts["model"]])
        parts["module"].change(_sliders_of, [parts["module"]], slid)
        self._refresh.click(_refreshed, [self._type, parts["model"]], [parts["model"]])
        asked = [parts[name] for name in ("image", "module", "processor_res", "threshold_a", "threshold_b")]
        self._run.click(_preview, asked, [self._preview, self._message])


def _canvas(label: str, elem_id: str) -> Any:
    if OLD:
        return gr.Image(
            label=label, source="upload", tool="sketch", type="numpy", brush_color="#ffffff", elem_id=elem_id
        )
    return gr.ImageEditor(label=label, type="numpy", elem_id=elem_id)


def _update(**values: Any) -> Any:
    return gr.update(**values)


def _of_type(kind: str) -> list[Any]:
    found = control_types(host.shelf().names)[kind]
    return [
        _update(choices=found["module_list"], value=found["default_option"]),
        _update(choices=found["model_list"], value=found["default_model"]),
    ]


def _sliders_of(name: str) -> list[Any]:
    entry = module(name)
    shown: list[Any] = list(sliders(entry)) if entry else []
    if not shown or shown[0]["name"] != "Preprocessor Resolution":
        shown = [None, *shown]
    return [
        _update(visible=False)
        if each is None
        else _update(
            visible=True,
            label=each["name"],
            minimum=each["min"],
            maximum=each["max"],
            step=each["step"],
            value=each["value"],
        )
        for each in (*shown, None, None)[:3]
    ]


def _refreshed(kind: str, chosen: str) -> Any:
    host.shelf().rescan()
    names = control_types(host.shelf().names)[kind]["model_list"]
    return _update(choices=names, value=chosen if chosen in names else "None")


def _preview(image: Any, name: str, resolution: float, a: float, b: float) -> tuple[Any, str]:
    """The map of the image, or the sentence that says why there is none."""
    import html

    said = drawn(image)
    pixels, mask = (said.get("image"), said.get("mask")) if isinstance(said, Mapping) else (said, None)
    if pixels is None:
        return None, "There is no image."
    values = {"controlnet_module": name, "controlnet_input_images": [pixels], "controlnet_masks": [mask]}
    sliders = {"processor_res": resolution, "threshold_a": a, "threshold_b": b}
    try:
        answer = detect({**values, **{f"controlnet_{key}": value for key, value in sliders.items()}}, host.ready())
    except (ValueError, TypeError, OSError) as error:
        return None, html.escape(str(error))
    return picture(answer["images"][0], "the map"), ""
