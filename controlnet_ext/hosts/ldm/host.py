"""What an ldm UNet and the LatentDiffusion around it offer during a run."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...guidance.after_steps import Noise
from ...guidance.contract import Step
from .unet_view import LdmUNet

FACTOR = 8  # pixels of a picture for one of its latents
PLACES = {"down": "input", "mid": "middle", "up": "output"}
PREDICTIONS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}  # ldm's `parameterization`


class LdmHost:
    """`controlnet_ext.guidance.contract.Host`. `call` is the UNet's present step."""

    def __init__(self, unet: LdmUNet, model: Any):
        self.unet, self._model = unet, model
        self.call: Step | None = None
        self._generator: tuple[Tensor, torch.Generator] | None = None

    @property
    def pixel_size(self) -> tuple[int, int]:
        height, width = self._x.shape[-2:]
        return height * FACTOR, width * FACTOR

    @property
    def generator(self) -> torch.Generator:
        """On the CPU, seeded by the latents of the call in which a run first asks for it."""
        if self._generator is None:
            latents = self._x.detach().cpu().contiguous().view(torch.uint8)
            self._generator = self._x, torch.Generator().manual_seed(zlib.crc32(latents.numpy().tobytes()))
        return self._generator[1]

    def encode(self, image: np.ndarray, shifted: bool = True) -> Tensor:
        """As `encoded`, in the dtype of x."""
        return encoded(self.model, image, self._x.device).to(self._x.dtype)

    def attentions(self) -> Iterator[tuple[str, Any, str]]:
        for name, module in self.unet.named_modules():
            if name.endswith((".attn1", ".attn2")):
                yield name, module, PLACES[name.partition("_")[0]]

    def noise(self) -> Noise:
        """That in the present call. Between whole timesteps it grows as in k-diffusion: its logarithm by a straight
        line (external.py, DiscreteSchedule.t_to_sigma)."""
        kind, alphas = self.model.parameterization, self.model.alphas_cumprod
        if kind not in PREDICTIONS:
            raise ValueError(f"a model that predicts {kind!r}, expected one of: {', '.join(PREDICTIONS)}")
        assert self.call is not None
        t = self.call.t.float().clamp(0, len(alphas) - 1)
        alphas = alphas.to(t.device).double()
        logs = ((1 - alphas) / alphas).log() / 2
        low, high = t.floor().long(), t.ceil().long()
        squares = torch.lerp(logs[low], logs[high], (t - low).double()).mul(2).exp()
        signal, noise = (1 + squares) ** -0.5, (squares / (1 + squares)) ** 0.5
        return Noise(PREDICTIONS[kind], signal.float()[:, None, None, None], noise.float()[:, None, None, None])

    @property
    def model(self) -> Any:
        if self._model is None:
            raise ValueError("a unit needs the host's model, with its VAE and alphas_cumprod, and none was given")
        return self._model

    @property
    def _x(self) -> Tensor:
        if self.call is None:
            raise ValueError("the host has no size, device or numbers before the UNet's first call")
        return self.call.x


@torch.no_grad()
def encoded(model: Any, image: np.ndarray, device: torch.device) -> Tensor:
    """Latents `(B, C, h, w)` as the UNet sees them, of RGB uint8 `(H, W, 3)` or `(B, H, W, 3)`: the mode of the VAE of
    ldm's `model`, where it tells that and not a sample."""
    pixels = torch.from_numpy(image.reshape(-1, *image.shape[-3:])).permute(0, 3, 1, 2).to(device)
    made = model.encode_first_stage(pixels.to(next(model.first_stage_model.parameters()).dtype) / 127.5 - 1)
    return model.get_first_stage_encoding(made if isinstance(made, Tensor) else made.mode())
