"""Generation parameters as text, as the webui writes them beside the pixels."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import error_prefix
from ..files.disk import parse_json
from ..generation.inpainting import InpaintArea
from .modules import USE_DEFAULT, find_module, parameters_from_sliders
from .requests import INPAINTING_FILLS, WebuiRequest
from .units import CONTROL_MODES, HR_OPTIONS, RESIZE_MODES, UNION_MAP_TYPES, WebuiUnit

if TYPE_CHECKING:
    from ..scoring.inputs import StatedUnit

UNIT_TEXT_FIELDS = {  # that a unit's text may set
    *("module", "model", "weight", "resize_mode", "processor_res", "threshold_a", "threshold_b", "guidance_start"),
    *("guidance_end", "pixel_perfect", "control_mode", "enabled", "hr_option", "low_vram", "save_detected_map"),
    *("union_control_type", "weight_schedule", "advanced_weighting"),
}

UNIT_PATTERN = re.compile(r'ControlNet (\d{1,3}): ("(?:[^"\\]|\\.)*")')  # in the text of an image


def format_infotext(
    request: WebuiRequest, seed: int, sampler_name: str, checkpoint_name: str, model_names: dict[int, str]
) -> str:
    """Return the text of one image. `model_names` are listed names by the number of their unit, from 1."""
    lines = [request.prompt, *([f"Negative prompt: {request.negative_prompt}"] if request.negative_prompt else [])]
    words: dict[str, Any] = {
        "Steps": request.steps,
        "Sampler": sampler_name,
        "CFG scale": request.guidance_scale,
        "Seed": seed,
        "Size": f"{request.width}x{request.height}",
        "Model": checkpoint_name,
    }
    if request.denoising_strength is not None:
        words["Denoising strength"] = request.denoising_strength
    words |= _format_inpaint_area(request.inpaint_area) | _format_hires_fix(request)
    if request.clip_skip:
        words["Clip skip"] = request.clip_skip + 1
    for place, unit in request.units:
        words[f"ControlNet {place - 1}"] = format_unit_text(unit, model_names[place])
    return "\n".join([*lines, ", ".join(f"{name}: {_quote(value)}" for name, value in words.items())])


def _format_inpaint_area(inpaint_area: InpaintArea | None) -> dict[str, Any]:
    if inpaint_area is None:
        return {}
    words: dict[str, Any] = {"Mask mode": "Inpaint not masked"} if inpaint_area.is_inverted else {}
    if inpaint_area.mask_blur:
        words["Mask blur"] = inpaint_area.mask_blur
    if inpaint_area.only_masked:
        words |= {"Inpaint area": "Only masked", "Masked area padding": inpaint_area.padding}
    if inpaint_area.masked_content != "original":
        words["Masked content"] = _find_word(INPAINTING_FILLS, inpaint_area.masked_content)
    return words


def _format_hires_fix(request: WebuiRequest) -> dict[str, Any]:
    second = request.hires_fix
    if second is None:
        return {}
    words: dict[str, Any] = {"Hires resize": f"{second.size[1]}x{second.size[0]}"}
    if second.steps != request.steps:
        words["Hires steps"] = second.steps
    return {**words, "Hires upscaler": second.upscaler}


def format_unit_text(unit: WebuiUnit, model_name: str) -> str:
    """Return a unit in the order and words of sd-webui-controlnet, followed by fields that it does not have."""
    words: dict[str, Any] = {
        "Module": unit.module.name if unit.module else "none",
        "Model": model_name,
        "Weight": unit.weight,
        "Resize Mode": _find_word(RESIZE_MODES, unit.fit),
        "Processor Res": round(unit.resolution),
        "Threshold A": unit.threshold_a,
        "Threshold B": unit.threshold_b,
        "Guidance Start": unit.window.start,
        "Guidance End": unit.window.end,
        "Pixel Perfect": unit.pixel_perfect,
        "Control Mode": _find_word(CONTROL_MODES, unit.mode),
        "Enabled": True,
        "Hr Option": _find_word(HR_OPTIONS, unit.hires),
        "Low Vram": unit.low_vram,
        "Save Detected Map": unit.returns_map,
        "Union Control Type": _find_word(UNION_MAP_TYPES, unit.union_type),
    }
    if unit.weight_schedule is not None:
        words["Weight Schedule"] = " ".join(unit.weight_schedule.replace(",", " ").split())
    if unit.layer_scales is not None:
        words["Advanced Weighting"] = " ".join(f"{value:g}" for value in unit.layer_scales)
    return ", ".join(f"{name}: {value}" for name, value in words.items())


def parse_unit_text(text: str) -> dict[str, Any]:
    """Return the fields of a unit in a text of `format_unit_text` or sd-webui-controlnet; other fields are skipped."""
    values: dict[str, Any] = {}
    for part in text.split(","):
        name, colon, text_value = part.partition(":")
        key = "_".join(name.casefold().split())
        if colon and key in UNIT_TEXT_FIELDS:
            values[key] = _parse_value(text_value.strip())
    if "advanced_weighting" in values:
        words = str(values["advanced_weighting"]).split()
        values["advanced_weighting"] = [float(word) for word in words if _is_number(word)]
    if "weight_schedule" in values:
        values["weight_schedule"] = ", ".join(str(values["weight_schedule"]).split())
    return values


def read_stated_units(text: str) -> list[StatedUnit]:
    """Return how the units in the text of an image made their maps, which the text does not hold. Units that are off,
    and those without a preprocessor, are left out.

    Raises ValueError in one line for a preprocessor that is not here, or sliders that are no numbers."""
    from ..scoring.inputs import StatedUnit  # which hosts of the webui do not need

    units = []
    for number, text_of_unit in UNIT_PATTERN.findall(text.rpartition("\n")[2]):
        with error_prefix(f"ControlNet {number}"):
            unit = parse_unit_text(str(parse_json(text_of_unit.encode(), "its text")))
            module = find_module(str(unit.get("module", "none")))
            if module is None or unit.get("enabled") is False:
                continue
            sliders = (unit.get(name, USE_DEFAULT) for name in ("processor_res", "threshold_a", "threshold_b"))
            parameters = parameters_from_sliders(module, *map(float, sliders))
            if unit.get("pixel_perfect") is True and "resolution" in parameters:
                parameters["resolution"] = "match"
            fit_mode = dict(RESIZE_MODES).get(str(unit.get("resize_mode")), "crop")
            units.append(StatedUnit(module, parameters, fit_mode))
    return units


def _parse_value(text: str) -> Any:
    if text in ("True", "False"):
        return text == "True"
    if not _is_number(text):
        return text
    return int(text) if text.lstrip("-").isdigit() else float(text)


def _is_number(text: str) -> bool:
    return re.fullmatch(r"-?\d{1,12}(\.\d{1,20})?", text, re.ASCII) is not None


def _find_word(choices: Sequence[tuple[str, Any]], meaning: object) -> str:
    return next(word for word, value in choices if value == meaning)


def _quote(value: object) -> str:
    """Quote a value that holds separators (AUTOMATIC1111, infotext_utils.quote)."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(letter in text for letter in ",\n:") else text
