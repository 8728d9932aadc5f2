"""Settings and flags, under the keys that sd-webui-controlnet has, so that users' configurations keep working."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..generation.inpainting import MASK_BLUR

SECTION = ("control_net", "ControlNet")
EXTENSION_FOLDER = Path(__file__).resolve().parents[2]
MODEL_FOLDER_NAME = "ControlNet"  # in the host's folder of models


def register() -> None:
    """Have the host show the settings."""
    from modules import script_callbacks

    script_callbacks.on_ui_settings(_declare_options)


def _declare_options() -> None:
    import gradio as gr
    from modules import shared

    def option(key: str, default: Any, words: str, component: Any = None, given: Any = None, **more: Any) -> None:
        shown = shared.OptionInfo(default, words, component, given or more or {}, section=SECTION)
        shared.opts.add_option(key, shown)

    units: dict[str, Any] = {"minimum": 1, "maximum": 10, "step": 1}
    option("control_net_detectedmap_dir", "detected_maps", "Folder for saved control maps")
    option("control_net_models_path", "", "One more folder of control models (requires restart)")
    option("control_net_modules_path", "", "Folder of preprocessors' weights (requires restart)")
    option("control_net_unit_count", 3, "Number of ControlNet units (requires restart)", gr.Slider, units)
    option("control_net_model_cache_size", 2, "Control models that stay loaded (requires restart)", gr.Slider, units)
    blurs: dict[str, Any] = {"minimum": 0, "maximum": 64, "step": 1}
    words = "Border in which inpaint_only mixes the picture with the original, in pixels"
    option("control_net_inpaint_blur_sigma", MASK_BLUR, words, gr.Slider, blurs)
    option("control_net_no_detectmap", False, "Do not append control maps to the pictures")
    option("control_net_detectmap_autosaving", False, "Save control maps")
    option("controlnet_save_unit_images", True, "Save units' images beside the pictures, for PNG info to bring back")
    option("control_net_allow_script_control", False, "Allow other scripts to control this extension")
    option("control_net_sync_field_args", True, "PNG info brings units back")
    option("controlnet_increment_seed_during_batch", False, "In a batch of images, another seed for each")
    option("controlnet_control_type_dropdown", False, "Control types as a list to unfold (requires restart)")
    option("controlnet_ignore_noninpaint_mask", False, "Ignore a mask painted on a unit that does not inpaint")


def get_setting(key: str, default: Any) -> Any:
    """A setting, `default` where the host does not know it (yet). (`opts.data` lacks the host's own that were never
    changed.)"""
    from modules import shared

    return getattr(shared.opts, key, default)


def get_unit_count() -> int:
    """How many units there are."""
    return max(1, min(int(get_setting("control_net_unit_count", 3)), 10))


def get_inpaint_blur() -> int:
    """Pixels of the border in which inpaint_only mixes the picture with the original."""
    return max(0, min(int(get_setting("control_net_inpaint_blur_sigma", MASK_BLUR)), 64))


def list_model_folders() -> list[str]:
    """Folders in which control models lie, those that exist: the host's, the extension's, the setting's, the flag's."""
    from modules import shared
    from modules.paths import models_path

    named = (get_setting("control_net_models_path", ""), getattr(shared.cmd_opts, "controlnet_dir", None))
    found = [
        Path(models_path) / MODEL_FOLDER_NAME,
        EXTENSION_FOLDER / "models",
        *(_resolve_path(name) for name in named if name),
    ]
    return [str(folder) for folder in dict.fromkeys(found) if folder.is_dir()]


def list_weight_folders() -> list[str]:
    """Folders in which preprocessors' weights are looked for, first where one is downloaded to."""
    from modules import shared

    flag = getattr(shared.cmd_opts, "controlnet_annotator_models_path", None)
    found = [_resolve_path(name) for name in (flag, get_setting("control_net_modules_path", "")) if name]
    return [str(folder) for folder in dict.fromkeys(found) if folder.is_dir()]


def list_result_folders() -> list[Path]:
    """Where the host saves pictures, one folder or one for txt2img and one for img2img."""
    one = get_setting("outdir_samples", "")
    named = [one] if one else [get_setting(f"outdir_{tab}_samples", "") for tab in ("txt2img", "img2img")]
    return [Path(name) for name in named if name]


def get_map_folder() -> Path:
    """Where maps are saved."""
    return _resolve_path(get_setting("control_net_detectedmap_dir", "") or "detected_maps")


def _resolve_path(name: str) -> Path:
    """A path as a user gives it, from the host's folder of data on."""
    from modules.paths import data_path

    return Path(data_path) / Path(name).expanduser()
