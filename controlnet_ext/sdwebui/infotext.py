"""What a picture was made from, as the webui writes it beside the pixels."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from .requests import FILLINGS, Generation, Repaint
from .units import FITS, MODES, PASSES, UNIONS, WebuiUnit

FIELDS = {  # that a unit's text may set
    *("module", "model", "weight", "resize_mode", "processor_res", "threshold_a", "threshold_b", "guidance_start"),
    *("guidance_end", "pixel_perfect", "control_mode", "enabled", "hr_option", "low_vram", "save_detected_map"),
    *("union_control_type", "weight_schedule", "advanced_weighting"),
}


def infotext(asked: Generation, seed: int, sampler: str, model: str, models: dict[int, str]) -> str:
    """The text of one picture; `models` are the listed names by the place of their units."""
    lines = [asked.prompt, *([f"Negative prompt: {asked.negative}"] if asked.negative else [])]
    words: dict[str, Any] = {
        "Steps": asked.steps,
        "Sampler": sampler,
        "CFG scale": asked.guidance,
        "Seed": seed,
        "Size": f"{asked.width}x{asked.height}",
        "Model": model,
    }
    if asked.denoising is not None:
        words["Denoising strength"] = asked.denoising
    words |= _repaint_words(asked.repaint) | _second_words(asked)
    if asked.clip_skip:
        words["Clip skip"] = asked.clip_skip + 1
    for place, unit in asked.units:
        words[f"ControlNet {place - 1}"] = unit_text(unit, models[place])
    return "\n".join([*lines, ", ".join(f"{name}: {_quoted(value)}" for name, value in words.items())])


def _repaint_words(repaint: Repaint | None) -> dict[str, Any]:
    if repaint is None:
        return {}
    words: dict[str, Any] = {"Mask mode": "Inpaint not masked"} if repaint.inverted else {}
    if repaint.blur:
        words["Mask blur"] = repaint.blur
    if repaint.only_masked:
        words |= {"Inpaint area": "Only masked", "Masked area padding": repaint.padding}
    if repaint.content != "original":
        words["Masked content"] = _word(FILLINGS, repaint.content)
    return words


def _second_words(asked: Generation) -> dict[str, Any]:
    second = asked.second
    if second is None:
        return {}
    words: dict[str, Any] = {"Hires resize": f"{second.size[1]}x{second.size[0]}"}
    if second.steps != asked.steps:
        words["Hires steps"] = second.steps
    return {**words, "Hires upscaler": second.upscaler}


def unit_text(unit: WebuiUnit, model: str) -> str:
    """A unit in the order and words of sd-webui-controlnet, and after them what it has no words for."""
    words: dict[str, Any] = {
        "Module": unit.module.name if unit.module else "none",
        "Model": model,
        "Weight": unit.weight,
        "Resize Mode": _word(FITS, unit.fit),
        "Processor Res": round(unit.resolution),
        "Threshold A": unit.a,
        "Threshold B": unit.b,
        "Guidance Start": unit.window.start,
        "Guidance End": unit.window.end,
        "Pixel Perfect": unit.pixel_perfect,
        "Control Mode": _word(MODES, unit.mode),
        "Enabled": True,
        "Hr Option": _word(PASSES, unit.passes),
        "Low Vram": unit.low_vram,
        "Save Detected Map": unit.shows_map,
        "Union Control Type": _word(UNIONS, unit.union),
    }
    if unit.schedule is not None:
        words["Weight Schedule"] = " ".join(unit.schedule.replace(",", " ").split())
    if unit.layers is not None:
        words["Advanced Weighting"] = " ".join(f"{value:g}" for value in unit.layers)
    return ", ".join(f"{name}: {value}" for name, value in words.items())


def read_unit_text(text: str) -> dict[str, Any]:
    """The fields of a unit that `unit_text`, or sd-webui-controlnet, wrote; what is no field is passed over."""
    found: dict[str, Any] = {}
    for part in text.split(","):
        name, colon, said = part.partition(":")
        key = "_".join(name.casefold().split())
        if colon and key in FIELDS:
            found[key] = _value(said.strip())
    if "advanced_weighting" in found:
        words = str(found["advanced_weighting"]).split()
        found["advanced_weighting"] = [float(word) for word in words if _is_number(word)]
    if "weight_schedule" in found:
        found["weight_schedule"] = ", ".join(str(found["weight_schedule"]).split())
    return found


def _value(said: str) -> Any:
    if said in ("True", "False"):
        return said == "True"
    if not _is_number(said):
        return said
    return int(said) if said.lstrip("-").isdigit() else float(said)


def _is_number(said: str) -> bool:
    return re.fullmatch(r"-?\d{1,12}(\.\d{1,20})?", said, re.ASCII) is not None


def _word(among: Sequence[tuple[str, Any]], meaning: Any) -> str:
    return next(word for word, value in among if value == meaning)


def _quoted(value: Any) -> str:
    """A value that holds what separates values stands in quotes (AUTOMATIC1111, infotext_utils.quote)."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(letter in text for letter in ",\n:") else text
