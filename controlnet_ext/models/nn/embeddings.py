"""What a ControlNet's blocks begin with: the time embedding and the hint's encoder. Names and order of operations as in
blocks (diffusers 0.42, models/embeddings.py, models/controlnets/controlnet.py)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import Conv2d, Linear


def get_timestep_embedding(t: Tensor, width: int) -> Tensor:
    """Timesteps `t (B,)` as `(B, width)` float32, width even: cosines, then sines, of frequencies 1 to 1/10000."""
    half = width // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = t[:, None].float() * frequencies[None, :]
    return torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)


class TimestepEmbedding(nn.Module):
    """A vector `(B, inputs)`, a timestep's sinusoid or SDXL's added vector, as `(B, width)`."""

    def __init__(self, in_channels: int, width: int):
        super().__init__()
        self.linear_1 = Linear(in_channels, width)
        self.linear_2 = Linear(width, width)

    def forward(self, vector: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(vector)))


class HintEncoder(nn.Module):
    """A hint `(B, 3, H, W)` as `(B, width, H/8, W/8)`; `channels` are the hint's own, then those of each scale."""

    def __init__(self, channels: Sequence[int], width: int):
        super().__init__()
        image, *scales = channels
        self.conv_in = Conv2d(image, scales[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        for a, b in pairwise(scales):
            self.blocks.append(Conv2d(a, a, 3, padding=1))
            self.blocks.append(Conv2d(a, b, 3, padding=1, stride=2))
        self.conv_out = Conv2d(scales[-1], width, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        h = F.silu(self.conv_in(image))
        for block in self.blocks:
            h = F.silu(block(h))
        return self.conv_out(h)
