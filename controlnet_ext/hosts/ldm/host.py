"""An ldm UNet and the LatentDiffusion around it as the host of a run."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...guidance.after_steps import NoiseLevel
from ...guidance.contract import Step
from .unet_view import LdmUNetView

VAE_SCALE_FACTOR = 8  # pixels of an image for one of its latents
ATTENTION_PLACES = {"down": "input", "mid": "middle", "up": "output"}
LDM_PREDICTION_TYPES = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}  # ldm's `parameterization`


class LdmHost:
    """The `Host` of `controlnet_ext.guidance.contract` for ldm. `step` is the present step of the UNet."""

    def __init__(self, unet: LdmUNetView, model: nn.Module | None):
        self.unet, self._model = unet, model
        self.step: Step | None = None
        self._generator: tuple[Tensor, torch.Generator] | None = None

    @property
    def pixel_size(self) -> tuple[int, int]:
        """Height and width in pixels of the image that is being generated."""
        height, width = self._latents.shape[-2:]
        return height * VAE_SCALE_FACTOR, width * VAE_SCALE_FACTOR

    @property
    def generator(self) -> torch.Generator:
        """A generator on the CPU, seeded by the latents of the call in which a run first asks for it."""
        if self._generator is None:
            latents = self._latents.detach().cpu().contiguous().view(torch.uint8)
            self._generator = self._latents, torch.Generator().manual_seed(zlib.crc32(latents.numpy().tobytes()))
        return self._generator[1]

    def encode(self, image: np.ndarray, apply_vae_shift: bool = True) -> Tensor:
        """Return the latents `(B, C, h, w)` of RGB uint8 `(H, W, 3)` or `(B, H, W, 3)`, in the dtype of x."""
        return encode_ldm_image(self.model, image, self._latents.device).to(self._latents.dtype)

    def iter_attentions(self) -> Iterator[tuple[str, Any, str]]:
        """Yield (name, module, place) of the attention modules, by diffusers' names."""
        for name, module in self.unet.named_modules():
            if name.endswith((".attn1", ".attn2")):
                yield name, module, ATTENTION_PLACES[name.partition("_")[0]]

    def compute_noise_level(self) -> NoiseLevel:
        """Return the noise level of the present call.

        Between whole timesteps the logarithm of sigma is linear, as in k-diffusion (external.py,
        DiscreteSchedule.t_to_sigma). Raises ValueError for a parameterization other than eps, v or x0, and without a
        model.
        """
        kind, alphas = self.model.parameterization, self.model.alphas_cumprod
        if kind not in LDM_PREDICTION_TYPES:
            raise ValueError(f"a model that predicts {kind!r}, expected one of: {', '.join(LDM_PREDICTION_TYPES)}")
        assert self.step is not None
        t = self.step.t.float().clamp(0, len(alphas) - 1)
        alphas = alphas.to(t.device).double()
        logs = ((1 - alphas) / alphas).log() / 2
        low, high = t.floor().long(), t.ceil().long()
        squares = torch.lerp(logs[low], logs[high], (t - low).double()).mul(2).exp()
        signal, noise = (1 + squares) ** -0.5, (squares / (1 + squares)) ** 0.5
        return NoiseLevel(
            LDM_PREDICTION_TYPES[kind], signal.float()[:, None, None, None], noise.float()[:, None, None, None]
        )

    @property
    def model(self) -> Any:
        """The LatentDiffusion. Raises ValueError if the host gave none."""
        if self._model is None:
            raise ValueError("a unit needs the host's model, with its VAE and alphas_cumprod, and none was given")
        return self._model

    @property
    def _latents(self) -> Tensor:
        if self.step is None:
            raise ValueError("the host has no size, device or numbers before the UNet's first call")
        return self.step.x


@torch.no_grad()
def encode_ldm_image(model: Any, image: np.ndarray, device: torch.device) -> Tensor:
    """Return the latents `(B, C, h, w)`, scaled as the UNet sees them, of RGB uint8 `(H, W, 3)` or `(B, H, W, 3)`.

    They are the mode of the VAE of ldm's `model` where it returns a distribution, else the sample it returns.
    """
    pixels = torch.from_numpy(image.reshape(-1, *image.shape[-3:])).permute(0, 3, 1, 2).to(device)
    made = model.encode_first_stage(pixels.to(next(model.first_stage_model.parameters()).dtype) / 127.5 - 1)
    out: Tensor = model.get_first_stage_encoding(made if isinstance(made, Tensor) else made.mode())
    return out
