"""Noised latents, and how wrong a prediction of what was done to them is."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

SNR_LIMIT = 5.0
LAYOUT = 50.0  # times min-snr's weight, at most
WEIGHTINGS = ("min-snr", "layout")


class Noising:
    """With the noise levels of a diffusers scheduler, for networks that predict the noise or, where its config says
    `v_prediction`, the velocity (Salimans and Ho, arXiv:2202.00512, appendix D).

    The `weighting` min-snr weights the loss by min(SNR, 5) / SNR for noise, min(SNR, 5) / (SNR + 1) for velocity (Hang
    et al., arXiv:2303.09556, section 3.4). `layout` weights it by min(1 / SNR + 1, 50) times that: little signal, at
    which the places of colours are decided, counts almost as for velocity without weights. Levels are then drawn as
    often as they count, instead of evenly, which is the same on average. ValueError on another kind of prediction or
    weighting."""

    def __init__(self, scheduler: Any, weighting: str = "min-snr"):
        if weighting not in WEIGHTINGS:
            raise ValueError(f"weighting {weighting!r} of the losses, expected one of {', '.join(WEIGHTINGS)}")
        kind = scheduler.config.get("prediction_type", "epsilon")
        if kind not in ("epsilon", "v_prediction"):
            raise ValueError(f"the model predicts {kind!r}, expected epsilon or v_prediction")
        self._velocity = kind == "v_prediction"
        alphas = scheduler.alphas_cumprod.float()
        self._signal, self._noise = alphas.sqrt(), (1 - alphas).sqrt()
        snr = alphas / (1 - alphas)
        weights = (SNR_LIMIT / snr).clamp(max=1)
        if weighting == "layout":
            weights = weights * (1 / snr + 1).clamp(max=LAYOUT)
        self._weights = weights * snr / (snr + 1) if self._velocity else weights
        self._even = weighting == "min-snr"

    @property
    def steps(self) -> int:
        """The number of noise levels."""
        return len(self._weights)

    def draw(self, latents: Tensor, numbers: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Noised latents, what is to be predicted of them, and timesteps (B,), drawn on the CPU."""
        noise = torch.randn(latents.shape, generator=numbers)
        if self._even:
            t = torch.randint(self.steps, (len(latents),), generator=numbers)
        else:
            t = torch.multinomial(self._weights, len(latents), replacement=True, generator=numbers)
        return self.noised(latents, noise, t)

    def noised(self, latents: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `draw`, of noise and timesteps that are given."""
        signal, sigma = self._signal[t].view(-1, 1, 1, 1), self._noise[t].view(-1, 1, 1, 1)
        return signal * latents + sigma * noise, signal * noise - sigma * latents if self._velocity else noise, t

    def loss(self, predicted: Tensor, target: Tensor, t: Tensor, drawn: bool = True) -> Tensor:
        """The mean of weighted squared errors, of timesteps that `draw` drew or, if not, of evenly spread ones."""
        errors = (predicted.float() - target.to(predicted.device)).square().mean((1, 2, 3))
        weights = self._weights[t] if self._even or not drawn else self._weights.mean()
        return (errors * weights.to(errors.device)).mean()


def generator(*numbers: int) -> torch.Generator:
    """Random numbers that depend on these alone."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))
