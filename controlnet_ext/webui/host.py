"""The host as the extension sees it: settings and flags, under the keys of sd-webui-controlnet so that configurations
keep working; folders; and what lives as long as the host: control models and preprocessors."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from ..generation.inpainting import MASK_BLUR
from ..hosts.ldm.unet_view import LdmUNetView
from ..preprocessors.library import Library
from ..sdwebui.build import UnitBuilder
from ..sdwebui.catalog import ModelCatalog
from ..sdwebui.modules import cache_maps, create_preprocessor_loader

SECTION = ("control_net", "ControlNet")
EXTENSION_FOLDER = Path(__file__).resolve().parents[2]
MODEL_FOLDER_NAME = "ControlNet"  # in the host's folder of models


def register() -> None:
    """Register the settings with the host."""
    from modules import script_callbacks

    script_callbacks.on_ui_settings(_declare_options)


def _declare_options() -> None:
    import gradio as gr
    from modules import shared

    def option(key: str, default: Any, words: str, component: Any = None, arguments: Any = None, **more: Any) -> None:
        info = shared.OptionInfo(default, words, component, arguments or more or {}, section=SECTION)
        shared.opts.add_option(key, info)

    units: dict[str, Any] = {"minimum": 1, "maximum": 10, "step": 1}
    option("control_net_detectedmap_dir", "detected_maps", "Folder for saved control maps")
    option("control_net_models_path", "", "One more folder of control models (requires restart)")
    option("control_net_modules_path", "", "Folder of preprocessors' weights (requires restart)")
    option("control_net_unit_count", 3, "Number of ControlNet units (requires restart)", gr.Slider, units)
    option("control_net_model_cache_size", 2, "Control models that stay loaded (requires restart)", gr.Slider, units)
    blurs: dict[str, Any] = {"minimum": 0, "maximum": 64, "step": 1}
    words = "Border in which inpaint_only mixes the image with the original, in pixels"
    option("control_net_inpaint_blur_sigma", MASK_BLUR, words, gr.Slider, blurs)
    option("control_net_no_detectmap", False, "Do not append control maps to the results")
    option("control_net_detectmap_autosaving", False, "Save control maps")
    option("controlnet_save_unit_images", True, "Save units' images beside the results, for PNG info to bring back")
    option("control_net_allow_script_control", False, "Allow other scripts to control this extension")
    option("control_net_sync_field_args", True, "PNG info brings units back")
    option("controlnet_increment_seed_during_batch", False, "In a batch of images, another seed for each")
    option("controlnet_control_type_dropdown", False, "Control types as a list to unfold (requires restart)")
    option("controlnet_ignore_noninpaint_mask", False, "Ignore a mask painted on a unit that does not inpaint")


def get_setting(key: str, default: Any) -> Any:
    """Return a setting, `default` if the host does not know it (yet). (`opts.data` lacks the host's own settings that
    were never changed.)"""
    from modules import shared

    return getattr(shared.opts, key, default)


def get_unit_count() -> int:
    """Return the number of units, 1..10."""
    return max(1, min(int(get_setting("control_net_unit_count", 3)), 10))


def get_inpaint_blur() -> int:
    """Return the border in pixels in which inpaint_only mixes the image with the original, 0..64."""
    return max(0, min(int(get_setting("control_net_inpaint_blur_sigma", MASK_BLUR)), 64))


def list_model_folders() -> list[str]:
    """Return the existing folders of control models: the host's, the extension's, the setting's, the flag's."""
    from modules import shared
    from modules.paths import models_path

    folders = (get_setting("control_net_models_path", ""), getattr(shared.cmd_opts, "controlnet_dir", None))
    paths = [
        Path(models_path) / MODEL_FOLDER_NAME,
        EXTENSION_FOLDER / "models",
        *(_resolve_path(name) for name in folders if name),
    ]
    return [str(folder) for folder in dict.fromkeys(paths) if folder.is_dir()]


def list_weight_folders() -> list[str]:
    """Return the existing folders of preprocessors' weights; downloads go to the first."""
    from modules import shared

    flag = getattr(shared.cmd_opts, "controlnet_annotator_models_path", None)
    folders = [_resolve_path(name) for name in (flag, get_setting("control_net_modules_path", "")) if name]
    return [str(folder) for folder in dict.fromkeys(folders) if folder.is_dir()]


def list_result_folders() -> list[Path]:
    """Return the folders of results: one, or one for txt2img and one for img2img."""
    one = get_setting("outdir_samples", "")
    folders = [one] if one else [get_setting(f"outdir_{tab}_samples", "") for tab in ("txt2img", "img2img")]
    return [Path(name) for name in folders if name]


def get_map_folder() -> Path:
    """Return the folder of saved maps."""
    return _resolve_path(get_setting("control_net_detectedmap_dir", "") or "detected_maps")


def _resolve_path(name: str) -> Path:
    """Resolve a user's path against the host's folder of data."""
    from modules.paths import data_path

    return Path(data_path) / Path(name).expanduser()


@cache
def get_model_catalog() -> ModelCatalog:
    """Return the control models in the host's folders; one catalog for the life of the host."""
    return ModelCatalog(list_model_folders(), "", int(get_setting("control_net_model_cache_size", 2)))


def list_fitting_models() -> list[str]:
    """Return the names of control models that fit the loaded checkpoint, by their tensors; all names while none is
    loaded."""
    unet = _get_unet()
    return [name for name in get_model_catalog().names if unet is None or get_model_catalog().can_guide(name, unet)]


def _get_unet() -> Any:
    """The loaded checkpoint's UNet in diffusers' words, None without one. `shared.sd_model` would load one."""
    from modules import sd_models

    model = sd_models.model_data.sd_model
    try:
        return None if model is None else LdmUNetView(model.model.diffusion_model)
    except (ValueError, AttributeError):
        return None


@cache
def get_preprocessor_loader() -> Any:
    """Return a loader of preprocessors by name, on the host's device, with a cache of maps."""
    from modules import shared

    count = int(getattr(shared.cmd_opts, "controlnet_preprocessor_cache_size", 16))
    return cache_maps(create_preprocessor_loader(get_device(), Library(list_weight_folders() or None)), count)


def get_unit_builder() -> UnitBuilder:
    """Return the builder of units with the host's models, preprocessors, device and dtype."""
    return UnitBuilder(get_model_catalog(), get_preprocessor_loader(), get_device(), get_control_dtype())


def get_device() -> str:
    """Return the device of the host's UNet."""
    from modules import devices

    return str(devices.device)


def get_control_dtype() -> Any:
    """Return the dtype of control models: the UNet's, or float32 by the host's flag."""
    import torch
    from modules import devices, shared

    return torch.float32 if getattr(shared.cmd_opts, "no_half_controlnet", False) else devices.dtype_unet
