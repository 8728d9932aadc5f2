"""The webui's samplers that diffusers has, by the webui's names."""

from __future__ import annotations

from typing import Any

from ..generation.pipeline_folder import PipelineFolder
from ..preprocessors.parameters import nearest

SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {  # a name in pipeline.SCHEDULERS, and settings
    "Euler a": ("euler-ancestral", {}),
    "Euler": ("euler", {}),
    "Heun": ("heun", {}),
    "DPM2": ("kdpm2", {}),
    "DPM2 a": ("kdpm2-ancestral", {}),
    "DPM++ 2M": ("dpm++", {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "DPM++ 2M SDE": ("dpm++", {"algorithm_type": "sde-dpmsolver++", "solver_order": 2}),
    "LCM": ("lcm", {}),
    "DDIM": ("ddim", {}),
    "PLMS": ("pndm", {}),
    "UniPC": ("unipc", {}),
    "DDPM": ("ddpm", {}),
    "DEIS": ("deis", {}),
}
SPACINGS = {"Karras": "use_karras_sigmas", "Exponential": "use_exponential_sigmas"}  # of noise; diffusers' settings
AUTOMATIC = ("", "automatic", "normal", "none")


def sampler(folder: PipelineFolder, name: str, spacing: str) -> tuple[Any, str]:
    """A scheduler of diffusers with the model's settings, and its name as the webui writes it; without a name the
    model's own. "DPM++ 2M Karras" says both at once, as the webui did before 1.9. ValueError with the nearest names."""
    for known in SPACINGS:
        if name.casefold().endswith(f" {known.casefold()}"):
            name, spacing = name[: -len(known) - 1], known
    names = {each.casefold(): each for each in SAMPLERS}
    if name and name.casefold() not in names:
        raise ValueError(f"unknown sampler {name!r:.80}, the nearest are: {nearest(name, SAMPLERS)}")
    shown = names[name.casefold()] if name else "the model's own"
    key, more = SAMPLERS[shown] if name else (None, {})
    scheduler = folder.scheduler(key)
    if spacing.casefold() not in AUTOMATIC:
        word = next((known for known in SPACINGS if known.casefold() == spacing.casefold()), None)
        if word is None:
            raise ValueError(f"unknown scheduler {spacing!r:.80}, known are: Automatic, {', '.join(SPACINGS)}")
        if SPACINGS[word] not in scheduler.config:
            raise ValueError(f"the sampler {shown!r} has no scheduler {word!r}")
        more, shown = {**more, SPACINGS[word]: True}, f"{shown} {word}"
    return type(scheduler).from_config(scheduler.config, **more), shown
