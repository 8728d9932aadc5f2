"""A diffusers pipeline as the host of a run: sizes, latents, attention modules, noise levels."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor

from ...guidance.after_steps import PREDICTION_TYPES, NoiseLevel
from .unet_call import DenoiserCall


class DiffusersHost:
    """The pipeline and its UNet during one run; the `Host` of `controlnet_ext.guidance.contract`."""

    def __init__(self, pipe: Any, unet: Any):
        self.unet = unet
        self._pipe = pipe
        self._call: DenoiserCall | None = None
        self._generator: torch.Generator | None = None

    def observe(self, call: DenoiserCall, is_new_run: bool) -> None:
        """Take note of a UNet call, with which a run begins or not."""
        self._call = call
        if is_new_run:
            self._generator = None

    @property
    def call(self) -> DenoiserCall:
        """The present UNet call. Raises ValueError before the first."""
        if self._call is None:
            raise ValueError("the host has no size, device or numbers before the UNet's first call")
        return self._call

    @property
    def pixel_size(self) -> tuple[int, int]:
        """Height and width in pixels of the image that is being generated."""
        height, width = self.call.latent_size
        return height * self._pipe.vae_scale_factor, width * self._pipe.vae_scale_factor

    @property
    def generator(self) -> torch.Generator:
        """A generator on the CPU, seeded by the latents of the call in which a run first asks for it."""
        if self._generator is None:
            latents = self.call.x.detach().cpu().contiguous().view(torch.uint8)
            self._generator = torch.Generator().manual_seed(zlib.crc32(latents.numpy().tobytes()))
        return self._generator

    def encode(self, image: np.ndarray, apply_vae_shift: bool = True) -> Tensor:
        """Return the VAE's mode, not a sample, `(B, C, h, w)` for RGB uint8 `(H, W, 3)` or `(B, H, W, 3)`.

        `apply_vae_shift` False leaves out the shift that the VAEs of SD3 and Flux have.
        """
        return encode_vae_image(self._pipe.vae, image, self.call.x.device, apply_vae_shift).to(self.call.x.dtype)

    def iter_attentions(self) -> Iterator[tuple[str, Any, str]]:
        """Yield (name, module, place) of all attention modules but motion modules, whose tokens are frames."""
        for place, block in (("input", "down_blocks"), ("middle", "mid_block"), ("output", "up_blocks")):
            for name, module in getattr(self.unet, block).named_modules(prefix=block):
                if isinstance(module, Attention) and ".motion_modules." not in name:
                    yield name, module, place


@torch.no_grad()
def encode_vae_image(vae: Any, image: np.ndarray, device: torch.device, apply_vae_shift: bool = True) -> Tensor:
    """Return the VAE's mode `(B, C, h, w)`, scaled as the UNet sees it, of RGB uint8 `(H, W, 3)` or `(B, H, W, 3)`."""
    pixels = torch.from_numpy(image.reshape(-1, *image.shape[-3:])).permute(0, 3, 1, 2).to(device)
    video = "temperal_downsample" in vae.config  # Qwen-Image's VAE is one of videos; a picture is a frame
    with _upcast_vae(vae):
        pixels = pixels.to(vae.dtype) / 127.5 - 1
        found = vae.encode(pixels[:, :, None] if video else pixels)
    latents = found.latents if hasattr(found, "latents") else found.latent_dist.mode()
    if video:
        mean, std = (latents.new_tensor(vae.config[f"latents_{name}"])[:, None, None] for name in ("mean", "std"))
        return (latents[:, :, 0] - mean) / std
    shift = vae.config.get("shift_factor") if apply_vae_shift else None
    return (latents if shift is None else latents - shift) * vae.config["scaling_factor"]


@contextmanager
def _upcast_vae(vae: Any) -> Iterator[None]:
    """SDXL's VAE overflows in fp16; fp16 to fp32 and back is exact."""
    if vae.dtype != torch.float16 or not vae.config.get("force_upcast"):
        yield
        return
    vae.to(torch.float32)
    try:
        yield
    finally:
        vae.to(torch.float16)


def read_noise_level(scheduler: Any, t: float) -> NoiseLevel:
    """Return the noise level of the UNet call at timestep `t`. Raises ValueError for other models of noise."""
    name, config = type(scheduler).__name__, scheduler.config
    if config.get("prediction_type", "epsilon") not in PREDICTION_TYPES:
        raise ValueError(
            f"{name} predicts {config['prediction_type']!r}; latents are changed after a step only where a model "
            f"predicts one of: {', '.join(PREDICTION_TYPES)}"
        )
    if not hasattr(scheduler, "alphas_cumprod") or "sigma_data" in config:
        raise ValueError(f"{name} has no cumulated alphas, by which latents are changed after a step")
    signal = _compute_signal(scheduler, t)
    return NoiseLevel(config.get("prediction_type", "epsilon"), signal, max(1 - signal**2, 0.0) ** 0.5)


def _compute_signal(scheduler: Any, t: float) -> float:
    scale = float(scheduler.scale_model_input(torch.ones(()), t))  # 1 / sqrt(1 + sigma^2) where it scales at all
    if scale != 1:
        return scale
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is None:
        return float(scheduler.alphas_cumprod[int(t)]) ** 0.5
    index = scheduler.step_index if scheduler.step_index is not None else scheduler.index_for_timestep(t)
    return (1 + float(sigmas[index]) ** 2) ** -0.5
