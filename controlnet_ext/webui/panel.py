"""The panel: a tab for each unit. Works with gradio 3.41 (stable-diffusion-webui 1.10) and 4.40."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr
from modules.ui_components import ToolButton

from ..sdwebui.control_types import control_types
from ..sdwebui.detect import module_list
from ..sdwebui.units import FITS, MODES, PASSES, UNIONS
from . import actions, host, presets, settings
from .fields import FIELDS
from .gradio_images import OLD
from .paste import pasted


@dataclass
class Panel:
    """All components in the order of FIELDS, unit after unit, and what PNG info is pasted to: (component, name)."""

    components: list[Any]
    pasted: list[tuple[Any, Any]]


def build(script: Any, is_img2img: bool, units: int) -> Panel:
    """Draw the panel in the host's page."""
    panel = Panel([], [])
    with gr.Accordion("ControlNet", open=False, elem_id=script.elem_id("panel")), gr.Tabs():
        for i in range(units):
            with gr.Tab(f"Unit {i}", elem_id=script.elem_id(f"tab_{i}")):
                unit = Parts(script, i, is_img2img)
                panel.components += [unit.parts[name] for name in FIELDS]
                panel.pasted += pasted(i, unit.parts)
    return panel


class Parts:
    """The components of one unit."""

    def __init__(self, script: Any, place: int, is_img2img: bool):
        self._id = lambda name: script.elem_id(f"{name}_{place}")
        self.parts: dict[str, Any] = {}
        self._images()
        with gr.Row():
            self._flag("enabled", "Enable", False)
            self._flag("pixel_perfect", "Pixel Perfect", False)
            self._flag("low_vram", "Low VRAM", False)
            self._flag("save_detected_map", "Append map to results", True)
        self._makers()
        self._slider("processor_res", "Preprocessor Resolution", 64, 2048, 8, 512, visible=False)
        self._slider("threshold_a", "Threshold A", 0, 1, 0.01, 0.5, visible=False)
        self._slider("threshold_b", "Threshold B", 0, 1, 0.01, 0.5, visible=False)
        self._words("control_mode", "Control Mode", MODES, "Balanced")
        self._words("resize_mode", "Resize Mode", FITS[:3], "Crop and Resize")
        self._words("hr_option", "Hires. fix", PASSES, "Both", visible=not is_img2img)
        with gr.Row():
            names = presets.names()
            self._preset = gr.Dropdown(names, label="Preset", allow_custom_value=True, elem_id=self._id("preset"))
            self._load = self._tool("load", "📂", "Set the unit as this preset says")
            self._save = self._tool("save", "💾", "Keep the unit under this name")
            self._forget = self._tool("forget", "🗑", "Forget this preset")
        with gr.Accordion("More", open=False):
            self._more()
        self._wire()

    def _images(self) -> None:
        """The image, its map, and a pose's key points."""
        with gr.Row():
            self.parts["image"] = _canvas("Image", self._id("image"))
            self._preview = gr.Image(label="Map", interactive=False, elem_id=self._id("preview"))
        with gr.Row():
            self._message = gr.HTML(elem_id=self._id("message"))
            self._use = self._tool("use", "⬅", "Take the map as the image, without a preprocessor")
            self._size = self._tool("size", "📐", "Set width and height to the image's")
        with gr.Accordion("Pose", open=False, visible=False, elem_id=self._id("pose_box")) as self._pose_box:
            self._text("pose", "Key points (OpenPose JSON): edit them or paste others, then draw", lines=4)
            self._draw = gr.Button("Draw", elem_id=self._id("draw"))

    def _makers(self) -> None:
        """Preprocessor and model, by control type, and how strongly and when."""
        names = host.names()
        shown = gr.Dropdown if settings.value("controlnet_control_type_dropdown", False) else gr.Radio
        types = list(control_types(names))
        self.parts["type"] = shown(types, value="All", label="Control Type", elem_id=self._id("type"))
        with gr.Row():
            self._choice("module", "Preprocessor", list(module_list(True)["module_list"]), "none")
            self._run = self._tool("run", "💥", "Make the map")
            self._choice("model", "Model", ["None", *names], "None")
            self._refresh = self._tool("refresh", "🔄", "Look for models again")
        with gr.Row():
            self._slider("weight", "Control Weight", 0, 2, 0.05, 1.0)  # the host makes what it pastes of this type
            self._slider("guidance_start", "Starting Control Step", 0, 1, 0.01, 0.0)
            self._slider("guidance_end", "Ending Control Step", 0, 1, 0.01, 1.0)

    def _more(self) -> None:
        """What few need."""
        self._words("union_control_type", "Union Type", UNIONS, "Unknown")
        self._text("weight_schedule", "Weight over the steps, instead of the weight", placeholder="0.2@0, 1@0.3, 0@0.8")
        layers = "13 numbers, for SDXL 10, for a T2I-Adapter 4"
        self._text("advanced_weighting", "Weights of the layers, instead of weight and mode", placeholder=layers)
        with gr.Row():
            self._upload("mask", "Mask, where none is painted on the image")
            self._upload("effective_region_mask", "Effective Region Mask")
        self._text("batch_folder", "Batch folder: a picture for each image in it")
        self._flag("loopback", "Loopback: from the second picture on, its image is the one before", False)

    def _text(self, name: str, label: str, **more: Any) -> None:
        self.parts[name] = gr.Textbox("", label=label, elem_id=self._id(name), **more)

    def _upload(self, name: str, label: str) -> None:
        source: Any = {"source": "upload"} if OLD else {"sources": ["upload"]}
        self.parts[name] = gr.Image(label=label, type="numpy", elem_id=self._id(name), **source)

    def _flag(self, name: str, label: str, value: bool) -> None:
        self.parts[name] = gr.Checkbox(value, label=label, elem_id=self._id(name))

    def _choice(self, name: str, label: str, words: list[str], value: str) -> None:
        self.parts[name] = gr.Dropdown(words, value=value, label=label, elem_id=self._id(name))

    def _words(self, name: str, label: str, words: Any, value: str, visible: bool = True) -> None:
        choices = [word for word, _ in words]
        self.parts[name] = gr.Radio(choices, value=value, label=label, visible=visible, elem_id=self._id(name))

    def _slider(self, name: str, label: str, low: float, high: float, step: float, value: float, **more: Any) -> None:
        self.parts[name] = gr.Slider(low, high, value=value, step=step, label=label, elem_id=self._id(name), **more)

    def _tool(self, name: str, sign: str, words: str) -> Any:
        return ToolButton(sign, elem_id=self._id(name), tooltip=words)

    def _wire(self) -> None:
        parts = self.parts
        slid = [parts[name] for name in actions.SLIDERS]
        parts["type"].input(actions.of_type, [parts["type"]], [parts["module"], parts["model"], *slid])
        parts["module"].input(actions.sliders_of, [parts["module"]], slid)  # not what is pasted or of a preset
        self._refresh.click(actions.refreshed, [parts["type"], parts["model"]], [parts["model"]])
        asked = [parts["image"], parts["mask"], parts["module"], *slid]
        self._run.click(actions.preview, asked, [self._preview, self._message, parts["pose"], self._pose_box])
        self._draw.click(actions.draw, [parts["pose"]], [self._preview, self._message])
        self._use.click(actions.used, [self._preview], [parts["image"], parts["module"], parts["enabled"], *slid])
        kept = [parts[name] for name in presets.FIELDS]
        self._save.click(actions.saved, [self._preset, *kept], [self._preset, self._message])
        self._load.click(actions.loaded, [self._preset], [*kept, parts["type"], self._message])
        self._forget.click(actions.forgotten, [self._preset], [self._preset, self._message])


def _canvas(label: str, elem_id: str) -> Any:
    if OLD:
        return gr.Image(
            label=label, source="upload", tool="sketch", type="numpy", brush_color="#ffffff", elem_id=elem_id
        )
    return gr.ImageEditor(label=label, type="numpy", elem_id=elem_id)
