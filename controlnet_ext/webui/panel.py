"""The panel: a tab for each unit. Works with gradio 3.41 (stable-diffusion-webui 1.10) and 4.40."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr
from modules.ui_components import ToolButton

from ..sdwebui.control_types import list_control_types
from ..sdwebui.detect import list_modules
from ..sdwebui.modules import UNSUPPORTED_CONTROL_TYPES
from ..sdwebui.units import CONTROL_MODES, HR_OPTIONS, RESIZE_MODES, UNION_MAP_TYPES
from . import actions, host, presets
from .gradio_images import IS_GRADIO_3
from .inputs import PANEL_UNIT_FIELDS
from .paste import create_paste_fields


@dataclass
class Panel:
    """All components in the order of PANEL_UNIT_FIELDS, unit after unit, and the targets of PNG info: (component,
    name)."""

    components: list[Any]
    paste_fields: list[tuple[Any, Any]]


def build_panel(script: Any, is_img2img: bool, unit_count: int) -> Panel:
    """Build the panel in the host's page."""
    panel = Panel([], [])
    with gr.Accordion("ControlNet", open=False, elem_id=script.elem_id("panel")), gr.Tabs():
        for i in range(unit_count):
            with gr.Tab(f"Unit {i}", elem_id=script.elem_id(f"tab_{i}")):
                unit = UnitComponents(script, i, is_img2img)
                panel.components += [unit.components[name] for name in PANEL_UNIT_FIELDS]
                panel.paste_fields += create_paste_fields(i, unit.components)
    return panel


class UnitComponents:
    """The gradio components of one unit and their events."""

    def __init__(self, script: Any, unit_index: int, is_img2img: bool):
        self._element_id = lambda name: script.elem_id(f"{name}_{unit_index}")
        self.components: dict[str, Any] = {}
        self._add_images()
        with gr.Row():
            self._add_checkbox("enabled", "Enable", False)
            self._add_checkbox("pixel_perfect", "Pixel Perfect", False)
            self._add_checkbox("low_vram", "Low VRAM", False)
            self._add_checkbox("save_detected_map", "Append map to results", True)
        self._add_model_controls()
        self._add_slider("processor_res", "Preprocessor Resolution", 64, 2048, 8, 512, visible=False)
        self._add_slider("threshold_a", "Threshold A", 0, 1, 0.01, 0.5, visible=False)
        self._add_slider("threshold_b", "Threshold B", 0, 1, 0.01, 0.5, visible=False)
        self._add_radio("control_mode", "Control Mode", CONTROL_MODES, "Balanced")
        self._add_radio("resize_mode", "Resize Mode", RESIZE_MODES[:3], "Crop and Resize")
        self._add_radio("hr_option", "Hires. fix", HR_OPTIONS, "Both", visible=not is_img2img)
        with gr.Row():
            names = presets.list_preset_names()
            self._preset = gr.Dropdown(
                names, label="Preset", allow_custom_value=True, elem_id=self._element_id("preset")
            )
            self._load_button = self._create_tool_button("load", "📂", "Set the unit as this preset says")
            self._save_button = self._create_tool_button("save", "💾", "Keep the unit under this name")
            self._delete_button = self._create_tool_button("forget", "🗑", "Forget this preset")
        with gr.Accordion("More", open=False):
            self._add_advanced()
        self._connect_events()

    def _add_images(self) -> None:
        """The image, its map, and a pose's key points."""
        with gr.Row():
            self.components["image"] = _create_canvas("Image", self._element_id("image"))
            self._preview = gr.Image(label="Map", interactive=False, elem_id=self._element_id("preview"))
        with gr.Row():
            self._message = gr.HTML(elem_id=self._element_id("message"))
            self._use_button = self._create_tool_button("use", "⬅", "Take the map as the image, without a preprocessor")
            self._size_button = self._create_tool_button("size", "📐", "Set width and height to the image's")
        with gr.Accordion("Pose", open=False, visible=False, elem_id=self._element_id("pose_box")) as self._pose_box:
            self._add_textbox("pose", "Key points (OpenPose JSON): edit them or paste others, then draw", lines=4)
            self._draw_button = gr.Button("Draw", elem_id=self._element_id("draw"))

    def _add_model_controls(self) -> None:
        """Preprocessor and model, by control type, and how strongly and when."""
        names = host.list_fitting_models()
        component = gr.Dropdown if host.get_setting("controlnet_control_type_dropdown", False) else gr.Radio
        types = [name for name in list_control_types(names) if name not in UNSUPPORTED_CONTROL_TYPES]
        self.components["type"] = component(types, value="All", label="Control Type", elem_id=self._element_id("type"))
        with gr.Row():
            self._add_dropdown("module", "Preprocessor", list(list_modules(True)["module_list"]), "none")
            self._run_button = self._create_tool_button("run", "💥", "Make the map")
            self._add_dropdown("model", "Model", ["None", *names], "None")
            self._refresh_button = self._create_tool_button("refresh", "🔄", "Look for models again")
        with gr.Row():
            self._add_slider("weight", "Control Weight", 0, 2, 0.05, 1.0)  # the host makes what it pastes of this type
            self._add_slider("guidance_start", "Starting Control Step", 0, 1, 0.01, 0.0)
            self._add_slider("guidance_end", "Ending Control Step", 0, 1, 0.01, 1.0)

    def _add_advanced(self) -> None:
        """Options that few users need."""
        self._add_radio("union_control_type", "Union Type", UNION_MAP_TYPES, "Unknown")
        self._add_textbox(
            "weight_schedule", "Weight over the steps, instead of the weight", placeholder="0.2@0, 1@0.3, 0@0.8"
        )
        layers = "13 numbers, for SDXL 10, for a T2I-Adapter 4"
        self._add_textbox("advanced_weighting", "Weights of the layers, instead of weight and mode", placeholder=layers)
        with gr.Row():
            self._add_image_upload("mask", "Mask, where none is painted on the image")
            self._add_image_upload("effective_region_mask", "Effective Region Mask")
        self._add_textbox("batch_folder", "Batch folder: a result for each image in it")
        self._add_checkbox("loopback", "Loopback: from the second result on, its image is the one before", False)

    def _add_textbox(self, name: str, label: str, **more: Any) -> None:
        self.components[name] = gr.Textbox("", label=label, elem_id=self._element_id(name), **more)

    def _add_image_upload(self, name: str, label: str) -> None:
        source: Any = {"source": "upload"} if IS_GRADIO_3 else {"sources": ["upload"]}
        self.components[name] = gr.Image(label=label, type="numpy", elem_id=self._element_id(name), **source)

    def _add_checkbox(self, name: str, label: str, value: bool) -> None:
        self.components[name] = gr.Checkbox(value, label=label, elem_id=self._element_id(name))

    def _add_dropdown(self, name: str, label: str, choices: list[str], value: str) -> None:
        self.components[name] = gr.Dropdown(choices, value=value, label=label, elem_id=self._element_id(name))

    def _add_radio(self, name: str, label: str, options: Any, value: str, visible: bool = True) -> None:
        choices = [word for word, _ in options]
        self.components[name] = gr.Radio(
            choices, value=value, label=label, visible=visible, elem_id=self._element_id(name)
        )

    def _add_slider(
        self, name: str, label: str, low: float, high: float, step: float, value: float, **more: Any
    ) -> None:
        self.components[name] = gr.Slider(
            low, high, value=value, step=step, label=label, elem_id=self._element_id(name), **more
        )

    def _create_tool_button(self, name: str, sign: str, tooltip: str) -> Any:
        return ToolButton(sign, elem_id=self._element_id(name), tooltip=tooltip)

    def _connect_events(self) -> None:
        parts = self.components
        sliders = [parts[name] for name in actions.SLIDER_FIELDS]
        parts["type"].input(
            actions.update_for_control_type, [parts["type"]], [parts["module"], parts["model"], *sliders]
        )
        parts["module"].input(actions.update_sliders, [parts["module"]], sliders)  # not what is pasted or of a preset
        self._refresh_button.click(actions.refresh_models, [parts["type"], parts["model"]], [parts["model"]])
        detector_inputs = [parts["image"], parts["mask"], parts["module"], *sliders]
        self._run_button.click(
            actions.preview_map, detector_inputs, [self._preview, self._message, parts["pose"], self._pose_box]
        )
        self._draw_button.click(actions.draw_pose, [parts["pose"]], [self._preview, self._message])
        self._use_button.click(
            actions.use_map_as_image, [self._preview], [parts["image"], parts["module"], parts["enabled"], *sliders]
        )
        components = [parts[name] for name in presets.PRESET_FIELDS]
        self._save_button.click(actions.save_preset, [self._preset, *components], [self._preset, self._message])
        self._load_button.click(actions.load_preset, [self._preset], [*components, parts["type"], self._message])
        self._delete_button.click(actions.delete_preset, [self._preset], [self._preset, self._message])


def _create_canvas(label: str, elem_id: str) -> Any:
    if IS_GRADIO_3:
        return gr.Image(
            label=label, source="upload", tool="sketch", type="numpy", brush_color="#ffffff", elem_id=elem_id
        )
    return gr.ImageEditor(label=label, type="numpy", elem_id=elem_id)
