"""How much noise a diffusers scheduler has in the UNet's input."""

from __future__ import annotations

from typing import Any

import torch

from ...guidance.noise import PREDICTIONS, Noise


def noise_level(scheduler: Any, t: float) -> Noise:
    """Of the call that comes next, at timestep `t`. ValueError for schedulers of other models of noise."""
    name, config = type(scheduler).__name__, scheduler.config
    if config.get("prediction_type", "epsilon") not in PREDICTIONS:
        raise ValueError(
            f"{name} predicts {config['prediction_type']!r}; latents are changed after a step only where a model "
            f"predicts one of: {', '.join(PREDICTIONS)}"
        )
    if not hasattr(scheduler, "alphas_cumprod") or "sigma_data" in config:
        raise ValueError(f"{name} has no cumulated alphas, by which latents are changed after a step")
    signal = _signal(scheduler, t)
    return Noise(config.get("prediction_type", "epsilon"), signal, max(1 - signal**2, 0.0) ** 0.5)


def _signal(scheduler: Any, t: float) -> float:
    scale = float(scheduler.scale_model_input(torch.ones(()), t))  # 1 / sqrt(1 + sigma^2) where it scales at all
    if scale != 1:
        return scale
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is None:
        return float(scheduler.alphas_cumprod[int(t)]) ** 0.5
    index = scheduler.step_index if scheduler.step_index is not None else scheduler.index_for_timestep(t)
    return (1 + float(sigmas[index]) ** 2) ** -0.5
