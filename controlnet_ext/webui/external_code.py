"""An interface for other extensions: units of a request, read and set from Python, under the names of
sd-webui-controlnet's `scripts.external_code`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any

from ..maps.resize import compute_fit_resolution
from ..sdwebui.detect import API_VERSION, list_modules
from ..sdwebui.images import encode_png_base64
from . import host
from .inputs import parse_unit_arguments

TITLE = "controlnet"
DEFAULTS: dict[str, Any] = {
    "enabled": True,
    "module": "none",
    "model": "None",
    "weight": 1.0,
    "image": None,
    "resize_mode": "Crop and Resize",
    "low_vram": False,
    "processor_res": -1,
    "threshold_a": -1,
    "threshold_b": -1,
    "guidance_start": 0.0,
    "guidance_end": 1.0,
    "pixel_perfect": False,
    "control_mode": "Balanced",
    "inpaint_crop_input_image": True,
    "hr_option": "Both",
    "save_detected_map": True,
    "advanced_weighting": None,
    "effective_region_mask": None,
    "union_control_type": "Unknown",
    "mask": None,
}


class ControlMode(Enum):
    """Modes of control, in the webui's words."""

    BALANCED = "Balanced"
    PROMPT = "My prompt is more important"
    CONTROL = "ControlNet is more important"


class ResizeMode(Enum):
    """Ways of fitting an image to the result, in the webui's words."""

    RESIZE = "Just Resize"
    INNER_FIT = "Crop and Resize"
    OUTER_FIT = "Resize and Fill"


class HiResFixOption(Enum):
    """Passes of hires fix in which a unit acts, in the webui's words."""

    BOTH = "Both"
    LOW_RES_ONLY = "Low res only"
    HIGH_RES_ONLY = "High res only"


class ControlNetUnit:
    """A unit with the fields of a request as attributes, which can be set. Images are base64 or arrays (H, W, 3 or 4)
    uint8 RGB."""

    def __init__(self, **fields: Any):
        vars(self).update({**DEFAULTS, **fields})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ControlNetUnit) and self.to_dict() == other.to_dict()

    def __repr__(self) -> str:
        fields = {key: value for key, value in vars(self).items() if key not in ("image", "mask")}
        return f"ControlNetUnit({fields})"

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> ControlNetUnit:
        """Return a unit of a request's fields."""
        return cls(**fields)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a request has them."""
        return {key: value.value if isinstance(value, Enum) else value for key, value in vars(self).items()}


def get_api_version() -> int:
    """Return the version of the HTTP interface."""
    return API_VERSION


def get_models(update: bool = False) -> list[str]:
    """Return the listed names of control models, "None" first; with `update`, after another search of the folders."""
    if update:
        host.get_model_catalog().rescan()
    return ["None", *host.get_model_catalog().names]


def get_modules(alias_names: bool = False) -> list[str]:
    """Return the names of preprocessors, or their labels."""
    return list_modules(alias_names)["module_list"]


def get_modules_detail(alias_names: bool = False) -> dict[str, Any]:
    """Return the sliders of preprocessors by name, or by label."""
    return list_modules(alias_names)["module_detail"]


def get_max_models_num() -> int:
    """Return the number of units."""
    return host.get_unit_count()


def is_cn_script(script: Any) -> bool:
    """Return True if a script of the host is this extension's."""
    return script.title().casefold() == TITLE


def find_cn_script(script_runner: Any) -> Any:
    """Return this extension's script among those of a request, None if it is absent."""
    scripts = script_runner.alwayson_scripts if script_runner is not None else ()
    return next((script for script in scripts if is_cn_script(script)), None)


def get_all_units_in_processing(p: Any) -> list[ControlNetUnit]:
    """Return the units of a request's processing object, also those that are off."""
    return get_all_units(p.scripts, p.script_args)


def get_all_units(script_runner: Any, script_args: Any) -> list[ControlNetUnit]:
    """Return the units of a request, also those that are off."""
    script = find_cn_script(script_runner)
    return [] if script is None else get_all_units_from(script_args[script.args_from : script.args_to])


def get_all_units_from(script_args: Any) -> list[ControlNetUnit]:
    """Return the units in the arguments of this extension's script."""
    return [
        ControlNetUnit(**each) if each else ControlNetUnit(enabled=False) for each in parse_unit_arguments(script_args)
    ]


def get_single_unit_from(script_args: Any, index: int = 0) -> ControlNetUnit | None:
    """Return one unit in the arguments of this extension's script, None if there are fewer."""
    units = get_all_units_from(script_args)
    return units[index] if -len(units) <= index < len(units) else None


def update_cn_script_in_processing(p: Any, cn_units: Iterable[Any], **_: Any) -> None:
    """Replace the units of the processing object `p`."""
    p.script_args = update_cn_script(p.scripts, p.script_args, cn_units)


def update_cn_script(script_runner: Any, script_args: Any, cn_units: Iterable[Any], **_: Any) -> Any:
    """Return the arguments of a request with these units. Raises ValueError for more units than it has room for."""
    script = find_cn_script(script_runner)
    if script is None:
        return script_args
    entries = [
        unit.to_dict() if isinstance(unit, ControlNetUnit) else dict(unit) for unit in cn_units if unit is not None
    ]
    room = script.args_to - script.args_from
    if len(entries) > min(room, host.get_unit_count()):
        raise ValueError(f"{len(entries)} units, expected up to {host.get_unit_count()}")
    arguments = list(script_args)
    arguments[script.args_from : script.args_to] = [*entries, *[None] * (room - len(entries))]
    return type(script_args)(arguments)


def update_cn_script_in_place(script_runner: Any, script_args: list[Any], cn_units: Iterable[Any], **_: Any) -> None:
    """Replace the units in the arguments of a request, a list."""
    script_args[:] = update_cn_script(script_runner, script_args, cn_units)


def pixel_perfect_resolution(image: Any, target_H: int, target_W: int, resize_mode: Any) -> int:
    """Return the resolution at which the map of an image (H, W, 3) is neither enlarged nor shrunk."""
    word = resize_mode.value if isinstance(resize_mode, Enum) else resize_mode
    how = "fill" if word == ResizeMode.OUTER_FIT.value else "crop"
    return compute_fit_resolution(image.shape[0], image.shape[1], target_H, target_W, how)


def to_base64_nparray(pixels: Any) -> str:
    """Encode an array (H, W) or (H, W, 3) uint8 RGB as a PNG in base64."""
    return encode_png_base64(pixels)
