"""Inputs of a control network as tensors: time embedding, hint encoder, hints. Names and order of operations as in
diffusers 0.42, models/embeddings.py and models/controlnets/controlnet.py."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...guidance.contract import Step
from .blocks import Conv2d, Linear


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
        out: Tensor = self.linear_2(F.silu(self.linear_1(vector)))
        return out


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
        out: Tensor = self.conv_out(h)
        return out


def to_hint_channels(image: np.ndarray | Tensor, count: int) -> Tensor:
    """Convert a hint to a float tensor `(B, count, H, W)`, for a network that reads that many channels. Four are
    colors, black where to repaint, and a mask, 1 there; they are made of a tensor with -1 there. ValueError if the
    hint cannot have that many channels; TypeError and ValueError as `to_hint_pixels`."""
    if isinstance(image, Tensor) and count != 3 and image.ndim == 4 and image.shape[1] == count:
        return image
    pixels = to_hint_pixels(image)
    if count == 3:
        return pixels
    if count == 4 and isinstance(image, Tensor):
        return torch.cat([pixels.clamp(min=0), (pixels < 0).all(dim=1, keepdim=True).to(pixels)], dim=1)
    more = ": give the unit an inpaint mask" if count == 4 else ""
    raise ValueError(f"the ControlNet takes hints of {count} channels, but an image has 3{more}")


def to_hint_pixels(image: np.ndarray | Tensor) -> Tensor:
    """Convert a hint to a float tensor `(B, 3, H, W)`: a uint8 array `(H, W, 3)` or `(B, H, W, 3)` is divided by 255, a
    float tensor `(B, 3, H, W)` is returned as it is. TypeError for anything but an array or a tensor, ValueError for
    another shape or dtype."""
    if isinstance(image, Tensor):
        if image.is_floating_point() and image.ndim == 4 and image.shape[1] == 3:
            return image
    elif isinstance(image, np.ndarray):
        if image.dtype == np.uint8 and image.ndim in (3, 4) and image.shape[-1] == 3:
            floats = image.astype(np.float32) / 255  # not on a GPU, which multiplies by 1/255: another last bit
            pixels = torch.from_numpy(floats if image.ndim == 4 else floats[None])
            return pixels.permute(0, 3, 1, 2).contiguous()
    else:
        raise TypeError(f"hint of type {type(image).__name__}, expected an array or a tensor")
    expected = "an array (H, W, 3) or (B, H, W, 3) of uint8, or a float tensor (B, 3, H, W)"
    raise ValueError(f"hint of shape {tuple(image.shape)} and type {image.dtype}, expected {expected}")


def check_hint_size(pixels: Tensor, scale: int) -> None:
    """ValueError unless both sides of `(B, C, H, W)` are multiples of `scale`."""
    height, width = pixels.shape[-2:]
    if not height or not width or height % scale or width % scale:
        raise ValueError(f"hint of {width}x{height} pixels: both sides must be multiples of {scale}")


def expand_rows(what: str, values: Tensor, step: Step) -> Tensor:
    """Return values `(B, …)` with a row for each row of the step's x. Given are one for all, one for each image's
    frames, or already one for each row; ValueError for another number."""
    samples, rows = values.shape[0], step.x.shape[0]
    if samples == rows:
        return values
    if samples == 1:
        return values.expand(rows, *values.shape[1:])
    if samples * step.frames == rows:
        return values.repeat_interleave(step.frames, dim=0)
    raise ValueError(f"{samples} {what} for {rows} rows of x and {step.frames} frames")


def expand_hint(hint: Tensor, x: Tensor, step: Step) -> Tensor:
    """Return an embedded hint `(B, C, h, w)` with a row for each row of the embedded x, in its dtype. ValueError when
    their sizes differ."""
    hint = expand_rows("hints", hint.to(x), step)
    if hint.shape[1:] != x.shape[1:]:
        raise ValueError(
            f"hint of {_describe_size(hint)} for x of {_describe_size(x)}: make it from an image of the output's size"
        )
    return hint


def _describe_size(h: Tensor) -> str:
    return f"{h.shape[1]} channels, {h.shape[3]}x{h.shape[2]}"
