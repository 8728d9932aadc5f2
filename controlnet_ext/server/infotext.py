"""What a picture was made from, as the webui writes it beside the pixels."""

from __future__ import annotations

import json
from typing import Any

from .generation import Generation
from .webui_unit import FITS, MODES, WebuiUnit


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
    if asked.init is not None:
        words["Denoising strength"] = asked.strength
    if asked.clip_skip:
        words["Clip skip"] = asked.clip_skip + 1
    for place, unit in asked.units:
        words[f"ControlNet {place - 1}"] = unit_text(unit, models[place])
    return "\n".join([*lines, ", ".join(f"{name}: {_quoted(value)}" for name, value in words.items())])


def unit_text(unit: WebuiUnit, model: str) -> str:
    """A unit in the order and words of sd-webui-controlnet."""
    words = {
        "Module": unit.module.name if unit.module else "none",
        "Model": model,
        "Weight": unit.weight,
        "Resize Mode": next(word for word, way in FITS if way == unit.fit),
        "Processor Res": unit.resolution,
        "Threshold A": unit.a,
        "Threshold B": unit.b,
        "Guidance Start": unit.window.start,
        "Guidance End": unit.window.end,
        "Pixel Perfect": unit.pixel_perfect,
        "Control Mode": next(word for word, mode in MODES if mode == unit.mode),
    }
    return ", ".join(f"{name}: {value}" for name, value in words.items())


def _quoted(value: Any) -> str:
    """A value that holds what separates values stands in quotes (AUTOMATIC1111, infotext_utils.quote)."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(letter in text for letter in ",\n:") else text
