"""The loss of a diffusion model's prediction over noise levels, and the random numbers of a training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .config import MAX_LAYOUT_FACTOR, WEIGHTINGS

if TYPE_CHECKING:
    from ..hosts.diffusers.host import Scheduler

SNR_LIMIT = 5.0


class DiffusionLoss:
    """The loss of noised latents over the noise levels of a diffusers scheduler.

    Networks predict the noise or, where the config states `v_prediction`, the velocity (Salimans and Ho,
    arXiv:2202.00512, appendix D). The weighting `min-snr` multiplies the loss by min(SNR, 5) / SNR for noise, min(SNR,
    5) / (SNR + 1) for velocity (Hang et al., arXiv:2303.09556, section 3.4). `layout` multiplies it by min(1 / SNR + 1,
    50) more: high noise levels, at which the places of colors are decided, count almost as for velocity without
    weights; levels are then sampled in proportion to their weights instead of uniformly, which is equal in expectation.
    Raises ValueError for another type of prediction or weighting.
    """

    def __init__(self, scheduler: Scheduler, weighting: str = "min-snr"):
        if weighting not in WEIGHTINGS:
            raise ValueError(f"weighting {weighting!r} of the losses, expected one of {', '.join(WEIGHTINGS)}")
        kind = scheduler.config.get("prediction_type", "epsilon")
        if kind not in ("epsilon", "v_prediction"):
            raise ValueError(f"the model predicts {kind!r}, expected epsilon or v_prediction")
        self._predicts_velocity = kind == "v_prediction"
        alphas = scheduler.alphas_cumprod.float()
        self._signal, self._noise = alphas.sqrt(), (1 - alphas).sqrt()
        snr = alphas / (1 - alphas)
        weights = (SNR_LIMIT / snr).clamp(max=1)
        if weighting == "layout":
            weights = weights * (1 / snr + 1).clamp(max=MAX_LAYOUT_FACTOR)
        self._weights = weights * snr / (snr + 1) if self._predicts_velocity else weights
        self._is_uniform = weighting == "min-snr"

    @property
    def num_timesteps(self) -> int:
        """Number of noise levels."""
        return len(self._weights)

    def sample(self, latents: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Return noised latents (B, C, h, w), the target of the prediction, and timesteps (B,), sampled on the CPU."""
        noise = torch.randn(latents.shape, generator=rng)
        if self._is_uniform:
            t = torch.randint(self.num_timesteps, (len(latents),), generator=rng)
        else:
            t = torch.multinomial(self._weights, len(latents), replacement=True, generator=rng)
        return self.add_noise(latents, noise, t)

    def add_noise(self, latents: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what `sample` returns, for latents and noise (B, C, h, w) and timesteps (B,)."""
        signal, sigma = self._signal[t].view(-1, 1, 1, 1), self._noise[t].view(-1, 1, 1, 1)
        return (
            signal * latents + sigma * noise,
            signal * noise - sigma * latents if self._predicts_velocity else noise,
            t,
        )

    def compute_loss(self, predicted: Tensor, target: Tensor, t: Tensor, importance_sampled: bool = True) -> Tensor:
        """Return the mean of weighted squared errors of predictions (B, C, h, w) at timesteps (B,).

        `importance_sampled` is True for timesteps from `sample`, False for evenly spaced ones.
        """
        errors = (predicted.float() - target.to(predicted.device)).square().mean((1, 2, 3))
        weights = self._weights[t] if self._is_uniform or not importance_sampled else self._weights.mean()
        return (errors * weights.to(errors.device)).mean()


def make_generator(*seeds: int) -> torch.Generator:
    """Return a generator on the CPU that depends on these numbers alone."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(seeds).generate_state(1)[0]))
