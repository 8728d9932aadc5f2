"""SparseCtrl (Guo et al., arXiv:2311.16933): a ControlNet for AnimateDiff's videos that reads images of some frames.

Motion modules of its own fill in the other frames. The rgb network reads latents of the VAE, the scribble network
images.

AnimateDiff's motion modules (Guo et al., arXiv:2307.04725) are attention over the frames of a video, at each pixel
alone. Names and order of operations are diffusers' (0.42, models/unets/unet_motion_model.py, AnimateDiffTransformer3D;
with one attention, as in SparseControlNetModel). As in diffusers, and unlike the authors' code (guoyww/AnimateDiff @
0741d34, motion_module.py), the first normalization takes its statistics over all frames of a video.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from copy import copy
from dataclasses import replace
from itertools import count
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ...guidance.contract import Residuals, Step, UNet
from .. import KeyMarkers, ModelKind
from ..nn.blocks import Attention, Conv2d, FeedForward, GroupNorm, LayerNorm, Linear, cast_like
from ..nn.embeddings import check_hint_size, expand_rows, to_hint_pixels
from ..nn.execution import NET_PREFIX, ControlNetWrapper
from ..state_dict.architecture import MAX_WIDTH, ControlNetConfig
from ..state_dict.ldm_keys import DIFFUSERS_MARKER_KEY
from ..state_dict.strict import FLOAT8_DTYPES, load_strict
from .controlnet import ControlNet

T = TypeVar("T")

MAX_FRAMES = 32  # positions in the published files
MODULE_PATTERN = re.compile(r"(down_blocks\.\d+\.motion_modules\.\d+\.)(.+)")
# Beginnings and parts of names in the authors' files, and what diffusers calls them
ANIMATEDIFF_KEYS = (
    ("attention_blocks.0.pos_encoder.", "pos_embed."),
    ("attention_blocks.0.", "attn1."),
    ("norms.0.", "norm1."),
    ("ff_norm.", "norm3."),
)
POSITIONS_KEY = "pos_embed.pe"  # the end of the name of where frames stand, in diffusers' words
ANIMATEDIFF_PREFIX = "temporal_transformer."  # before all of them, in the authors' files


class PositionalEmbedding(nn.Module):
    """Adds the positions of the frames to tokens `(N, frames, C)`."""

    def __init__(self, width: int, frames: int):
        super().__init__()
        self.pe: Tensor
        self.register_buffer("pe", torch.empty(1, frames, width))

    def forward(self, h: Tensor) -> Tensor:
        return h + cast_like(self.pe[:, : h.shape[1]], h)


class TemporalTransformerBlock(nn.Module):
    """Self-attention over the frames of `(N, frames, C)`, then a feed-forward layer."""

    def __init__(self, width: int, heads: int, frames: int):
        super().__init__()
        self.pos_embed = PositionalEmbedding(width, frames)
        self.norm1 = LayerNorm(width)
        self.attn1 = Attention(width, width, heads)
        self.norm3 = LayerNorm(width)
        self.ff = FeedForward(width)

    def forward(self, h: Tensor) -> Tensor:
        x = self.pos_embed(self.norm1(h))
        h = self.attn1(x, x) + h
        out: Tensor = self.ff(self.norm3(h)) + h
        return out


class MotionModule(nn.Module):
    """`depth` blocks over `(B frames, C, h, w)`, a video's frames next to each other, with a residual connection."""

    def __init__(self, width: int, depth: int, heads: int, groups: int, frames: int):
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is no multiple of {heads} heads of a motion module")
        self.norm = GroupNorm(groups, width, eps=1e-6)
        self.proj_in = Linear(width, width)
        self.transformer_blocks = nn.ModuleList(TemporalTransformerBlock(width, heads, frames) for _ in range(depth))
        self.proj_out = Linear(width, width)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        h = self.norm(x.view(-1, frames, *x.shape[1:]).transpose(1, 2))  # (B, C, frames, h, w)
        h = h.permute(0, 3, 4, 2, 1)
        places = h.shape[:3]
        h = self.proj_in(h.flatten(0, 2))  # (B h w, frames, C)
        for block in self.transformer_blocks:
            h = block(h)
        h = self.proj_out(h).unflatten(0, places).permute(0, 3, 4, 1, 2)  # (B, frames, C, h, w)
        out: Tensor = h.flatten(0, 1).contiguous() + x
        return out


def compute_positions(width: int, frames: int) -> Tensor:
    """Return sines and cosines of each frame's place, `(1, frames, width)`.

    Source: diffusers 0.42, models/embeddings.py, SinusoidalPositionalEmbedding.
    """
    place = torch.arange(frames)[:, None]
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    return torch.stack([torch.sin(place * rates), torch.cos(place * rates)], dim=-1).flatten(1)[None]


def to_diffusers_motion_keys(tensors: Mapping[str, T]) -> dict[str, T]:
    """Return tensors of the authors' file under diffusers' names; other names stay."""
    return {_to_diffusers_key(name): tensor for name, tensor in tensors.items()}


def to_animatediff_keys(tensors: Mapping[str, T]) -> dict[str, T]:
    """Return tensors with diffusers' names under those of the authors' files."""
    result = {}
    for name, tensor in tensors.items():
        if module := MODULE_PATTERN.fullmatch(name):
            inner = module[2]
            for theirs, ours in ANIMATEDIFF_KEYS:
                inner = inner.replace(ours, theirs)
            name = module[1] + ANIMATEDIFF_PREFIX + inner
        result[name] = tensor
    return result


def read_motion_depths(names: Collection[str]) -> list[list[int]]:
    """Return for each level the number of blocks in each of its motion modules, from diffusers' names."""
    levels: list[list[int]] = []
    for level in count():
        counts: list[int] = []
        for place in count():
            blocks = f"down_blocks.{level}.motion_modules.{place}.transformer_blocks.{{}}.norm1.weight"
            counts.append(next(n for n in count() if blocks.format(n) not in names))
            if not counts[-1]:
                break
        if len(counts) == 1:
            return levels
        levels.append(counts[:-1])
    return levels


def _to_diffusers_key(name: str) -> str:
    module = MODULE_PATTERN.fullmatch(name)
    if module is None:
        return name
    inner = module[2].removeprefix(ANIMATEDIFF_PREFIX)
    for theirs, ours in ANIMATEDIFF_KEYS:
        inner = inner.replace(theirs, ours)
    return module[1] + inner


RGB_ENCODER_KEY = "controlnet_cond_embedding.weight"  # its encoder is one convolution
MOTION_MARKER_KEYS = (
    "down_blocks.0.motion_modules.0.norm.weight",
    f"down_blocks.0.motion_modules.0.{ANIMATEDIFF_PREFIX}norm.weight",
)
MOTION_HEADS = 8  # of the motion modules in the published files
LATENT_CHANNELS, IMAGE_CHANNELS = 4, 3  # channels; one more is a mask, 1 where there is an image


class SparseCtrl(ControlNetWrapper):
    """Residuals for all frames of a video, from an image of one or several of them.

    The image of a unit belongs to the first frame; `sparse.at_frames(0, -1)` is for a unit with one image of the first
    frame and one of the last, and so on. Equal to `diffusers.SparseControlNetModel`; like that, it does not read x.

    The host encodes the images of the rgb network (the VAE's mode; diffusers' pipeline draws a sample from the global
    generator).
    """

    architecture = "sparsectrl"
    multi_hint = True
    LAYOUTS: ClassVar[Mapping[str, Callable[[Mapping[str, Tensor]], dict[str, Tensor]]]] = {
        "diffusers": lambda tensors: {name.removeprefix(NET_PREFIX): t for name, t in tensors.items()},
        "ldm": lambda tensors: to_animatediff_keys({name.removeprefix(NET_PREFIX): t for name, t in tensors.items()}),
    }

    def __init__(
        self,
        net_config: ControlNetConfig,
        depths: Sequence[Sequence[int]],
        heads: Sequence[int],
        max_frames: int,
        reads_latents: bool,
    ):
        super().__init__()
        self.net = ControlNet(net_config)
        self.unet_signature, self.family = self.net.unet_signature, self.net.family
        self.hint_input = "latents" if reads_latents else "pixels"
        self.frames: tuple[int, ...] = (0,)
        self._depths, self._heads, self._max_frames = depths, tuple(heads), max_frames
        self._has_mask_channel = net_config.hint_channels[0] > (LATENT_CHANNELS if reads_latents else IMAGE_CHANNELS)
        if net_config.hint_channels[0] not in (
            (LATENT_CHANNELS, LATENT_CHANNELS + 1) if reads_latents else (IMAGE_CHANNELS, IMAGE_CHANNELS + 1)
        ):
            raise ValueError(
                f"it reads {net_config.hint_channels[0]} channels, expected those of latents or an image, and a mask"
            )
        if reads_latents:
            self.net.controlnet_cond_embedding = Conv2d(net_config.hint_channels[0], net_config.widths[0], 3, padding=1)
        for level, width, some, n in zip(self.net.down_blocks, net_config.widths, depths, heads, strict=True):
            level.motion_modules = nn.ModuleList(
                MotionModule(width, depth, n, net_config.norm_groups, max_frames) for depth in some
            )

    def at_frames(self, *frames: int) -> SparseCtrl:
        """Return this network on the same weights, for units whose images belong to these frames, in this order.

        One image (or `PerSample` of one for each frame) serves all of them. Frames count from 0, negative ones from
        the end of the video. Raises TypeError on what is no whole number, ValueError without a frame.
        """
        for frame in frames:
            if not isinstance(frame, int) or isinstance(frame, bool):
                raise TypeError(f"frame {frame!r:.40} is {type(frame).__name__}, expected a whole number")
        if not frames:
            raise ValueError("at_frames() needs a frame of the video, such as at_frames(0)")
        other = copy(self)
        other.frames = frames
        return other

    def bind(self, unet: UNet) -> None:
        """Bind the network, like `ControlNet.bind`. Raises ValueError on a UNet without motion modules."""
        if "motion_max_seq_length" not in unet.config:
            raise ValueError("SparseCtrl guides videos, and the UNet has no motion modules, as a UNetMotionModel has")
        self.net.bind(unet)

    def for_map_types(self, kinds: Sequence[str | None]) -> SparseCtrl:
        """Return this network, for as many maps. Raises ValueError unless each has its frame."""
        if len(kinds) not in (1, len(self.frames)):
            raise ValueError(
                f"{len(kinds)} images for {len(self.frames)} frames: say where each stands, as in "
                "sparse.at_frames(0, -1)"
            )
        return self

    def hint(self, image: np.ndarray | Tensor) -> Tensor:
        """Return the embedded hint `(1 + B, C, h, w)`: of a frame without an image, and of one with each of these.

        `image` is as for `ControlNet.hint`, with black where to repaint, or latents `(B, 4, h, w)`. Raises ValueError
        if it is not what the network reads.
        """
        if self.hint_input == "pixels":
            pixels = to_hint_pixels(image).clamp(min=0)
        elif isinstance(image, Tensor) and image.ndim == 4 and image.shape[1] == self._input_channels:
            pixels = image
        else:
            raise ValueError(f"this SparseCtrl reads latents (B, {self._input_channels}, h, w), which the host makes")
        check_hint_size(
            pixels, 1 if self.hint_input == "latents" else 2 ** (len(self.net.net_config.hint_channels) - 2)
        )
        if bool((pixels == pixels[:1]).all()):
            pixels = pixels[:1]
        read = torch.cat([torch.zeros_like(pixels[:1]), pixels])
        if self._has_mask_channel:
            mask = torch.ones_like(read[:, :1])
            mask[0] = 0
            read = torch.cat([read, mask], dim=1)
        dtype = torch.float32 if self.net.dtype in FLOAT8_DTYPES else self.net.dtype
        out: Tensor = self.net.controlnet_cond_embedding(read.to(self.net.device, dtype))
        return out

    def forward(self, step: Step, hints: Sequence[Tensor]) -> Residuals:
        """Return residuals of weight 1 for a hint of each of its frames, or one for all of them."""
        places = self._resolve_frames(step.frames)
        hints = list(hints) * len(places) if len(hints) == 1 else hints

        def read(x: Tensor) -> Tensor:
            frame = torch.arange(len(x), device=x.device)[:, None, None, None] % step.frames
            h = hints[0][:1].to(x)
            for hint, place in zip(hints, places, strict=True):
                own = expand_rows("hints", hint[1:].to(x), step)
                if own.shape[1:] != x.shape[1:]:
                    size = f"{own.shape[-1]}x{own.shape[-2]}"
                    raise ValueError(f"hint of {size} for x of {x.shape[-1]}x{x.shape[-2]}: another image's size")
                h = torch.where(frame == place, own, h)
            return x + h

        residuals: Residuals = self.net.encode(replace(step, x=torch.zeros_like(step.x)), read)
        return residuals

    def _resolve_frames(self, frames: int) -> list[int]:
        """Return the frames of a video of `frames` frames to which its images belong."""
        if frames > self._max_frames:
            raise ValueError(f"a video of {frames} frames, but this SparseCtrl has positions for {self._max_frames}")
        for frame in self.frames:
            if not -frames <= frame < frames:
                raise ValueError(f"an image stands at frame {frame}, but the video has {frames}")
        places = [frame % frames for frame in self.frames]
        if len(set(places)) < len(places):
            raise ValueError(f"two images stand at one frame: {', '.join(map(str, self.frames))} of {frames}")
        return places

    @property
    def _input_channels(self) -> int:
        """The number of channels that it reads, without the mask."""
        channels: int = self.net.net_config.hint_channels[0]
        return channels - self._has_mask_channel

    def config(self) -> dict[str, Any]:
        """Return the config of the same `diffusers.SparseControlNetModel`. Raises ValueError if that class cannot be
        it."""
        if any(len(set(some)) > 1 for some in self._depths):
            raise ValueError("diffusers' SparseControlNetModel needs motion modules of one depth in each level")
        config = {
            name: value for name, value in self.net.config().items() if not name.startswith(("addition_", "mid_"))
        }
        kinds = {"CrossAttnDownBlock2D": "CrossAttnDownBlockMotion", "DownBlock2D": "DownBlockMotion"}
        more = {"conditioning_embedding_out_channels": [16, 32, 96, 256]} if self.hint_input == "latents" else {}
        own = {
            "_class_name": "SparseControlNetModel",
            "concat_conditioning_mask": self._has_mask_channel,
            "conditioning_channels": self._input_channels,
            "down_block_types": [kinds[kind] for kind in config["down_block_types"]],
            "temporal_transformer_layers_per_block": [some[0] for some in self._depths],
            "use_simplified_condition_embedding": self.hint_input == "latents",
        }
        return {**config, **more, **own, **self._motion_config()}

    def unstored_config(self) -> dict[str, Any]:
        """Return the settings that its tensors do not show, in diffusers' words."""
        return {
            name: v for name, v in self.net.unstored_config().items() if name != "addition_time_embed_dim"
        } | self._motion_config()

    def _motion_config(self) -> dict[str, Any]:
        return {"motion_max_seq_length": self._max_frames, "motion_num_attention_heads": list(self._heads)}

    def details(self) -> dict[str, Any]:
        """Return the facts for `controlnet-ext inspect`."""
        reads = "latents of some frames (rgb)" if self.hint_input == "latents" else "images of some frames (scribble)"
        return {"reads": reads, "frames at most": self._max_frames, **self.net.details()}


detect = KeyMarkers(
    ((f"{re.escape(RGB_ENCODER_KEY)}|{re.escape(DIFFUSERS_MARKER_KEY)}", "|".join(map(re.escape, MOTION_MARKER_KEYS))),)
)


def layout(names: Collection[str]) -> str:
    """The layout of these names: diffusers', or the authors'."""
    return "diffusers" if MOTION_MARKER_KEYS[0] in names else "ldm"


def load(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> SparseCtrl:
    """The SparseCtrl with these tensors, which it shares, in the authors' layout or diffusers'. Where the file has no
    positions of the frames (`pos_encoder.pe`), they are computed. ValueError as `ControlNet.load`."""
    authors = layout(tensors) == "ldm"
    tensors = to_diffusers_motion_keys(tensors)
    latents = RGB_ENCODER_KEY in tensors
    spatial = {name: tensor for name, tensor in tensors.items() if ".motion_modules." not in name}
    if latents:
        spatial[DIFFUSERS_MARKER_KEY] = spatial[RGB_ENCODER_KEY]
    plan = ControlNetConfig.from_tensors(spatial, config)
    counts = read_motion_depths(tensors)
    heads = config.get("motion_num_attention_heads", MOTION_HEADS)
    heads = heads if isinstance(heads, list | tuple) else [heads] * len(plan.widths)
    length = next((t.shape[1] for name, t in tensors.items() if name.endswith(POSITIONS_KEY) and t.ndim == 3), None)
    frames = length or config.get("motion_max_seq_length", MAX_FRAMES)
    for what, numbers in (("motion_num_attention_heads", heads), ("motion_max_seq_length", [frames])):
        if not all(isinstance(n, int) and not isinstance(n, bool) and 1 <= n <= MAX_WIDTH for n in numbers):
            raise ValueError(f"{what} is {numbers!r:.40}, expected whole numbers 1..{MAX_WIDTH}")
    if len(heads) != len(plan.widths) or [len(some) for some in counts] != list(plan.resnets_per_level):
        raise ValueError(f"motion modules, or heads of them, for other levels than the {len(plan.widths)} there are")
    with torch.device("meta"):
        net = SparseCtrl(plan, counts, heads, frames, latents)
    like = next((t.dtype for t in tensors.values() if t.dtype not in FLOAT8_DTYPES), torch.float32)
    own_tensors = {name.removeprefix(NET_PREFIX): tensor for name, tensor in net.state_dict().items()}
    position_tables = {
        name: compute_positions(t.shape[2], frames).to(like)
        for name, t in own_tensors.items()
        if name.endswith(POSITIONS_KEY)
    }
    stored_names = dict(zip(own_tensors, to_animatediff_keys(own_tensors) if authors else own_tensors, strict=True))
    own = {NET_PREFIX + name: tensor for name, tensor in {**position_tables, **tensors}.items()}
    load_strict(net, own, {NET_PREFIX + name: own for name, own in stored_names.items()})
    return net.eval()


KIND = ModelKind("sparsectrl", detect, load, layout)
