"""AnimateDiff's motion modules (Guo et al., arXiv:2307.04725): attention over a video's frames, at each pixel alone.

Names and order of operations are diffusers' (0.42, models/unets/unet_motion_model.py, AnimateDiffTransformer3D; as
SparseControlNetModel has them, with one attention). Like diffusers, and unlike the authors' code (guoyww/AnimateDiff @
0741d34, motion_module.py), the first normalisation takes its statistics over all frames of a video, not over each.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from itertools import count
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..nn.blocks import Attention, FeedForward
from ..nn.layers import GroupNorm, LayerNorm, Linear, like

T = TypeVar("T")

FRAMES = 32  # positions in the published files
MODULE = re.compile(r"(down_blocks\.\d+\.motion_modules\.\d+\.)(.+)")
# Beginnings and parts of names in the authors' files, and what diffusers calls them
AUTHORS = (
    ("attention_blocks.0.pos_encoder.", "pos_embed."),
    ("attention_blocks.0.", "attn1."),
    ("norms.0.", "norm1."),
    ("ff_norm.", "norm3."),
)
PLACES = "pos_embed.pe"  # the end of the name of where frames stand, in diffusers' words
OUTER = "temporal_transformer."  # before all of them, in the authors' files


class Positions(nn.Module):
    """Adds to the tokens `(N, frames, C)` where each frame stands."""

    def __init__(self, width: int, frames: int):
        super().__init__()
        self.pe: Tensor
        self.register_buffer("pe", torch.empty(1, frames, width))

    def forward(self, h: Tensor) -> Tensor:
        return h + like(self.pe[:, : h.shape[1]], h)


class FrameBlock(nn.Module):
    """Frames `(N, frames, C)` look at each other, then think."""

    def __init__(self, width: int, heads: int, frames: int):
        super().__init__()
        self.pos_embed = Positions(width, frames)
        self.norm1 = LayerNorm(width)
        self.attn1 = Attention(width, width, heads)
        self.norm3 = LayerNorm(width)
        self.ff = FeedForward(width)

    def forward(self, h: Tensor) -> Tensor:
        normed = self.pos_embed(self.norm1(h))
        h = self.attn1(normed, normed) + h
        return self.ff(self.norm3(h)) + h


class Motion(nn.Module):
    """`depth` such blocks over `(B frames, C, h, w)`, a video's frames next to each other, with a shortcut around
    them."""

    def __init__(self, width: int, depth: int, heads: int, groups: int, frames: int):
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is no multiple of {heads} heads of a motion module")
        self.norm = GroupNorm(groups, width, eps=1e-6)
        self.proj_in = Linear(width, width)
        self.transformer_blocks = nn.ModuleList(FrameBlock(width, heads, frames) for _ in range(depth))
        self.proj_out = Linear(width, width)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        h = self.norm(x.unflatten(0, (-1, frames)).transpose(1, 2))  # (B, C, frames, h, w)
        h = h.permute(0, 3, 4, 2, 1)
        places = h.shape[:3]
        h = self.proj_in(h.flatten(0, 2))  # (B h w, frames, C)
        for block in self.transformer_blocks:
            h = block(h)
        h = self.proj_out(h).unflatten(0, places).permute(0, 3, 4, 1, 2)  # (B, frames, C, h, w)
        return h.flatten(0, 1).contiguous() + x


def positions(width: int, frames: int) -> Tensor:
    """Sines and cosines of each frame's place, `(1, frames, width)` (diffusers 0.42, models/embeddings.py,
    SinusoidalPositionalEmbedding)."""
    place = torch.arange(frames)[:, None]
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    return torch.stack([torch.sin(place * rates), torch.cos(place * rates)], dim=-1).flatten(1)[None]


def to_diffusers(tensors: Mapping[str, T]) -> dict[str, T]:
    """Tensors of the authors' file under diffusers' names; those that have them already, or belong to no motion module,
    keep theirs."""
    return {_renamed(name): tensor for name, tensor in tensors.items()}


def to_authors(tensors: Mapping[str, T]) -> dict[str, T]:
    """Tensors with diffusers' names under those of the authors' files."""
    found = {}
    for name, tensor in tensors.items():
        if module := MODULE.fullmatch(name):
            inner = module[2]
            for theirs, ours in AUTHORS:
                inner = inner.replace(ours, theirs)
            name = module[1] + OUTER + inner
        found[name] = tensor
    return found


def depths(names: Collection[str]) -> list[list[int]]:
    """Of diffusers' names: for each level the number of blocks in each of its motion modules."""
    levels: list[list[int]] = []
    for level in count():
        found: list[int] = []
        for place in count():
            blocks = f"down_blocks.{level}.motion_modules.{place}.transformer_blocks.{{}}.norm1.weight"
            found.append(next(n for n in count() if blocks.format(n) not in names))
            if not found[-1]:
                break
        if len(found) == 1:
            return levels
        levels.append(found[:-1])
    return levels


def _renamed(name: str) -> str:
    module = MODULE.fullmatch(name)
    if module is None:
        return name
    inner = module[2].removeprefix(OUTER)
    for theirs, ours in AUTHORS:
        inner = inner.replace(theirs, ours)
    return module[1] + inner
