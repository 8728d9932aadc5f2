"""ControlNet (Zhang et al., arXiv:2302.05543): a trainable copy of a UNet's encoder that reads a map and adds to the
UNet's skips."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..control import Residuals, Step
from . import keys
from . import unet as source
from .blocks import Attention, Common, Embedding, HintEncoder, Level, Middle, sinusoid
from .layout import Layout, misfit
from .plan import Plan
from .strict import fill

LDM, DIFFUSERS = "input_hint_block.0.weight", "controlnet_cond_embedding.conv_in.weight"
PREFIX = "control_model."


class ControlNet(nn.Module):
    """Residuals for each skip and the middle block of a frozen UNet, from x, the prompt and a map. Equal to the bit
    to `diffusers.ControlNetModel`, under the same names of submodules.

    Weights do not show how many attention heads there are. Where no config states it, `settle` takes it from the
    UNet; until then it is as in the published models (`Plan.likely_heads`). Nor do they show
    `global_average_pooling`, which may be switched on for a shuffle ControlNet whose file does not say so.
    """

    architecture = "controlnet"

    def __init__(self, plan: Plan):
        super().__init__()
        self.plan = plan
        self.layout = plan.layout
        self.family = self.layout.family
        self.global_average_pooling = plan.pooled
        self._borrowed = False  # whether plan.heads and plan.groups come from a UNet
        first, last = plan.widths[0], len(plan.widths) - 1
        common = Common(4 * first, plan.context or 1, plan.groups, plan.linear)
        heads = plan.heads or plan.likely_heads
        self.conv_in = nn.Conv2d(plan.channels, first, 3, padding=1)
        self.time_embedding = Embedding(first, common.time)
        self.add_embedding = None if plan.added is None else Embedding(plan.added, common.time)
        self.controlnet_cond_embedding = HintEncoder(plan.hint, first)
        self.down_blocks = nn.ModuleList()
        for i, (width, resnets) in enumerate(zip(plan.widths, plan.resnets, strict=True)):
            widths = [plan.widths[max(i - 1, 0)]] + [width] * resnets
            self.down_blocks.append(Level(widths, plan.depths[i], heads[i], common, last=i == last))
        self.mid_block = Middle(plan.widths[-1], plan.middle, heads[-1], common)
        self.controlnet_down_blocks = nn.ModuleList(nn.Conv2d(c, c, 1) for c in self.layout.skips)
        self.controlnet_mid_block = nn.Conv2d(self.layout.middle, self.layout.middle, 1)

    @classmethod
    def load(cls, tensors: Mapping[str, Tensor], config: Mapping[str, Any] | None = None) -> ControlNet:
        """The ControlNet with these tensors, which it shares, in ldm's layout (with or without `control_model.`) or
        diffusers'. `config` in diffusers' words states what tensors do not show. ValueError on tensors that are
        missing, unknown, misshapen or not finite."""
        if "difference" in tensors:
            raise ValueError("holds a ControlNet minus a UNet; the weights of the UNet it was made from are missing")
        if any(name.startswith(PREFIX) for name in tensors):  # what lies beside it is the rest of Stable Diffusion
            tensors = {name.removeprefix(PREFIX): t for name, t in tensors.items() if name.startswith(PREFIX)}
        ldm = DIFFUSERS not in tensors
        if ldm:
            tensors = keys.to_diffusers(tensors)
        with torch.device("meta"):
            net = cls(Plan.read(tensors, config or {}))
        fill(net, tensors, dict(zip(net.state_dict(), keys.to_ldm(net.state_dict()), strict=True)) if ldm else {})
        return net.eval()

    @classmethod
    def copy_of(cls, unet: Any, dtype: torch.dtype | None = None) -> ControlNet:
        """The ControlNet to train beside a diffusers UNet: a copy of its encoder, a hint encoder drawn from torch's
        global generator, and zero convolutions, so that all residuals are exactly 0. Weights under a LoRA are the
        base's. `dtype` None keeps the UNet's. ValueError on a UNet with settings that ControlNets do not have, or
        with a fused LoRA."""
        tensors = {name: t.detach().to(dtype or t.dtype, copy=True) for name, t in source.encoder(unet).items()}
        like = tensors["conv_in.weight"]
        hint = HintEncoder((3, 16, 32, 96, 256), like.shape[0])
        for parameter in hint.conv_out.parameters():
            nn.init.zeros_(parameter)
        tensors |= {f"controlnet_cond_embedding.{name}": t.to(like) for name, t in hint.state_dict().items()}
        with torch.device("meta"):
            net = cls(Plan.read(tensors, source.settings(unet)))
        for name, t in net.state_dict().items():
            if name.startswith(("controlnet_down_blocks.", "controlnet_mid_block.")):
                tensors[name] = torch.zeros(t.shape, dtype=like.dtype, device=like.device)
        fill(net, tensors)
        return net

    @property
    def device(self) -> torch.device:
        return self.conv_in.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.conv_in.weight.dtype

    def settle(self, unet: Any) -> None:
        """Make sure that this network fits a diffusers UNet; where no config stated heads and groups, take the
        UNet's. Settling again on a UNet of the same shape changes nothing. ValueError says why it does not fit."""
        reason = misfit(self.layout, Layout.of(unet))
        if reason:
            raise ValueError(reason)
        if self.plan.heads is not None and not self._borrowed:
            return
        heads = source.heads(unet)
        sizes = unet.config["addition_time_embed_dim"] or self.plan.time_ids
        plan = replace(self.plan, heads=heads, groups=unet.config["norm_num_groups"], time_ids=sizes)
        if self._borrowed and plan != self.plan:
            raise ValueError(
                f"the ControlNet's file states no attention heads and it took {self.plan.heads} from another model; "
                f"load it once more for this one, which has {heads}"
            )
        self.plan, self._borrowed = plan, True
        for n, block in zip((*heads, heads[-1]), (*self.down_blocks, self.mid_block), strict=True):
            for module in block.modules():
                if isinstance(module, Attention):
                    module.heads = n
                elif isinstance(module, nn.GroupNorm):
                    module.num_groups = plan.groups

    def hint(self, image: np.ndarray | Tensor) -> Tensor:
        """The embedded hint `(B, C, H/8, W/8)` of an RGB picture at the size of the output: uint8 array `(H, W, 3)`
        or `(B, H, W, 3)`, or float tensor `(B, 3, H, W)` in 0..1 (inpainting ControlNets: -1 where to repaint).
        Nothing is resized: ValueError unless both sides are multiples of 8."""
        if self.plan.hint[0] != 3:
            raise ValueError(f"the ControlNet takes hints of {self.plan.hint[0]} channels, but a picture has 3")
        pixels = _pixels(image)
        height, width = pixels.shape[-2:]
        scale = 2 ** (len(self.plan.hint) - 2)
        if not height or not width or height % scale or width % scale:
            raise ValueError(f"hint of {width}x{height} pixels: both sides must be multiples of {scale}")
        return self.controlnet_cond_embedding(pixels.to(self.device, self.dtype))

    def forward(self, step: Step, hint: Tensor) -> Residuals:
        """Residuals of weight 1 in the dtype of `step.x`, for a `hint` that `hint()` made: one for all rows of x, one
        a picture or one a row. Of an inpainting UNet's x the first channels, which are the latents, are read."""
        dtype = self.dtype
        context, hint = _rows("prompts", step.context.to(dtype), step), _rows("hints", hint.to(dtype), step)
        time = sinusoid(_rows("timesteps", step.t, step), self.plan.widths[0])
        time = self.time_embedding(time.to(dtype))
        if self.add_embedding is not None:
            if step.added is None:
                raise ValueError("an SDXL ControlNet needs the step's added vector (pooled prompt and sizes)")
            time = time + self.add_embedding(_rows("added vectors", step.added.to(dtype), step))
        x = self.conv_in(step.x[:, : self.plan.channels].to(dtype))
        if hint.shape[1:] != x.shape[1:]:
            raise ValueError(f"hint of {_size(hint)} for x of {_size(x)}: make it from a picture of the output's size")
        skips = [x + hint]
        for level in self.down_blocks:
            skips += level(skips[-1], time, context)
        middle = self.mid_block(skips[-1], time, context)
        outputs = [zero(skip) for zero, skip in zip(self.controlnet_down_blocks, skips, strict=True)]
        outputs.append(self.controlnet_mid_block(middle))
        if self.global_average_pooling:
            outputs = [output.mean(dim=(2, 3), keepdim=True) for output in outputs]
        *skips, middle = (output.to(step.x.dtype) for output in outputs)
        return Residuals(tuple(skips), middle)


def detect(names: Collection[str]) -> bool:
    """Whether these are the names of a ControlNet's tensors; a union of ControlNets, a Control-LoRA and SparseCtrl,
    which have the same hint encoder, are other kinds."""
    plain = {name.removeprefix(PREFIX) for name in names}
    others = ("task_embedding", "lora_controlnet", "down_blocks.0.motion_modules.0.temporal_transformer.norm.weight")
    return (DIFFUSERS in plain or LDM in plain) and not plain.intersection(others)


def load(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> ControlNet:
    """As `ControlNet.load`."""
    return ControlNet.load(tensors, config)


def _pixels(image: np.ndarray | Tensor) -> Tensor:
    """A hint as float tensor `(B, 3, H, W)`."""
    if isinstance(image, Tensor):
        if image.is_floating_point() and image.ndim == 4 and image.shape[1] == 3:
            return image
    elif isinstance(image, np.ndarray):
        if image.dtype == np.uint8 and image.ndim in (3, 4) and image.shape[-1] == 3:
            scaled = image.astype(np.float32) / 255  # not on a GPU, which multiplies by 1/255: another last bit
            pixels = torch.from_numpy(scaled if image.ndim == 4 else scaled[None])
            return pixels.permute(0, 3, 1, 2).contiguous()
    else:
        raise TypeError(f"hint of type {type(image).__name__}, expected an array or a tensor")
    expected = "an array (H, W, 3) or (B, H, W, 3) of uint8, or a float tensor (B, 3, H, W)"
    raise ValueError(f"hint of shape {tuple(image.shape)} and type {image.dtype}, expected {expected}")


def _rows(what: str, values: Tensor, step: Step) -> Tensor:
    """One value for each row of x; given are one for all, one for each picture's frames, or already one for each
    row."""
    given, rows = values.shape[0], step.x.shape[0]
    if given == rows:
        return values
    if given == 1:
        return values.expand(rows, *values.shape[1:])
    if given * step.frames == rows:
        return values.repeat_interleave(step.frames, dim=0)
    raise ValueError(f"{given} {what} for {rows} rows of x and {step.frames} frames")


def _size(h: Tensor) -> str:
    return f"{h.shape[1]} channels, {h.shape[3]}x{h.shape[2]}"
