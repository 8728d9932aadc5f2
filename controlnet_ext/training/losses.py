"""The loss of a diffusion model's prediction over noise levels, and the random numbers of a training."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .config import MAX_LAYOUT_FACTOR, LossSettings

if TYPE_CHECKING:
    from ..hosts.diffusers.host import Scheduler

MAX_DEBIASED_SNR = 1000.0  # of the signal-to-noise ratio that `debiased` divides by


class DiffusionLoss:
    """The loss of noised latents over the noise levels of a diffusers scheduler.

    Networks predict the noise or, where the config states `v_prediction`, the velocity (Salimans and Ho,
    arXiv:2202.00512, appendix D). Weightings of noise levels:

    - `min-snr` multiplies the loss by min(SNR, gamma) / SNR for noise, min(SNR, gamma) / (SNR + 1) for velocity (Hang
      et al., arXiv:2303.09556, section 3.4).
    - `layout` multiplies it by min(1 / SNR + 1, 50) more: high noise levels, at which the places of colors are decided,
      count almost as for velocity without weights. Levels are then sampled in proportion to their weights instead of
      uniformly, which is equal in expectation.
    - `debiased` multiplies it by 1 / sqrt(SNR) for noise (Yu et al., arXiv:2310.08442), 1 / (SNR + 1) for velocity,
      with SNR up to 1000 (kohya-ss/sd-scripts @ 48d368f, apply_debiased_estimation).
    - `none` leaves it as it is.

    The losses `huber` and `smooth-l1` are the pseudo-Huber losses of kohya-ss/sd-scripts @ 48d368f
    (conditional_loss), with c by noise level as its get_huber_threshold_if_needed has it (Khrapov et al.,
    arXiv:2403.16728).

    Raises ValueError for another type of prediction, and for timesteps beyond the scheduler's.
    """

    def __init__(self, scheduler: Scheduler, settings: LossSettings | None = None):
        settings = settings or LossSettings()
        kind = scheduler.config.get("prediction_type", "epsilon")
        if kind not in ("epsilon", "v_prediction"):
            raise ValueError(f"the model predicts {kind!r}, expected epsilon or v_prediction")
        self._settings = settings
        self._predicts_velocity = kind == "v_prediction"
        alphas = scheduler.alphas_cumprod.float()
        self._signal, self._noise = alphas.sqrt(), (1 - alphas).sqrt()
        self._weights = _weigh_levels(settings, alphas / (1 - alphas), self._predicts_velocity)
        self._huber_c = _schedule_huber(settings, alphas)
        self._first, self._end = settings.timesteps or (0, len(alphas))
        if self._end > len(alphas):
            raise ValueError(f"timesteps {self._first}..{self._end} of the training, the model has 0..{len(alphas)}")
        self._is_uniform = settings.weighting != "layout"

    @property
    def num_timesteps(self) -> int:
        """Number of noise levels."""
        return len(self._weights)

    def sample(
        self, latents: Tensor, rng: torch.Generator, rank: int = 0, ranks: int = 1
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return noised latents (B, C, h, w), the target of the prediction, and timesteps (B,), sampled on the CPU.

        Of several processes each gives its rank and the latents `rank::ranks` of the batch of all, for which noise and
        timesteps are drawn.
        """
        count = len(latents) * ranks
        noise = torch.randn((count, *latents.shape[1:]), generator=rng)
        if self._is_uniform:
            t = torch.randint(self._first, self._end, (count,), generator=rng)
        else:
            weights = self._weights[self._first : self._end]
            t = self._first + torch.multinomial(weights, count, replacement=True, generator=rng)
        if self._settings.noise_offset > 0:  # crosslabs.org/blog/diffusion-with-offset-noise
            noise += self._settings.noise_offset * torch.randn((count, latents.shape[1], 1, 1), generator=rng)
        return self.add_noise(latents, noise[rank::ranks], t[rank::ranks])

    def add_noise(self, latents: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what `sample` returns, for latents and noise (B, C, h, w) and timesteps (B,)."""
        signal, sigma = self._signal[t].view(-1, 1, 1, 1), self._noise[t].view(-1, 1, 1, 1)
        return (
            signal * latents + sigma * noise,
            signal * noise - sigma * latents if self._predicts_velocity else noise,
            t,
        )

    def predict_clean(self, x: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
        """Return the latents without noise (B, C, h, w) that predictions of that shape mean for noised latents x.

        `t` (B,) are their timesteps. On the device of `prediction`, in float32.
        """
        x, prediction = x.to(prediction.device), prediction.float()
        signal, sigma = (each[t].view(-1, 1, 1, 1).to(x.device) for each in (self._signal, self._noise))
        return signal * x - sigma * prediction if self._predicts_velocity else (x - sigma * prediction) / signal

    def compute_loss(self, prediction: Tensor, target: Tensor, t: Tensor, importance_sampled: bool = True) -> Tensor:
        """Return the mean of `compute_errors`, shape ()."""
        return self.compute_errors(prediction, target, t, importance_sampled).mean()

    def compute_errors(self, prediction: Tensor, target: Tensor, t: Tensor, importance_sampled: bool = True) -> Tensor:
        """Return the weighted losses (B,) of predictions (B, C, h, w) at timesteps (B,).

        `importance_sampled` is True for timesteps from `sample`, False for evenly spaced ones.
        """
        squares = (prediction.float() - target.to(prediction.device)).square()
        if self._settings.kind != "l2":
            c = self._huber_c[t].view(-1, 1, 1, 1).to(squares.device)
            squares = 2 * ((squares + c * c).sqrt() - c) * (c if self._settings.kind == "huber" else 1)
        errors = squares.mean((1, 2, 3))
        if self._is_uniform or not importance_sampled:
            weights = self._weights[t]
        else:
            weights = self._weights[self._first : self._end].mean()
        return errors * weights.to(errors.device)


def _weigh_levels(settings: LossSettings, snr: Tensor, predicts_velocity: bool) -> Tensor:
    """Return the weights of noise levels with these signal-to-noise ratios, both (T,)."""
    if settings.weighting == "none":
        return torch.ones_like(snr)
    if settings.weighting == "debiased":
        snr = snr.clamp(max=MAX_DEBIASED_SNR)
        return 1 / (snr + 1) if predicts_velocity else snr.rsqrt()
    weights = (settings.snr_gamma / snr).clamp(max=1)
    if settings.weighting == "layout":
        weights = weights * (1 / snr + 1).clamp(max=MAX_LAYOUT_FACTOR)
    return weights * snr / (snr + 1) if predicts_velocity else weights


def _schedule_huber(settings: LossSettings, alphas: Tensor) -> Tensor:
    """Return c of the Huber losses for noise levels with these cumulated alphas, both (T,)."""
    c = settings.huber_c
    if settings.huber_schedule == "constant":
        return torch.full_like(alphas, c)
    if settings.huber_schedule == "exponential":
        return torch.exp(math.log(c) / len(alphas) * torch.arange(len(alphas)))
    sigmas = ((1 - alphas) / alphas).sqrt()
    return (1 - c) / (1 + sigmas) ** 2 + c


def make_generator(*seeds: int) -> torch.Generator:
    """Return a generator on the CPU that depends on these numbers alone."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(seeds).generate_state(1)[0]))
