"""Networks of stable-diffusion-webui for the embedded model, which the yaml beside its checkpoint names: ldm's UNet
with levels of any width and as many groups in each normalization as the model has, and an autoencoder like TAESD.

ldm's own code cannot hold them: it has 32 groups written into it, levels that are whole multiples of the first, and an
autoencoder of another kind. webui imports this module by the name that the extension has there, so the extension must
be installed.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _LevelWidth(int):
    """A factor that ldm's code multiplies by the width of the first level: the product is the width itself."""

    def __mul__(self, other: object) -> int:
        return int(self)

    __rmul__ = __mul__


def build_unet(level_widths: Sequence[int], norm_groups: int, **params: Any) -> nn.Module:
    """Return ldm's UNetModel with levels of these widths and `norm_groups` in each normalization; `params` are those of
    its class but `channel_mult`."""
    openaimodel = importlib.import_module("ldm.modules.diffusionmodules.openaimodel")
    with _replace_normalizations(openaimodel, norm_groups):
        unet: nn.Module = openaimodel.UNetModel(channel_mult=[_LevelWidth(width) for width in level_widths], **params)
    return unet


@contextmanager
def _replace_normalizations(openaimodel: Any, groups: int) -> Iterator[None]:
    """Let ldm's code build normalizations of so many groups; changes its two functions for the time."""
    attention: Any = importlib.import_module("ldm.modules.attention")
    kind = type(openaimodel.normalization(32))  # GroupNorm32, which computes in float32
    originals = openaimodel.normalization, attention.Normalize
    openaimodel.normalization = lambda channels: kind(groups, channels)
    attention.Normalize = lambda channels: nn.GroupNorm(groups, channels, eps=1e-6)
    try:
        yield
    finally:
        openaimodel.normalization, attention.Normalize = originals


class _Block(nn.Module):
    """Three convolutions and a skip."""

    def __init__(self, width: int):
        super().__init__()
        parts = [nn.Conv2d(width, width, 3, padding=1) for _ in range(3)]
        self.conv = nn.Sequential(parts[0], nn.ReLU(), parts[1], nn.ReLU(), parts[2])

    def forward(self, x: Tensor) -> Tensor:
        """Return features (B, C, H, W) of features of that shape."""
        return F.relu(self.conv(x) + x)


class TinyAutoencoder(nn.Module):
    """diffusers' AutoencoderTiny as ldm's first stage: latents are those that the UNet sees, without a distribution.

    `ddconfig` is called as webui wants it: `width` of all levels, `latent_channels`, and the levels' `encoder_blocks`
    and `decoder_blocks`, from the image inwards and from the latents outwards."""

    def __init__(self, ddconfig: Mapping[str, Any]):
        super().__init__()
        width, latent_channels = ddconfig["width"], ddconfig["latent_channels"]
        encoder_blocks, decoder_blocks = ddconfig["encoder_blocks"], ddconfig["decoder_blocks"]
        inwards: list[nn.Module] = []
        for level, count in enumerate(encoder_blocks):
            first = nn.Conv2d(3 if level == 0 else width, width, 3, 1 if level == 0 else 2, 1, bias=level == 0)
            inwards += [first, *(_Block(width) for _ in range(count))]
        inwards.append(nn.Conv2d(width, latent_channels, 3, padding=1))
        outwards: list[nn.Module] = [nn.Conv2d(latent_channels, width, 3, padding=1), nn.ReLU()]
        for level, count in enumerate(decoder_blocks):
            is_last = level == len(decoder_blocks) - 1
            outwards += [_Block(width) for _ in range(count)]
            outwards += [] if is_last else [nn.Upsample(scale_factor=2)]
            outwards.append(nn.Conv2d(width, 3 if is_last else width, 3, padding=1, bias=is_last))
        self.encoder = nn.ModuleDict({"layers": nn.Sequential(*inwards)})
        self.decoder = nn.ModuleDict({"layers": nn.Sequential(*outwards)})

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of its weights, to which webui casts what it gives."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """The device of its weights."""
        return next(self.parameters()).device

    def encode(self, x: Tensor) -> Tensor:
        """Return latents (B, 4, H/8, W/8) of images (B, 3, H, W) in -1..1."""
        latents: Tensor = self.encoder["layers"](x.add(1).div(2))
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        """Return images (B, 3, H, W) in about -1..1 of latents (B, 4, H/8, W/8)."""
        image: Tensor = self.decoder["layers"](torch.tanh(latents / 3) * 3)
        return image.mul(2).sub(1)
