"""The samplers and noise schedules of the webui that diffusers has, by the webui's names."""

from __future__ import annotations

from typing import Any

from ..errors import suggest_names
from ..generation.pipeline_folder import PipelineFolder

SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {  # a name in `SCHEDULERS`, and settings of the scheduler
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
NOISE_SCHEDULES = {"Karras": "use_karras_sigmas", "Exponential": "use_exponential_sigmas"}  # and diffusers' settings
AUTOMATIC_NAMES = ("", "automatic", "normal", "none")


def create_scheduler(folder: PipelineFolder, name: str, noise_schedule: str) -> tuple[Any, str]:
    """Return a scheduler of diffusers with the model's settings, and its name as the webui writes it.

    Without a name it is the model's own. "DPM++ 2M Karras" is sampler and noise schedule in one, as in the webui before
    1.9. Raises ValueError for unknown names, with the nearest ones, and for a schedule that the sampler does not have.
    """
    for known in NOISE_SCHEDULES:
        if name.casefold().endswith(f" {known.casefold()}"):
            name, noise_schedule = name[: -len(known) - 1], known
    names = {each.casefold(): each for each in SAMPLERS}
    if name and name.casefold() not in names:
        raise ValueError(suggest_names(f"unknown sampler {name!r:.80}", name, SAMPLERS))
    shown = names[name.casefold()] if name else "the model's own"
    key, more = SAMPLERS[shown] if name else (None, {})
    scheduler = folder.make_scheduler(key)
    if noise_schedule.casefold() not in AUTOMATIC_NAMES:
        word = next((known for known in NOISE_SCHEDULES if known.casefold() == noise_schedule.casefold()), None)
        if word is None:
            raise ValueError(
                f"unknown scheduler {noise_schedule!r:.80}, known are: Automatic, {', '.join(NOISE_SCHEDULES)}"
            )
        if NOISE_SCHEDULES[word] not in scheduler.config:
            raise ValueError(f"the sampler {shown!r} has no scheduler {word!r}")
        more, shown = {**more, NOISE_SCHEDULES[word]: True}, f"{shown} {word}"
    return type(scheduler).from_config(scheduler.config, **more), shown
